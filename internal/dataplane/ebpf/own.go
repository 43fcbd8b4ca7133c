package ebpf

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// refreshOwn tells the programs which addresses are this host's. Only connect needs it: packets to one of them are
// known by the loopback interface.
func (d *Dataplane) refreshOwn() error {
	var addrs []netlink.Addr
	err := d.netns.run(func() (err error) {
		addrs, err = netlink.AddrList(nil, netlink.FAMILY_ALL)
		return err
	})
	if err != nil {
		return fmt.Errorf("list this host's addresses: %w", err)
	}
	now := map[address]bool{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			now[addressOf(ip)] = true
		}
	}
	var gone []address
	var key address
	var is uint8
	it := d.maps.Own.Iterate()
	for it.Next(&key, &is) {
		if !now[key] {
			gone = append(gone, key)
		}
		delete(now, key)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read this host's addresses: %w", err)
	}
	for key := range now {
		if err := d.maps.Own.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("write this host's addresses: %w", err)
		}
	}
	for _, key := range gone {
		if err := d.maps.Own.Delete(key); err != nil {
			return fmt.Errorf("write this host's addresses: %w", err)
		}
	}
	return nil
}

// watchOwn asks for a refresh, by own, when an address of this host comes or goes, until ctx ends.
func (d *Dataplane) watchOwn(ctx context.Context, own chan<- struct{}) error {
	return watch(ctx, d, "addresses", own, func() (<-chan netlink.AddrUpdate, error) {
		updates := make(chan netlink.AddrUpdate, 64)
		return updates, netlink.AddrSubscribeWithOptions(updates, ctx.Done(), netlink.AddrSubscribeOptions{
			ErrorCallback: func(err error) {
				if ctx.Err() == nil { // else the socket was closed under it
					d.log.Warn("watching this host's addresses", "error", err)
				}
			},
		})
	})
}

// watch asks for a refresh whenever the kernel tells something of what is watched, until ctx ends. The kernel drops a subscriber
// that does not keep up: then it subscribes again.
func watch[U any](ctx context.Context, d *Dataplane, what string, refresh chan<- struct{}, subscribe func() (<-chan U, error)) error {
	for {
		var updates <-chan U
		err := d.netns.run(func() (err error) {
			updates, err = subscribe()
			return err
		})
		if err != nil {
			d.log.Warn("watching this host's "+what, "error", err)
		}
		ask(refresh)                    // for what was missed
		for open := err == nil; open; { // until the subscription ends
			if _, open = <-updates; open {
				ask(refresh)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// ask asks for something that is done once for any number of requests.
func ask(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
