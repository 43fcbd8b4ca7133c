package ebpf

import (
	"fmt"
	"net/netip"

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
	for it := d.maps.Own.Iterate(); it.Next(&key, &is); {
		if !now[key] {
			gone = append(gone, key)
		}
		delete(now, key)
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

// watchOwn calls refresh when an address of this host comes or goes, until done is closed.
func (d *Dataplane) watchOwn(done <-chan struct{}, refresh func()) error {
	updates := make(chan netlink.AddrUpdate, 64)
	err := d.netns.run(func() error {
		return netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
			ErrorCallback: func(err error) {
				select {
				case <-done: // the socket was closed under it
				default:
					d.log.Warn("watching this host's addresses", "error", err)
				}
			},
		})
	})
	if err != nil {
		return fmt.Errorf("watch this host's addresses: %w", err)
	}
	go func() {
		for range updates {
			refresh()
		}
	}()
	return nil
}
