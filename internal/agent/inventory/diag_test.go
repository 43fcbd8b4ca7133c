package inventory

import (
	"cmp"
	"net"
	"slices"
	"testing"
)

// TestDiagAgreesWithProc holds the two ways of reading sockets against each other on the sockets of this machine.
func TestDiagAgreesWithProc(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		addr := "127.0.0.1:0"
		if network[3] == '6' {
			addr = "[::1]:0"
		}
		if network[0] == 't' {
			l, err := net.Listen(network, addr)
			if err != nil {
				t.Logf("no %s here: %v", network, err)
				continue
			}
			defer l.Close()
			continue
		}
		c, err := net.ListenPacket(network, addr)
		if err != nil {
			t.Logf("no %s here: %v", network, err)
			continue
		}
		defer c.Close()
	}
	order := func(a, b socket) int { return cmp.Compare(a.inode, b.inode) }
	s := newSockets(procRoot)
	for _, table := range tables {
		// Others open and close sockets meanwhile: only what both reads of one side agree on is compared.
		for attempt := 0; ; attempt++ {
			before, err := s.readTable(table.name, table.proto)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.diag.listening(table.family, table.proto, table.state)
			if err != nil {
				t.Skipf("sock_diag is not available: %v", err)
			}
			after, err := s.readTable(table.name, table.proto)
			if err != nil {
				t.Fatal(err)
			}
			for _, list := range [][]socket{before, got, after} {
				slices.SortFunc(list, order)
			}
			if !slices.Equal(before, after) && attempt < 20 {
				continue
			}
			if !slices.Equal(got, after) {
				t.Errorf("%s: sock_diag says %v, /proc/net says %v", table.name, got, after)
			}
			break
		}
	}
	s.diag.close()
}

func TestParseDiagRefusesTruncation(t *testing.T) {
	whole := make([]byte, 16+sizeofDiagMsg)
	whole[0], whole[4] = byte(len(whole)), sockDiagByFamily
	whole[16] = 2                 // AF_INET
	whole[16+5] = 80              // port
	whole[16+sizeofDiagMsg-4] = 9 // inode
	if got, done, err := parseDiag(whole, 6, nil); err != nil || done || len(got) != 1 || got[0].port != 80 {
		t.Fatalf("the whole message: %v, %v, %v", got, done, err)
	}
	for n := 16; n < len(whole); n++ {
		if got, _, err := parseDiag(whole[:n], 6, nil); err == nil {
			t.Errorf("%d of %d bytes: %v, want an error", n, len(whole), got)
		}
	}
}
