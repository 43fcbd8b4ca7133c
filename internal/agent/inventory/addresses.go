package inventory

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// hostAddresses returns the addresses of this host's interfaces that others could reach, sorted.
func hostAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	return reachable(all), nil
}

func reachable(all []net.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(ipnet.IP)
		if addr = addr.Unmap(); ok && addr.IsGlobalUnicast() {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// watchAddresses signals whenever the kernel says that an address came or went.
func watchAddresses(ctx context.Context, group *errgroup.Group, signal chan<- struct{}) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", errors.Join(err, unix.Close(fd)))
	}
	file := os.NewFile(uintptr(fd), "netlink")
	stop := context.AfterFunc(ctx, func() { file.Close() })
	group.Go(func() error {
		defer stop()
		defer file.Close()
		buf := make([]byte, 16<<10) // the content does not matter: everything is read again
		for {
			_, err := file.Read(buf)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("read from netlink: %w", err)
			}
			select {
			case signal <- struct{}{}:
			default:
			}
		}
	})
	return nil
}
