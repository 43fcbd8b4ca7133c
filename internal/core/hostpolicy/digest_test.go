package hostpolicy_test

import (
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

func constant(v model.Verdict, rule string) hostpolicy.Func {
	return hostpolicy.Func{{Ports: model.AnyPort, Verdict: v, Rule: model.RuleID(rule)}}
}

func TestTableHashIsOfContent(t *testing.T) {
	deny, a, b := constant(model.Deny, "default-deny"), constant(model.Allow, "p/a"), constant(model.Allow, "p/b")
	table := func(funcs []hostpolicy.Func, peers ...hostpolicy.PeerFunc) hostpolicy.Hash {
		t := hostpolicy.Table{Funcs: funcs, Peers: peers}
		return t.Hash()
	}
	want := table([]hostpolicy.Func{deny, a, b}, hostpolicy.PeerFunc{Peer: 1, Func: 1}, hostpolicy.PeerFunc{Peer: 2, Func: 2})
	if got := table([]hostpolicy.Func{deny, b, a}, hostpolicy.PeerFunc{Peer: 1, Func: 2}, hostpolicy.PeerFunc{Peer: 2, Func: 1}); got != want {
		t.Error("the numbering of functions counts")
	}
	seen := map[hostpolicy.Hash]string{want: "the table"}
	for name, got := range map[string]hostpolicy.Hash{
		"no row":           table([]hostpolicy.Func{deny}),
		"one row":          table([]hostpolicy.Func{deny, a}, hostpolicy.PeerFunc{Peer: 1, Func: 1}),
		"another function": table([]hostpolicy.Func{deny, a}, hostpolicy.PeerFunc{Peer: 1, Func: 1}, hostpolicy.PeerFunc{Peer: 2, Func: 1}),
		"exchanged":        table([]hostpolicy.Func{deny, b, a}, hostpolicy.PeerFunc{Peer: 1, Func: 1}, hostpolicy.PeerFunc{Peer: 2, Func: 2}),
		"another peer":     table([]hostpolicy.Func{deny, a, b}, hostpolicy.PeerFunc{Peer: 1, Func: 1}, hostpolicy.PeerFunc{Peer: 3, Func: 2}),
		"another default":  table([]hostpolicy.Func{a, deny, b}, hostpolicy.PeerFunc{Peer: 1, Func: 1}, hostpolicy.PeerFunc{Peer: 2, Func: 2}),
	} {
		if other, taken := seen[got]; taken {
			t.Errorf("%s has the hash of %s", name, other)
		}
		seen[got] = name
	}
}

func TestSumTakesBackWhatItWasGiven(t *testing.T) {
	var bag hostpolicy.Bag
	digests := make([]hostpolicy.Sum, 100)
	for i := range digests {
		digests[i] = hostpolicy.PeerDigest(model.IdentityID(i + 1))
		bag.Add(digests[i])
	}
	ninetynine := bag
	ninetynine.Remove(digests[41])
	var other hostpolicy.Bag
	for i := len(digests) - 1; i >= 0; i-- {
		if i != 41 {
			other.Add(digests[i])
		}
	}
	if other != ninetynine || other == bag {
		t.Error("the order of adding and removing counts")
	}
	for i := range digests {
		bag.Remove(digests[i])
	}
	if bag != (hostpolicy.Bag{}) {
		t.Errorf("%v is left of nothing", bag)
	}
}
