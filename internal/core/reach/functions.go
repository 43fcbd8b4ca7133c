package reach

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Level is a verdict, with what is essential kept apart from what policy allows. Greater is more permissive.
type Level uint8

// The levels. The first three are model.Verdict by the same numbers.
const (
	Deny      = Level(model.Deny)
	WouldDeny = Level(model.WouldDeny)
	Allow     = Level(model.Allow)
	Essential = Allow + 1
)

// Verdict returns the verdict that the level stands for.
func (l Level) Verdict() model.Verdict { return min(model.Verdict(l), model.Allow) }

// FuncID is an interned function of protocol, port and the processes at both ends that says the level and not the rule:
// two functions have one number if and only if they are equal everywhere.
type FuncID int32

// function is a total function. cells are sorted, disjoint and of named protocols; whatever they leave out has what rest
// says. A cell whose neighbour or rest says the same has been merged into it.
type function struct {
	rest  choice
	cells []levelCell
}

type levelCell struct {
	proto  model.Proto
	lo, hi uint16
	level  choice
}

// functions interns functions. Those of all worlds share one, so that numbers compare across worlds.
type functions struct {
	choices *choices
	all     []function
	byKey   map[string]FuncID
	key     []byte
}

func newFunctions() *functions { return &functions{choices: newChoices(), byKey: map[string]FuncID{}} }

func (s *functions) intern(f function) FuncID {
	s.key = binary.LittleEndian.AppendUint32(s.key[:0], uint32(f.rest))
	for _, c := range f.cells {
		s.key = binary.LittleEndian.AppendUint32(append(s.key, byte(c.proto)), uint32(c.level))
		s.key = binary.LittleEndian.AppendUint16(s.key, c.lo)
		s.key = binary.LittleEndian.AppendUint16(s.key, c.hi)
	}
	if id, ok := s.byKey[string(s.key)]; ok {
		return id
	}
	id := FuncID(len(s.all))
	s.byKey[string(s.key)] = id
	s.all = append(s.all, f)
	return id
}

// of interns what a compiled function says in a direction.
func (s *functions) of(f hostpolicy.Func, d model.Direction) FuncID {
	out := function{rest: s.choices.of(&f[0], d)}
	for i := range f[1:] {
		c := &f[1+i]
		out.add(levelCell{c.Ports.Proto, c.Ports.Lo, c.Ports.Hi, s.choices.of(c, d)})
	}
	return s.intern(out)
}

func levelOf(v model.Verdict, rule model.RuleID) Level {
	if v == model.Allow && (rule == model.RuleDNS || rule == model.RuleTime || rule == model.RuleController) {
		return Essential
	}
	return Level(v)
}

// add appends a cell that follows the ones before.
func (f *function) add(c levelCell) {
	if c.level == f.rest {
		return
	}
	if n := len(f.cells); n > 0 {
		if last := &f.cells[n-1]; last.proto == c.proto && last.level == c.level && last.hi != 65535 && last.hi+1 == c.lo {
			last.hi = c.hi
			return
		}
	}
	f.cells = append(f.cells, c)
}

// withEssential returns the function with one TCP port made essential.
func (s *functions) withEssential(id FuncID, ports []uint16) FuncID {
	ranges := make([]model.PortRange, len(ports))
	for i, p := range ports {
		ranges[i] = model.PortRange{Proto: model.ProtoTCP, Lo: p, Hi: p}
	}
	out := function{rest: s.all[id].rest}
	walk([]*function{&s.all[id]}, ranges, func(p model.PortRange, says []choice, marked bool) {
		if p.Proto == model.ProtoAny {
			return
		}
		l := says[0]
		if marked {
			l = choice(Essential)
		}
		out.add(levelCell{p.Proto, p.Lo, p.Hi, l})
	})
	return s.intern(out)
}

// always are the essentials that protocol and port tell, sorted.
var always = func() []model.PortRange {
	var out []model.PortRange
	for _, e := range essential.Fixed {
		out = append(out, e.Ports)
	}
	slices.SortFunc(out, comparePorts)
	return out
}()

