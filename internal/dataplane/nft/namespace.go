package nft

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// namespace is the network namespace that a dataplane judges.
type namespace struct {
	file *os.File
	seen atomic.Uint32 // the last generation of nftables after which the table was known to be as we left it
}

// here returns the network namespace of the calling thread.
func here() (*namespace, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return &namespace{file: f}, nil
}

// dial opens a netlink socket in the namespace.
func (n *namespace) dial(family int) (*netlink.Conn, error) {
	c, err := netlink.Dial(family, &netlink.Config{NetNS: int(n.file.Fd())})
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := c.SetReadBuffer(readBuffer); err != nil {
		return nil, errors.Join(fmt.Errorf("netlink: %w", err), c.Close())
	}
	_ = c.SetOption(netlink.ExtendedAcknowledge, true) // errors then have words; without, they have numbers
	return c, nil
}

// readBuffer is how much the kernel may have to say before it loses something.
const readBuffer = 8 << 20

// query asks something of nftables, or all that there is of it, and calls f with the attributes of each answer.
func (n *namespace) query(typ netlink.HeaderType, family uint8, flags netlink.HeaderFlags, a attributes, f func(attributes []byte)) error {
	c, err := n.dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer c.Close()
	answers, err := c.Execute(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: append(header(family, 0), a...)})
	if err != nil {
		return plain(err)
	}
	for _, m := range answers {
		if len(m.Data) >= 4 && m.Header.Type != netlink.Error && m.Header.Type != netlink.Done {
			f(m.Data[4:])
		}
	}
	return nil
}
