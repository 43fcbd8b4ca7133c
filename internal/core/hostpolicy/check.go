package hostpolicy

import (
	"fmt"

	"bulkhead/internal/core/model"
)

// Check reports the first way in which p is not a well-formed policy: what a truncated or tampered message would
// leave behind. A policy that fails it must not be applied.
func (p *Policy) Check() error {
	if p.Host == "" {
		return fmt.Errorf("policy names no host")
	}
	for i := range p.Sets {
		s := &p.Sets[i]
		if i > 0 && p.Sets[i-1].ID >= s.ID {
			return fmt.Errorf("policy sets are not sorted at %016x", uint64(s.ID))
		}
		if got := s.ContentID(); got != s.ID {
			return fmt.Errorf("policy set %016x: content has hash %016x", uint64(s.ID), uint64(got))
		}
		for _, d := range model.Directions {
			if err := s.Table(d).check(); err != nil {
				return fmt.Errorf("policy set %016x, %s: %w", uint64(s.ID), d, err)
			}
		}
	}
	for i := range p.Subjects {
		s := &p.Subjects[i]
		ids := []PolicySetID{s.Set, s.Isolation}
		for _, l := range s.Local {
			ids = append(ids, l.Set)
		}
		for _, id := range ids {
			if p.Set(id) == nil {
				return fmt.Errorf("subject %q names policy set %016x, which is missing", s.Workload, uint64(id))
			}
		}
	}
	for i := range p.Addresses {
		if a := &p.Addresses[i]; !a.Prefix.IsValid() || a.Prefix != a.Prefix.Masked() || a.Prefix.Addr().Is4In6() {
			return fmt.Errorf("address entry %d: %v is not a canonical prefix", i, a.Prefix)
		}
	}
	return p.checkOrder()
}

func outOfOrder(list, at string) error {
	return fmt.Errorf("%s are out of order, or one is there twice, at %s", list, at)
}

func (t *Table) check() error {
	if len(t.Funcs) == 0 {
		return fmt.Errorf("no default function")
	}
	for i, f := range t.Funcs {
		if err := f.check(); err != nil {
			return fmt.Errorf("function %d: %w", i, err)
		}
	}
	for i, p := range t.Peers {
		if i > 0 && t.Peers[i-1].Peer >= p.Peer {
			return fmt.Errorf("peers are not sorted at %s", p.Peer)
		}
		if int(p.Func) >= len(t.Funcs) {
			return fmt.Errorf("peer %s names function %d of %d", p.Peer, p.Func, len(t.Funcs))
		}
	}
	return nil
}

func (f Func) check() error {
	if len(f) == 0 || f[0].Ports != model.AnyPort {
		return fmt.Errorf("the first cell is not every port of every protocol")
	}
	for i := range f {
		for _, a := range f[i].When {
			if a.Process == (model.Process{}) {
				return fmt.Errorf("cell %d: an alternative is for every process", i)
			}
		}
	}
	for i := 1; i < len(f); i++ {
		c, before := f[i].Ports, f[i-1].Ports
		sameProto := i > 1 && before.Proto == c.Proto
		switch {
		case c.Proto == model.ProtoAny || c.Hi < c.Lo:
			return fmt.Errorf("cell %d: %v is not a range of one protocol", i, c)
		case sameProto && (before.Hi == 65535 || c.Lo != before.Hi+1):
			return fmt.Errorf("cell %d: %v does not follow %v", i, c, before)
		case !sameProto && (c.Lo != 0 || c.Proto < before.Proto || i > 1 && before.Hi != 65535):
			return fmt.Errorf("cell %d: %s is not covered from 0 to 65535", i, c.Proto)
		}
	}
	if last := f[len(f)-1].Ports; last.Hi != 65535 {
		return fmt.Errorf("%s is not covered up to 65535", last.Proto)
	}
	return nil
}
