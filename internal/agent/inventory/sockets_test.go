package inventory

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/model"
)

const (
	heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	tcpRows = heading +
		"   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0\n" +
		"   1: 0700000A:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 112 1 0 100 0 0 10 0\n" +
		"   2: 0700000A:0016 0800000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 113 1 0 100 0 0 10 0\n" +
		"   3: this row comes after the listening ones and is never read\n"
	tcp6Rows = heading +
		"   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 211 1 0\n" +
		"   1: 000000FD000000000000000007000000:0051 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 212 1 0\n" +
		"   2: 0000000000000000FFFF00000700000A:0052 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 213 1 0\n"
	udpRows = heading +
		"   0: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 311 2 0\n" +
		"   1: 0700000A:8235 0101010A:0035 01 00000000:00000000 00:00000000 00000000     0        0 312 2 0\n"
)

func TestParseTable(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the rows are those of a little-endian machine")
	}
	addr := netip.MustParseAddr
	cases := []struct {
		name, rows string
		proto      model.Proto
		want       []socket
	}{
		{"tcp", tcpRows, model.ProtoTCP, []socket{{netip.Addr{}, 6, 8080, 111}, {addr("10.0.0.7"), 6, 22, 112}}},
		{"tcp6", tcp6Rows, model.ProtoTCP, []socket{
			{netip.Addr{}, 6, 80, 211}, {addr("fd00::7"), 6, 81, 212}, {addr("10.0.0.7"), 6, 82, 213}}},
		{"udp", udpRows, model.ProtoUDP, []socket{{netip.Addr{}, 17, 53, 311}}},
		{"empty", heading, model.ProtoTCP, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseTable(strings.NewReader(c.rows), make([]byte, 4096), c.proto, nil)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("found %v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestParseTableRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, row := range []string{"0: 00:50 x 0A\n", "0: 0000000G:0050 x 0A a b c d e 5\n", "0: 00000000:FFFFF x 0A a b c d e 5\n",
		"0: 00000000:0050 x 0A a b c d e five\n", "0: 00000000:0050 x LISTEN a b c d e 5\n"} {
		if got, err := parseTable(strings.NewReader(heading+row), make([]byte, 4096), model.ProtoTCP, nil); err == nil {
			t.Errorf("row %q gave %v, want an error", row, got)
		}
	}
}

func TestEphemeralUDPCountsAfterAWhile(t *testing.T) {
	now := time.Unix(1000, 0)
	s := newSockets(procRoot)
	s.now = func() time.Time { return now }
	s.ephemeral = func() (uint16, uint16) { return 32768, 60999 }
	list := func() []socket {
		return s.settled([]socket{{proto: model.ProtoUDP, port: 40000, inode: 1}, {proto: model.ProtoUDP, port: 53, inode: 2}, {proto: model.ProtoTCP, port: 40000, inode: 3}})
	}
	if got := list(); len(got) != 2 {
		t.Errorf("at once: %v, want all but the UDP socket at port 40000", got)
	}
	now = now.Add(listenAfter)
	if got := list(); len(got) != 3 {
		t.Errorf("after %v: %v, want all", listenAfter, got)
	}
	if got := s.settled(nil); got != nil || len(s.since) != 0 {
		t.Errorf("a socket that is gone is remembered: %v", s.since)
	}
}

func TestUnownedSocketIsSearchedEverMoreRarely(t *testing.T) {
	o := owners{proc: t.TempDir(), known: map[uint64]owner{}, unknown: map[uint64]retry{}}
	tree := newTree(t.TempDir())
	now := time.Unix(1000, 0)
	list := []socket{{inode: 7}}
	o.find(tree, list, now, false)
	first := o.unknown[7]
	o.find(tree, list, now.Add(first.wait/2), false)
	if o.unknown[7] != first {
		t.Error("it was searched again before its time")
	}
	for range 20 {
		now = o.unknown[7].at
		o.find(tree, list, now, false)
	}
	if o.unknown[7].wait != maxRetry {
		t.Errorf("it waits %v, want %v", o.unknown[7].wait, maxRetry)
	}
	o.find(tree, nil, now, false)
	if len(o.unknown) != 0 || len(o.known) != 0 {
		t.Error("a socket that is gone is remembered")
	}
}

func FuzzParseTable(f *testing.F) {
	for _, rows := range []string{tcpRows, tcp6Rows, udpRows} {
		f.Add([]byte(rows))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP} {
			got, err := parseTable(bytes.NewReader(data), make([]byte, 4096), proto, nil)
			for _, k := range got {
				if k.port == 0 || k.inode == 0 || k.addr.Is4In6() || k.addr.IsValid() && k.addr.IsUnspecified() {
					t.Fatalf("found %+v (%v)", k, err)
				}
			}
		}
	})
}
