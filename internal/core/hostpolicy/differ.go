package hostpolicy

import (
	"fmt"
	"slices"

	"bulkhead/internal/core/model"
)

// Difference is traffic that two tables judge differently.
type Difference struct {
	Dir      model.Direction // where policy sets are compared
	Peer     model.IdentityID
	Others   bool            // it is of every peer without a row in either, and Peer is zero
	Ports    model.PortRange // all of them; of model.ProtoAny, every protocol that neither names
	Process  *model.Process  // of the subject: every one that is like it in what policy can tell apart; nil is not known
	Verdicts [2]model.EndVerdict
}

// String says what differs in words.
func (d *Difference) String() string {
	who := "peer " + d.Peer.String()
	if d.Others {
		who = "every other peer"
	}
	process := ""
	if d.Process != nil {
		process = " for " + d.Process.String()
	}
	return fmt.Sprintf("%s with %s on %s%s: %s by %s, and %s by %s", d.Dir, who, d.Ports, process,
		d.Verdicts[0].Verdict, d.Verdicts[0].Rule, d.Verdicts[1].Verdict, d.Verdicts[1].Rule)
}

// Differs returns the first difference between what two policy sets say, over every direction, peer, protocol, port and
// process; nil if there is none. It compares what is decided, verdict and rule, and not how that is written: sets that do
// not differ may have other functions, cells and alternatives.
func (s *PolicySet) Differs(other *PolicySet) *Difference {
	for _, d := range model.Directions {
		if x := s.Table(d).Differs(other.Table(d)); x != nil {
			x.Dir = d
			return x
		}
	}
	return nil
}

// Differs returns the first difference between what two tables say; nil if there is none.
func (t *Table) Differs(other *Table) *Difference {
	same := map[[2]uint32]bool{}
	compare := func(a, b uint32) *Difference {
		if same[[2]uint32{a, b}] {
			return nil
		}
		same[[2]uint32{a, b}] = true // or the caller returns
		return t.Funcs[a].Differs(other.Funcs[b])
	}
	if x := compare(0, 0); x != nil {
		x.Others = true
		return x
	}
	for i, k := 0, 0; i < len(t.Peers) || k < len(other.Peers); {
		var a, b PeerFunc
		switch {
		case k == len(other.Peers) || i < len(t.Peers) && t.Peers[i].Peer < other.Peers[k].Peer:
			a = t.Peers[i]
			b.Peer = a.Peer
			i++
		case i == len(t.Peers) || other.Peers[k].Peer < t.Peers[i].Peer:
			b = other.Peers[k]
			a.Peer = b.Peer
			k++
		default:
			a, b = t.Peers[i], other.Peers[k]
			i, k = i+1, k+1
		}
		if x := compare(a.Func, b.Func); x != nil {
			x.Peer = a.Peer
			return x
		}
	}
	return nil
}

// Differs returns the first difference between what two functions say; nil if there is none.
func (f Func) Differs(other Func) *Difference {
	protos := []model.Proto{model.ProtoAny}
	for _, c := range slices.Concat(f, other) {
		protos = append(protos, c.Ports.Proto)
	}
	slices.Sort(protos)
	for _, proto := range slices.Compact(protos) {
		a, b := f.section(proto), other.section(proto)
		for i, k, lo := 0, 0, uint16(0); ; {
			hi := min(a[i].Ports.Hi, b[k].Ports.Hi)
			if x := a[i].differs(&b[k]); x != nil {
				x.Ports = model.PortRange{Proto: proto, Lo: lo, Hi: hi}
				return x
			}
			if hi == 65535 {
				break
			}
			if a[i].Ports.Hi == hi {
				i++
			}
			if b[k].Ports.Hi == hi {
				k++
			}
			lo = hi + 1
		}
	}
	return nil
}

// section returns the cells that hold for a protocol.
func (f Func) section(proto model.Proto) Func {
	from := slices.IndexFunc(f, func(c Cell) bool { return c.Ports.Proto == proto })
	if from < 0 || proto == model.ProtoAny {
		return f[:1]
	}
	to := from
	for to < len(f) && f[to].Ports.Proto == proto {
		to++
	}
	return f[from:to]
}

// differs compares what two cells say about every process. Processes that are alike in the values that a constraint of
// either names are judged alike, so one of each kind is asked about; "" stands for every value that none names.
func (c *Cell) differs(other *Cell) *Difference {
	units, paths, users := []string{""}, []string{""}, []string{""}
	for _, a := range slices.Concat(c.When, other.When) {
		units, paths, users = append(units, a.Process.Unit), append(paths, a.Process.Path), append(users, a.Process.User)
	}
	for _, list := range []*[]string{&units, &paths, &users} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	differ := func(p *model.Process) *Difference {
		a, b := c.For(p), other.For(p)
		if a == b {
			return nil
		}
		return &Difference{Process: p, Verdicts: [2]model.EndVerdict{a, b}}
	}
	if x := differ(nil); x != nil {
		return x
	}
	for _, unit := range units {
		for _, path := range paths {
			for _, user := range users {
				if x := differ(&model.Process{Unit: unit, Path: path, User: user}); x != nil {
					return x
				}
			}
		}
	}
	return nil
}
