package prove

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// kind says what stands at an end of a flow that could be.
type kind uint8

const (
	managed kind = iota // a workload that an agent enforces on, with any labels, at any address or at none
	address             // an address that no workload owns
	device              // a workload of today that nothing enforces on: those are taken as they are
	kinds
)

// keyDomain are the values of a label key, or of a field of a process, that some document tells apart: those that it
// mentions, one that stands for all others, and none at all.
type keyDomain struct {
	name          string
	values        []string // sorted
	other, absent int32    // numbers after those of values; unset if it cannot be
	size          int32
}

const unset = int32(-1)

// The variables of an end that come after those of its label keys.
const (
	placeVariable = iota // a cell of the address space, or no address
	deviceVariable
	unitVariable
	pathVariable
	userVariable
	fixedVariables
)

// space is everything that could exist, as far as the policy of one world can tell it apart: for each end the value of each
// label key, the cell of its address and the process there; and the protocol and port.
type space struct {
	world *compile.World
	docs  *model.Documents
	rules [2][]rule // by direction, without the expired ones

	keys     []keyDomain // labels, then the three fields of a process
	labels   int         // how many of keys are labels
	keyIndex map[string]int32
	level    int32 // the key of quarantine
	cells    []reach.Cell
	devices  []*model.Identity
	family   []addressFamily // of devices
	cuts     portCuts
	sizes    []int32
	spare    [][]int32

	matches      []*compile.Match
	matchIndex   map[string]int32
	conjunctions [2][kinds]map[int32][]conjunction // by end, kind and match
	networkBits  map[string][]uint64               // network to its cells
	deviceBits   map[string][]uint64               // condition to the devices that meet it
	segments     []int32                           // by segment: the match of its members
	onPorts      []int32                           // by segment: the set of cuts that is its services
}

type addressFamily uint8

const (
	anyFamily addressFamily = iota // without an address
	family4
	family6
)

// rule is a compiled rule with its numbers.
type rule struct {
	*compile.Rule
	subject, peer int32 // matches
	ports         int32 // sets of cuts
	twin          int32 // the rule of the other direction that says the same of the same flows; unset if there is none
}

func newSpace(w *compile.World) *space {
	s := &space{
		world: w, docs: w.Documents(), keyIndex: map[string]int32{}, matchIndex: map[string]int32{},
		networkBits: map[string][]uint64{}, deviceBits: map[string][]uint64{},
		cells: reach.Cells(w),
	}
	for end := range s.conjunctions {
		for k := range s.conjunctions[end] {
			s.conjunctions[end][k] = map[int32][]conjunction{}
		}
	}
	s.findDevices()
	s.readRules([2][]compile.Rule{w.Rules(model.Ingress), w.Rules(model.Egress)})
	s.cuts.build(w, s.docs, s.rules)
	if inv := s.namePorts(); inv != nil {
		s.rules = [2][]rule{}
		s.readRules(compile.Lower(s.docs, inv, w.Options().Now))
		s.cuts = portCuts{}
		s.cuts.build(w, s.docs, s.rules)
	}
	s.findKeys()
	for d := range s.rules {
		for i := range s.rules[d] {
			s.rules[d][i].ports = s.cuts.number(s.rules[d][i].Ports)
		}
	}
	for i := range s.docs.Segments {
		seg := &s.docs.Segments[i]
		s.segments = append(s.segments, s.number(&compile.Match{Terms: []compile.Term{{Selector: &seg.Selector}}}))
		s.onPorts = append(s.onPorts, s.cuts.number(portsOf(s.docs, seg.Services)))
	}
	s.findTwins()
	s.size()
	return s
}

