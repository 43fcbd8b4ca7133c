package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netns is a named network namespace.
type netns struct {
	path string
	file *os.File
}

// newNetns makes a network namespace and binds it to path, as "ip netns add" does.
func newNetns(path string) (*netns, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("name a network namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("name a network namespace: %w", err)
		}
		return prepare()
	})
	if err != nil {
		return nil, errors.Join(err, removeNetns(path))
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &netns{path: path, file: file}, nil
}

// do runs fn on a thread of its own inside the namespace.
func (n *netns) do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", n.path, err)
		}
		return fn()
	})
}

func (n *netns) close() error {
	if err := n.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// onThread runs fn on an operating-system thread that ends with it, so that no other goroutine ever runs in a
// namespace that fn entered.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

func removeNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// prepare makes a fresh namespace usable: loopback is up; addresses of IPv6 work at once instead of after a second
// of duplicate detection, and none appears by itself.
func prepare() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set up loopback: %w", err)
	}
	for key, value := range map[string]string{
		"net/ipv6/conf/default/accept_dad": "0",
		"net/ipv6/conf/default/accept_ra":  "0",
		"net/ipv6/conf/default/autoconf":   "0",
	} {
		// Opened by this thread, /proc/sys/net shows this thread's namespace.
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
			if strings.HasPrefix(key, "net/ipv6") && errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("this kernel has no IPv6, which the lab needs: %w", err)
			}
			return err
		}
	}
	return nil
}

const bridge = "br0"

func addBridge() error {
	snooping := false // without a querier it would only lose neighbour discovery
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(br); err != nil {
		return err
	}
	return netlink.LinkSetUp(br)
}

// addCable makes a pair of interfaces: port, in the bridge of this namespace, and eth0 in host.
func addCable(port string, host *netns) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port, br.Attrs().Index
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(host.file.Fd())}
	if err := netlink.LinkAdd(cable); err != nil {
		return err
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func configure(addresses []netip.Prefix) error {
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return err
	}
	for _, p := range addresses {
		addr, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(eth, addr); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}
