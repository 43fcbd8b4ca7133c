package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
)

// TestCoverSelectors compares with trying every label set over two keys and four values, one of which no selector
// names, so that it stands for all others.
func TestCoverSelectors(t *testing.T) {
	values := []string{"", "a", "b", "other"}
	var sets []model.Labels
	for i := range 25 {
		l := model.Labels{}
		for j, key := range []string{"x", "y"} {
			if v := (i / []int{1, 5}[j]) % 5; v < 4 {
				l[key] = values[v]
			}
		}
		sets = append(sets, l)
	}
	r := rand.New(rand.NewPCG(1, 2))
	requirement := func() string {
		key := []string{"x", "y"}[r.IntN(2)]
		v := func() string { return values[r.IntN(3)] }
		return []string{
			key + "=" + v(), key + "!=" + v(), key, "!" + key,
			fmt.Sprintf("%s in (%s,%s)", key, v(), v()), fmt.Sprintf("%s notin (%s,%s)", key, v(), v()),
		}[r.IntN(6)]
	}
	selector := func() model.Selector {
		for {
			parts := make([]string, r.IntN(4))
			for i := range parts {
				parts[i] = requirement()
			}
			if s := model.MustParseSelector(strings.Join(parts, ",")); s.Contradiction() == "" {
				return s
			}
		}
	}
	covered := 0
	for range 20_000 {
		outer, inner := selector(), selector()
		want := !slices.ContainsFunc(sets, func(l model.Labels) bool { return inner.Matches(l) && !outer.Matches(l) })
		o, i := workloadSet(&outer), workloadSet(&inner)
		if got := o.covers(&i); got != want {
			t.Fatalf("%q covers %q: got %v, want %v", outer, inner, got, want)
		}
		if want {
			covered++
			if missing := o.signature("from") &^ i.signature("from"); missing != 0 {
				t.Fatalf("%q covers %q, but its signature has bits %x that the other lacks", outer, inner, missing)
			}
		}
	}
	if covered < 1000 {
		t.Errorf("only %d of the pairs cover each other", covered)
	}
}

// TestCoverPrefixes compares with trying every address of a small range.
func TestCoverPrefixes(t *testing.T) {
	h := &hygiene{networks: map[string]*model.Network{}}
	r := rand.New(rand.NewPCG(3, 4))
	prefix := func() netip.Prefix {
		bits := 27 + r.IntN(6)
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(32))}), bits).Masked()
	}
	covered := 0
	for i := range 5000 {
		var peers [2]model.Peer
		var nets [2]model.Network
		for j := range peers {
			nets[j] = model.Network{Meta: model.Meta{Name: fmt.Sprint(i, j)}, CIDRs: []netip.Prefix{prefix()}}
			switch r.IntN(3) {
			case 0:
				peers[j] = model.Peer{Kind: model.PeerCIDR, CIDR: nets[j].CIDRs[0]}
				continue
			case 1:
				nets[j].Except = []netip.Prefix{prefix()}
			}
			h.networks[nets[j].Name] = &nets[j]
			peers[j] = model.Peer{Kind: model.PeerNetwork, Network: nets[j].Name}
		}
		sets := h.peerSets(peers[:])
		if !sets[0].covers(&sets[1]) {
			continue
		}
		covered++
		for b := range 64 {
			if a := netip.AddrFrom4([4]byte{192, 0, 2, byte(b)}); nets[1].Contains(a) && !nets[0].Contains(a) {
				t.Fatalf("%+v covers %+v, but not %s", nets[0], nets[1], a)
			}
		}
	}
	if covered < 100 {
		t.Errorf("only %d of the pairs cover each other", covered)
	}
}

func TestNearest(t *testing.T) {
	fields := []string{"from", "to", "on", "workloads", "network", "selector", "services"}
	for word, want := range map[string]string{
		"form": "from", "frm": "from", "From": "from", "network": "network", "netwrok": "network", "networks": "network",
		"workload": "workloads", "selectr": "selector", "service": "services", "x": "", "colour": "", "": "", "protocol": "",
	} {
		if got := nearest(word, fields); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