// namePorts returns the inventory with workloads beside that give every port name a number in each piece of the ports, for
// a workload that could exist may give it any; nil if no rule names a port. A piece is told apart by no rule, so one number
// of it stands for all.
func (s *space) namePorts() *model.Inventory {
	named := map[model.NamedPort]bool{}
	for i := range s.docs.OneSided {
		for k := range s.docs.OneSided[i].Rules {
			for _, n := range s.docs.OneSided[i].Rules[k].Named {
				named[n] = true
			}
		}
	}
	if len(named) == 0 {
		return nil
	}
	inv := &model.Inventory{Instances: slices.Clone(s.world.Inventory().Instances)}
	for n := range named {
		number := func(port uint16) {
			inv.Instances = append(inv.Instances, model.Instance{Labels: model.Labels{n.PortLabel(): strconv.Itoa(int(port))}})
		}
		cut := false
		for _, p := range s.cuts.pieces {
			if p.Proto == n.Proto {
				cut = true
				number(p.Hi)
			}
		}
		if !cut {
			number(1)
		}
	}
	return inv
}

func (s *space) readRules(all [2][]compile.Rule) {
	for _, d := range model.Directions {
		compiled := all[d]
		for i := range compiled {
			if r := &compiled[i]; !r.Expired {
				s.rules[d] = append(s.rules[d], rule{Rule: r, subject: s.number(&r.Subject), peer: s.number(&r.Peer), twin: unset})
			}
		}
	}
}

// number interns a match.
func (s *space) number(m *compile.Match) int32 {
	var b strings.Builder
	if m.Any {
		b.WriteString("any")
	}
	for _, t := range m.Terms {
		b.WriteString(t.Key())
		b.WriteByte(0)
	}
	n, ok := s.matchIndex[b.String()]
	if !ok {
		n = int32(len(s.matches))
		s.matchIndex[b.String()] = n
		s.matches = append(s.matches, m)
	}
	return n
}

// findTwins pairs the rules that say the same at both ends. Of those, one that allows at one end allows at the other, and
// one that denies need be looked at once.
func (s *space) findTwins() {
	named := map[model.RuleID]int32{}
	for i := range s.rules[model.Ingress] {
		id := s.rules[model.Ingress][i].ID
		if _, twice := named[id]; twice {
			named[id] = unset
		} else {
			named[id] = int32(i)
		}
	}
	count := map[model.RuleID]int{}
	for i := range s.rules[model.Egress] {
		count[s.rules[model.Egress][i].ID]++
	}
	for i := range s.rules[model.Egress] {
		out := &s.rules[model.Egress][i]
		n, ok := named[out.ID]
		if !ok || n == unset || count[out.ID] > 1 {
			continue
		}
		in := &s.rules[model.Ingress][n]
		if out.Stage == in.Stage && out.Priority == in.Priority && out.Action == in.Action && out.ports == in.ports &&
			out.subject == in.peer && out.peer == in.subject && plain(out.Rule) && plain(in.Rule) {
			out.twin, in.twin = n, int32(i)
		}
	}
}

// plain reports whether a rule asks for nothing but labels, addresses and ports.
func plain(r *compile.Rule) bool { return r.SubjectProcess == nil }

// findDevices lists what the workloads are that nothing enforces on.
func (s *space) findDevices() {
	seen := map[string]bool{}
	inv := s.world.Inventory()
	for i := range inv.Instances {
		if inv.Instances[i].Managed {
			continue
		}
		wl := s.world.Workload(inv.Instances[i].Name)
		for k := range wl.Points {
			id := s.world.Identity(wl.Points[k].Identity)[0]
			f := familyOf(wl.Points[k])
			key := id.Key() + "\x00" + string(rune(f))
			if !seen[key] {
				seen[key] = true
				s.devices = append(s.devices, &id)
				s.family = append(s.family, f)
			}
		}
	}
}

func familyOf(p compile.Point) addressFamily {
	switch {
	case !p.Addr.IsValid():
		return anyFamily
	case p.Addr.Is4():
		return family4
	}
	return family6
}

// levels are the values that the system gives the label of quarantine.
var levels = []string{model.QuarantineIsolate.String(), model.QuarantineRestrict.String(), model.QuarantineWatch.String()}