// walk calls visit for the pieces of the space of protocols and ports on which all functions are constant and that lie
// wholly inside or outside the marked ranges, which are sorted and disjoint. Pieces come by protocol and port; the
// last one has ProtoAny and stands for every protocol that none of the others names.
func walk(fs []*function, marked []model.PortRange, visit func(p model.PortRange, says []choice, marked bool)) {
	says := make([]choice, len(fs))
	at := make([]int, len(fs))
	mark := 0
	proto := model.ProtoAny
	for {
		next, found := nextProto(fs, at, marked, mark)
		if !found {
			break
		}
		proto = next
		for lo := uint32(0); lo <= 65535; {
			hi := uint32(65535)
			for i, f := range fs {
				says[i] = f.rest
				if at[i] < len(f.cells) && f.cells[at[i]].proto == proto {
					c := &f.cells[at[i]]
					if uint32(c.lo) > lo {
						hi = min(hi, uint32(c.lo)-1)
					} else {
						says[i] = c.level
						hi = min(hi, uint32(c.hi))
					}
				}
			}
			inside := false
			if mark < len(marked) && marked[mark].Proto == proto {
				if m := marked[mark]; uint32(m.Lo) > lo {
					hi = min(hi, uint32(m.Lo)-1)
				} else {
					inside = true
					hi = min(hi, uint32(m.Hi))
				}
			}
			visit(model.PortRange{Proto: proto, Lo: uint16(lo), Hi: uint16(hi)}, says, inside)
			for i, f := range fs {
				if at[i] < len(f.cells) && f.cells[at[i]].proto == proto && uint32(f.cells[at[i]].hi) <= hi {
					at[i]++
				}
			}
			if mark < len(marked) && marked[mark].Proto == proto && uint32(marked[mark].Hi) <= hi {
				mark++
			}
			lo = hi + 1
		}
	}
	for i, f := range fs {
		says[i] = f.rest
	}
	visit(model.AnyPort, says, false)
}

// nextProto returns the least protocol that a cell or a mark not yet passed names.
func nextProto(fs []*function, at []int, marked []model.PortRange, mark int) (model.Proto, bool) {
	next, found := model.ProtoAny, false
	consider := func(p model.Proto) {
		if !found || p < next {
			next, found = p, true
		}
	}
	for i, f := range fs {
		if at[i] < len(f.cells) {
			consider(f.cells[at[i]].proto)
		}
	}
	if mark < len(marked) {
		consider(marked[mark].Proto)
	}
	return next, found
}

func comparePorts(a, b model.PortRange) int {
	switch {
	case a.Proto != b.Proto:
		return int(a.Proto) - int(b.Proto)
	case a.Lo != b.Lo:
		return int(a.Lo) - int(b.Lo)
	}
	return int(a.Hi) - int(b.Hi)
}

// Within interns the function that allows the ports and nothing else.
func (u *Universe) Within(ports []model.PortRange) FuncID {
	sorted := slices.Clone(ports)
	slices.SortFunc(sorted, comparePorts)
	out := function{rest: choice(Deny)}
	for _, p := range sorted {
		if p.Proto == model.ProtoAny {
			return u.open
		}
		if n := len(out.cells); n > 0 && out.cells[n-1].proto == p.Proto && int(p.Lo) <= int(out.cells[n-1].hi)+1 {
			out.cells[n-1].hi = max(out.cells[n-1].hi, p.Hi)
			continue
		}
		out.cells = append(out.cells, levelCell{p.Proto, p.Lo, p.Hi, choice(Allow)})
	}
	return u.functions.intern(out)
}

// Has reports whether the function has the level anywhere, for any processes.
func (u *Universe) Has(id FuncID, l Level) bool {
	f, all := &u.functions.all[id], u.functions.choices.all
	has := func(c choice) bool { return all[c].leads&(1<<l) != 0 }
	return has(f.rest) || slices.ContainsFunc(f.cells, func(c levelCell) bool { return has(c.level) })
}

// Functions returns how many functions there are: every FuncID is less.
func (u *Universe) Functions() int { return len(u.functions.all) }

// At returns the level of the function at one port, for processes that are not known if they are nil. Essentials that
// protocol and port tell are not in it.
func (u *Universe) At(id FuncID, proto model.Proto, port uint16, from, to *model.Process) Level {
	return u.functions.choices.at(u.functions.all[id].at(proto, port), from, to)
}

// Whose returns for whom the function has the level at the port.
func (u *Universe) Whose(id FuncID, proto model.Proto, port uint16, l Level) Who {
	return u.functions.choices.whose(u.functions.all[id].at(proto, port), l)
}

func (f *function) at(proto model.Proto, port uint16) choice {
	for _, c := range f.cells {
		if c.proto == proto && c.lo <= port && port <= c.hi {
			return c.level
		}
	}
	return f.rest
}