// findKeys collects what is mentioned anywhere.
func (s *space) findKeys() {
	values := map[string]map[string]bool{model.QuarantineLabel: {}}
	selector := func(sel *model.Selector) {
		for i := range sel.Requirements {
			r := &sel.Requirements[i]
			if values[r.Key] == nil {
				values[r.Key] = map[string]bool{}
			}
			for _, v := range r.Values {
				values[r.Key][v] = true
			}
		}
	}
	for _, m := range s.matches {
		for _, t := range m.Terms {
			if t.Selector != nil {
				selector(t.Selector)
			}
		}
	}
	for i := range s.docs.Segments {
		selector(&s.docs.Segments[i].Selector)
	}
	var process [3]map[string]bool
	for i := range process {
		process[i] = map[string]bool{}
	}
	mention := func(p *model.Process) {
		for i, v := range fields(p) {
			if v != "" {
				process[i][v] = true
			}
		}
	}
	for i := range s.docs.Guardrails {
		for _, list := range [][]model.Peer{s.docs.Guardrails[i].From, s.docs.Guardrails[i].To} {
			for k := range list {
				selector(&list[k].Workloads)
				if list[k].Process != nil {
					mention(list[k].Process)
				}
			}
		}
	}
	for d := range s.rules {
		for i := range s.rules[d] {
			if p := s.rules[d][i].SubjectProcess; p != nil {
				mention(p)
			}
		}
	}
	for name, set := range values {
		k := keyDomain{name: name}
		for v := range set {
			k.values = append(k.values, v)
		}
		k.close(name)
		s.keys = append(s.keys, k)
	}
	slices.SortFunc(s.keys, func(a, b keyDomain) int { return strings.Compare(a.name, b.name) })
	s.labels = len(s.keys)
	for i, name := range [...]string{"unit", "path", "user"} {
		k := keyDomain{name: name}
		for v := range process[i] {
			k.values = append(k.values, v)
		}
		slices.Sort(k.values)
		k.other, k.absent, k.size = int32(len(k.values)), unset, int32(len(k.values))+1
		s.keys = append(s.keys, k)
	}
	for i := range s.keys[:s.labels] {
		s.keyIndex[s.keys[i].name] = int32(i)
	}
	s.level = s.keyIndex[model.QuarantineLabel]
}

// close numbers the values that are not mentioned. Labels that the system sets have the values it gives them.
func (k *keyDomain) close(name string) {
	k.other = unset
	switch name {
	case model.QuarantineLabel:
		k.values = slices.Clone(levels)
	case model.PodLabel:
		k.values = []string{model.HostPodValue, model.PodValue}
	default:
		k.other = int32(len(k.values))
	}
	slices.Sort(k.values)
	k.absent = int32(len(k.values))
	if k.other != unset {
		k.absent++
	}
	k.size = k.absent + 1
}

func fields(p *model.Process) [3]string { return [...]string{p.Unit, p.Path, p.User} }

// variable returns the number of a variable of an end: a key, or labels plus one of the fixed ones.
func (s *space) variable(end int, n int) int32 { return int32(end*(s.labels+fixedVariables) + n) }

func (s *space) place(end int) int32  { return s.variable(end, s.labels+placeVariable) }
func (s *space) device(end int) int32 { return s.variable(end, s.labels+deviceVariable) }

// process returns the variable of a field of the process at the end.
func (s *space) process(end, field int) int32 { return s.variable(end, s.labels+unitVariable+field) }

func (s *space) port() int32 { return s.variable(2, 0) }

// noAddress is the value of a place variable.
func (s *space) noAddress() int32 { return int32(len(s.cells)) }

func (s *space) size() {
	n := int(s.port()) + 1
	s.sizes, s.spare = make([]int32, n), make([][]int32, n)
	for end := range 2 {
		for i := range s.labels {
			k := &s.keys[i]
			v := s.variable(end, i)
			s.sizes[v] = k.size
			s.spare[v] = []int32{k.absent}
			if k.other != unset {
				s.spare[v] = append(s.spare[v], k.other)
			}
		}
		s.sizes[s.place(end)] = int32(len(s.cells)) + 1
		s.sizes[s.device(end)] = max(1, int32(len(s.devices)))
		for f := range 3 {
			k := &s.keys[s.labels+f]
			s.sizes[s.process(end, f)] = k.size
			s.spare[s.process(end, f)] = []int32{k.other}
		}
	}
	s.sizes[s.port()] = int32(len(s.cuts.pieces))
}

// of returns what a match means at an end where something of the kind stands: alternatives, none if it means nothing there.
func (s *space) of(end int, k kind, match int32) []conjunction {
	known := s.conjunctions[end][k]
	out, ok := known[match]
	if !ok {
		m := s.matches[match]
		if m.Any {
			out = []conjunction{nil}
		}
		for i := range m.Terms {
			out = append(out, s.term(end, k, &m.Terms[i])...)
		}
		known[match] = out
	}
	return out
}

func (s *space) term(end int, k kind, t *compile.Term) []conjunction {
	switch {
	case k == device:
		return []conjunction{{inBits(s.device(end), s.devicesOf(t))}}
	case t.Selector == nil:
		return []conjunction{{inBits(s.place(end), s.cellsOf(t.Network))}}
	case k == address:
		return nil
	}
	out := make(conjunction, 0, len(t.Selector.Requirements))
	for i := range t.Selector.Requirements {
		out = append(out, s.requirement(end, &t.Selector.Requirements[i]))
	}
	return []conjunction{out}
}

func (s *space) requirement(end int, r *model.Requirement) literal {
	n := s.keyIndex[r.Key]
	k := &s.keys[n]
	l := literal{variable: s.variable(end, int(n))}
	switch r.Op {
	case model.OpIn, model.OpNotIn:
		l.not = r.Op == model.OpNotIn
		for _, v := range r.Values {
			if i, ok := slices.BinarySearch(k.values, v); ok {
				l.values = append(l.values, int32(i))
			}
		}
	case model.OpExists, model.OpNotExists:
		l.not = r.Op == model.OpExists
		l.values = []int32{k.absent}
	}
	return l
}

func (s *space) cellsOf(network string) []uint64 {
	set, ok := s.networkBits[network]
	if !ok {
		set = make([]uint64, (len(s.cells)+64)/64)
		for i := range s.cells {
			if slices.Contains(s.cells[i].Networks, network) {
				set[i/64] |= 1 << (i % 64)
			}
		}
		s.networkBits[network] = set
	}
	return set
}

// devicesOf returns the devices that a term means.
func (s *space) devicesOf(t *compile.Term) []uint64 {
	if t.Selector == nil {
		return s.devicesWhere("n"+t.Network, func(id *model.Identity) bool { return slices.Contains(id.Networks, t.Network) })
	}
	set := slices.Clone(s.devicesWhere("", func(*model.Identity) bool { return true }))
	for i := range t.Selector.Requirements {
		r := &t.Selector.Requirements[i]
		for w, word := range s.devicesMeeting(r) {
			set[w] &= word
		}
	}
	return set
}

// devicesMeeting returns the devices whose labels meet the requirement.
func (s *space) devicesMeeting(r *model.Requirement) []uint64 {
	return s.devicesWhere("r"+r.String(), func(id *model.Identity) bool { return r.Matches(id.Labels) })
}

// devicesWhere returns the devices for which a condition holds, once for each key.
func (s *space) devicesWhere(key string, holds func(*model.Identity) bool) []uint64 {
	set, ok := s.deviceBits[key]
	if !ok {
		set = make([]uint64, (max(1, len(s.devices))+63)/64)
		for i, id := range s.devices {
			if holds(id) {
				set[i/64] |= 1 << (i % 64)
			}
		}
		s.deviceBits[key] = set
	}
	return set
}

// serving returns where, at an end, the networks of that purpose are; ok is false if they are nowhere.
func (s *space) serving(end int, k kind, purpose model.Purpose) (l literal, ok bool) {
	for i := range s.docs.Networks {
		n := &s.docs.Networks[i]
		if n.Purpose != purpose {
			continue
		}
		var next literal
		if k == device {
			next = inBits(s.device(end), s.devicesOf(&compile.Term{Network: n.Name}))
		} else {
			next = inBits(s.place(end), s.cellsOf(n.Name))
		}
		if ok {
			both := slices.Clone(l.bits)
			for w := range both {
				both[w] |= next.bits[w]
			}
			next = inBits(next.variable, both)
		}
		l, ok = next, true
	}
	return l, ok && l.count > 0
}

// portCuts cut the protocols and ports into pieces that no rule tells apart.
type portCuts struct {
	pieces []model.PortRange // sorted; the last one has ProtoAny: all protocols that the others do not name
	sets   [][]uint64
	index  map[string]int32
}

func (c *portCuts) build(w *compile.World, docs *model.Documents, rules [2][]rule) {
	starts := map[model.Proto]map[uint32]bool{}
	cut := func(list []model.PortRange) {
		for _, p := range list {
			if p.Proto == model.ProtoAny {
				continue
			}
			if starts[p.Proto] == nil {
				starts[p.Proto] = map[uint32]bool{0: true}
			}
			starts[p.Proto][uint32(p.Lo)] = true
			starts[p.Proto][uint32(p.Hi)+1] = true
		}
	}
	for d := range rules {
		for i := range rules[d] {
			cut(rules[d][i].Ports)
		}
	}
	for i := range docs.Services {
		cut(docs.Services[i].Ports)
	}
	refs := func(list []model.PortRef) {
		for _, r := range list {
			if r.Service == "" {
				cut([]model.PortRange{r.Range})
			}
		}
	}
	for i := range docs.Segments {
		refs(docs.Segments[i].Services)
	}
	for i := range docs.Guardrails {
		refs(docs.Guardrails[i].On)
	}
	for _, e := range essential.Fixed {
		cut([]model.PortRange{e.Ports})
	}
	cut(dnsPorts)
	cut(timePorts)
	for _, a := range w.Options().Controllers {
		cut([]model.PortRange{{Proto: model.ProtoTCP, Lo: a.Port(), Hi: a.Port()}})
	}
	for proto, set := range starts {
		var list []uint32
		for lo := range set {
			if lo <= 65535 {
				list = append(list, lo)
			}
		}
		slices.Sort(list)
		for i, lo := range list {
			hi := uint32(65535)
			if i+1 < len(list) {
				hi = list[i+1] - 1
			}
			c.pieces = append(c.pieces, model.PortRange{Proto: proto, Lo: uint16(lo), Hi: uint16(hi)})
		}
	}
	slices.SortFunc(c.pieces, func(a, b model.PortRange) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Lo, b.Lo))
	})
	c.pieces = append(c.pieces, model.AnyPort)
	c.index = map[string]int32{}
}

var (
	dnsPorts  = []model.PortRange{{Proto: model.ProtoTCP, Lo: 53, Hi: 53}, {Proto: model.ProtoUDP, Lo: 53, Hi: 53}}
	timePorts = []model.PortRange{{Proto: model.ProtoUDP, Lo: 123, Hi: 123}}
)

// number interns a set of ports.
func (c *portCuts) number(ports []model.PortRange) int32 {
	set := c.set(ports)
	key := make([]byte, 0, 8*len(set))
	for _, w := range set {
		key = binary.LittleEndian.AppendUint64(key, w)
	}
	n, ok := c.index[string(key)]
	if !ok {
		n = int32(len(c.sets))
		c.index[string(key)] = n
		c.sets = append(c.sets, set)
	}
	return n
}

func (c *portCuts) set(ports []model.PortRange) []uint64 {
	set := make([]uint64, (len(c.pieces)+63)/64)
	for _, p := range ports {
		from, to := 0, len(c.pieces)
		if p.Proto != model.ProtoAny {
			from, _ = slices.BinarySearchFunc(c.pieces[:len(c.pieces)-1], p, func(x, p model.PortRange) int {
				return cmp.Or(cmp.Compare(x.Proto, p.Proto), cmp.Compare(x.Lo, p.Lo))
			})
			to = from
			for to < len(c.pieces)-1 && c.pieces[to].Proto == p.Proto && c.pieces[to].Lo <= p.Hi {
				to++
			}
		}
		for i := from; i < to; i++ {
			set[i/64] |= 1 << (i % 64)
		}
	}
	return set
}

// portsOf returns what references to ports mean.
func portsOf(docs *model.Documents, refs []model.PortRef) []model.PortRange {
	var out []model.PortRange
	for _, r := range refs {
		if r.Service == "" {
			out = append(out, r.Range)
			continue
		}
		for i := range docs.Services {
			if docs.Services[i].Name == r.Service {
				out = append(out, docs.Services[i].Ports...)
			}
		}
	}
	return out
}
