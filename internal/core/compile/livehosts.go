package compile

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// judge is what judges workloads that nothing tells apart: by identity, or a hold that a quarantine has on them.
type judge struct {
	key      string
	number   uint32 // never used again
	identity int32  // None if it does not depend on one
	level    model.QuarantineLevel
	own      purposes
	inUse    [2][]restriction
	tables   [2]*liveTable
	state    *judgeState
	groups   []*group

	// Of the batch at work.
	stale bool // its tables may not be those that it should have
}

// judgeState is a policy set. It does not change.
type judgeState struct {
	id       hostpolicy.PolicySetID
	contents [2]*content
}

// group is all hosts whose subjects are judged by the same judges, one by one: they are told the same of everything but
// their own names.
type group struct {
	key      string
	subjects []groupSubject
	judges   []*judge // distinct
	hosts    []*liveHost
	state    *groupState
	roster   []member // of hosts, as long as they stay what they are; nil if it is to be made
	met      uint32   // mark of the last walk that met it

	// Of the batch at work.
	before  *groupState
	moot    []*liveAddr // addresses that changed and that it may be told of
	altered bool        // more may differ than addresses
}

type groupSubject struct {
	labels         int32
	set, isolation *judge
	locals         []*judge
}

// groupState is what the hosts of a group are told. It does not change.
type groupState struct {
	subjects  []subjectState
	judges    []*judgeState
	contents  []*content // distinct
	prefixes  []hostpolicy.Address
	domains   []hostpolicy.Domain
	covered   map[netip.Prefix]bool // cells in which an owned address must be listed, lest it be taken for another
	addresses hostpolicy.Bag
	ports     hostpolicy.Bag
}

type subjectState struct {
	set, isolation *judgeState
	locals         []*judgeState
	loss           model.OnAgentLoss
}

// member is a host of a group at one moment.
type member struct {
	host  string
	shape []hostSubject
}

// members returns the hosts of the group but those that moved.
func (g *group) members(moved map[*liveHost]bool) []member {
	if g.roster == nil {
		g.roster = make([]member, len(g.hosts))
		for i, h := range g.hosts {
			g.roster[i] = member{h.name, h.shape}
		}
	}
	if !slices.ContainsFunc(g.hosts, func(h *liveHost) bool { return moved[h] }) {
		return g.roster
	}
	var out []member
	for _, h := range g.hosts {
		if !moved[h] {
			out = append(out, member{h.name, h.shape})
		}
	}
	return out
}

// liveHost is a host with an agent.
type liveHost struct {
	name  string
	shape []hostSubject
	group *group
	at    int // index in group.hosts
}

// hostSubject is the part of a hostpolicy.Subject that is the host's own. It does not change.
type hostSubject struct {
	workload, unit string
	identity       model.IdentityID
	quarantine     model.QuarantineLevel
	locals         []hostLocal
}

type hostLocal struct {
	addr     netip.Addr
	identity model.IdentityID
}

func (s *groupState) tells(peer int32) bool {
	for _, c := range s.contents {
		if _, ok := c.find(peer); ok {
			return true
		}
	}
	return false
}

// lists reports whether the hosts are told of an address.
func (s *groupState) lists(r *addrRecord) bool {
	if r == nil {
		return false
	}
	if s.covered[r.cell] || s.tells(r.seen) {
		return true
	}
	for _, m := range r.members {
		if s.tells(m) {
			return true
		}
	}
	return false
}

// judgeOfPoint returns what judges a workload at one of its points.
func (b *batch) judgeOfPoint(w *liveWorkload, p *livePoint) *judge {
	j := judge{identity: None}
	switch level := w.Quarantine.Level; {
	case !w.Managed:
		j.key = "unmanaged"
	case level == model.QuarantineIsolate:
		return b.isolation(b.netsets[p.netset].purposes)
	default:
		j.identity, j.own = p.exact, b.netsets[p.netset].purposes
		key := binary.LittleEndian.AppendUint32([]byte{'i'}, uint32(p.exact))
		if level == model.QuarantineRestrict {
			j.level, j.inUse = level, b.inUse(w)
			key[0] = 'r'
			key = appendInUse(key, &j.inUse)
		}
		j.key = string(key)
	}
	return b.judge(&j)
}

func (b *batch) isolation(own purposes) *judge {
	return b.judge(&judge{key: string([]byte{'q', byte(own)}), identity: None, level: model.QuarantineIsolate, own: own})
}

func (b *batch) judge(want *judge) *judge {
	l := b.Live
	if j, ok := l.judges[want.key]; ok {
		return j
	}
	j := *want
	l.judgeNumber++
	j.number = l.judgeNumber
	l.judges[j.key] = &j
	if j.identity >= 0 {
		l.judgeOf[j.identity] = append(l.judgeOf[j.identity], &j)
	}
	b.doubtJudge(&j)
	return &j
}

func (b *batch) doubtJudge(j *judge) {
	if !j.stale {
		j.stale = true
		b.stale = append(b.stale, j)
	}
}

func appendInUse(key []byte, inUse *[2][]restriction) []byte {
	for d := range inUse {
		key = append(key, 0xff, byte(d))
		for _, r := range inUse[d] {
			key = binary.LittleEndian.AppendUint32(key, uint32(r.peer))
			key = binary.LittleEndian.AppendUint32(key, uint32(len(r.ports)))
			for _, p := range r.ports {
				key = append(key, byte(p.Proto), byte(p.Lo), byte(p.Lo>>8), byte(p.Hi), byte(p.Hi>>8))
			}
		}
	}
	return key
}

// inUse finds the peers that a restricted workload may still talk to, and notes that they concern it.
func (b *batch) inUse(w *liveWorkload) [2][]restriction {
	for _, edge := range w.Quarantine.InUse {
		if b.namedBy[edge.Peer] == nil {
			b.namedBy[edge.Peer] = map[string]bool{}
		}
		b.namedBy[edge.Peer][w.Name] = true
	}
	return restrictions(&w.Quarantine, func(name string, each func(identity int32)) {
		if peer := b.workloads[name]; peer != nil {
			for i := range peer.points {
				each(peer.points[i].exact)
			}
		}
	})
}

// assign gives a judge the tables that it should have.
func (b *batch) assign(j *judge) {
	l := b.Live
	s := subject{own: j.own, level: j.level, inUse: j.inUse}
	if j.identity >= 0 {
		s.profile = l.labelSets[l.ids.all[j.identity].labels].profile
		for d := range s.matched {
			s.matched[d] = l.matched(j.identity, d)
		}
	}
	for _, d := range model.Directions {
		old, now := j.tables[d], l.unmanaged
		if j.identity >= 0 || j.level == model.QuarantineIsolate {
			now = b.table(&s, d, old)
		}
		if old == now {
			continue
		}
		b.detach(j, d)
		j.tables[d] = now
		now.judges = append(now.judges, j)
	}
	b.assigned = append(b.assigned, j)
}

func (b *batch) detach(j *judge, d model.Direction) {
	if t := j.tables[d]; t != nil {
		t.judges = slices.DeleteFunc(t.judges, func(x *judge) bool { return x == j })
		if len(t.judges) == 0 && !t.fixed {
			b.orphans = append(b.orphans, t)
		}
	}
}

// matched returns the subjects of rules that mean the identity.
func (l *Live) matched(identity int32, d int) []int32 {
	var out []int32
	for _, m := range l.meant[identity] {
		if l.matchInfo[m].subject[d] {
			out = append(out, m)
		}
	}
	if at, ok := l.matches.byKey["any"]; ok && l.matchInfo[at].subject[d] {
		out = insert(out, at)
	}
	return out
}

// host looks at a host again.
func (b *batch) host(name string) {
	l := b.Live
	h, w := l.hosts[name], l.workloads[name]
	if w == nil || w.IsUnit() || w.Host != name {
		if h != nil {
			b.moves = append(b.moves, move{host: h, from: h.group, shape: h.shape})
			delete(l.hosts, name)
			b.quit(h)
		}
		return
	}
	shape := make([]hostSubject, 0, 1+len(l.units[name]))
	subjects := make([]groupSubject, 0, cap(shape))
	var key []byte
	for k := -1; k < len(l.units[name]); k++ {
		of := w
		if k >= 0 {
			of = l.units[name][k]
		}
		s, g := b.shape(of)
		shape, subjects = append(shape, s), append(subjects, g)
		key = binary.LittleEndian.AppendUint32(key, uint32(g.labels))
		key = binary.LittleEndian.AppendUint32(key, g.set.number)
		key = binary.LittleEndian.AppendUint32(key, g.isolation.number)
		key = append(key, byte(len(g.locals)))
		for _, j := range g.locals {
			key = binary.LittleEndian.AppendUint32(key, j.number)
		}
	}
	m := move{host: h}
	if h == nil {
		h = &liveHost{name: name}
		m.host = h
		l.hosts[name] = h
	} else {
		m.from, m.shape = h.group, h.shape
	}
	h.shape = shape
	if g := h.group; g == nil || g.key != string(key) {
		if g != nil {
			b.quit(h)
		}
		h.group = b.group(string(key), subjects)
		h.at = len(h.group.hosts)
		h.group.hosts = append(h.group.hosts, h)
	}
	h.group.roster = nil
	m.to = h.group
	b.moves = append(b.moves, m)
}

// move is a host that was looked at again. It is new without from and gone without to.
type move struct {
	host     *liveHost
	from, to *group
	shape    []hostSubject // before
}

// shape returns what a subject of a host is, and what judges it.
func (b *batch) shape(w *liveWorkload) (hostSubject, groupSubject) {
	l := b.Live
	first := &w.points[0]
	s := hostSubject{workload: w.Name, unit: w.Unit, identity: l.ids.ids[first.exact], quarantine: w.Quarantine.Level}
	var own purposes
	for i := range w.points {
		own |= l.netsets[w.points[i].netset].purposes
	}
	g := groupSubject{labels: w.labels, set: b.judgeOfPoint(w, first), isolation: b.isolation(own)}
	var others []*livePoint
	for i := range w.points[1:] {
		if p := &w.points[1+i]; p.exact != first.exact {
			others = append(others, p)
		}
	}
	slices.SortFunc(others, func(x, y *livePoint) int { return x.addr.Compare(y.addr) })
	for _, p := range others {
		s.locals = append(s.locals, hostLocal{p.addr, l.ids.ids[p.exact]})
		g.locals = append(g.locals, b.judgeOfPoint(w, p))
	}
	return s, g
}

// quit takes a host out of its group.
func (b *batch) quit(h *liveHost) {
	g := h.group
	last := g.hosts[len(g.hosts)-1]
	g.hosts[h.at], last.at = last, h.at
	g.hosts, g.roster = g.hosts[:len(g.hosts)-1], nil
	if len(g.hosts) == 0 {
		b.empty = append(b.empty, g)
	}
	h.group = nil
}

func (b *batch) group(key string, subjects []groupSubject) *group {
	if g, ok := b.groups[key]; ok {
		return g
	}
	g := &group{key: key, subjects: subjects}
	add := func(j *judge) {
		if !slices.Contains(g.judges, j) {
			g.judges = append(g.judges, j)
			j.groups = append(j.groups, g)
		}
	}
	for i := range subjects {
		add(subjects[i].set)
		add(subjects[i].isolation)
		for _, j := range subjects[i].locals {
			add(j)
		}
	}
	b.groups[key] = g
	b.concernGroup(g)
	return g
}

func (b *batch) concernGroup(g *group) {
	if !b.concerned[g] {
		b.concerned[g] = true
		b.groupQueue = append(b.groupQueue, g)
	}
}

// sweep frees what the batch left without use.
func (b *batch) sweep() {
	l := b.Live
	for _, g := range b.empty {
		if len(g.hosts) > 0 || l.groups[g.key] != g {
			continue
		}
		delete(l.groups, g.key)
		for _, j := range g.judges {
			j.groups = slices.DeleteFunc(j.groups, func(x *group) bool { return x == g })
			if len(j.groups) == 0 {
				b.idle = append(b.idle, j)
			}
		}
	}
	for _, j := range b.idle {
		if len(j.groups) > 0 || l.judges[j.key] != j {
			continue
		}
		delete(l.judges, j.key)
		if j.identity >= 0 {
			l.judgeOf[j.identity] = slices.DeleteFunc(l.judgeOf[j.identity], func(x *judge) bool { return x == j })
		}
		for _, d := range model.Directions {
			b.detach(j, d)
			j.tables[d] = nil
		}
	}
	for _, t := range b.orphans {
		if len(t.judges) == 0 && l.tableByKey[t.key] == t {
			l.forgetTable(t)
		}
	}
}

// describe makes the state of a group but for its addresses.
func (l *Live) describe(g *group) *groupState {
	s := &groupState{judges: make([]*judgeState, len(g.judges)), subjects: make([]subjectState, len(g.subjects))}
	for k, j := range g.judges {
		s.judges[k] = j.state
		for _, c := range j.state.contents {
			if !slices.Contains(s.contents, c) {
				s.contents = append(s.contents, c)
			}
		}
	}
	for k := range g.subjects {
		of := &g.subjects[k]
		st := &s.subjects[k]
		st.set, st.isolation, st.loss = of.set.state, of.isolation.state, l.labelSets[of.labels].profile.onLoss
		for _, j := range of.locals {
			st.locals = append(st.locals, j.state)
		}
	}
	return s
}

// cover finds the prefixes of unowned addresses that the hosts are told of, and the cells in which an address that is
// not listed itself would be taken for an identity that some table tells apart. See World.prefixes.
func (l *Live) cover(s *groupState) {
	var told []int32
	for _, c := range s.contents {
		for _, n := range c.unowned {
			told = insert(told, n)
		}
	}
	s.prefixes, s.covered, s.domains = nil, nil, nil
	if len(told) == 0 {
		return
	}
	if len(l.nets.classes) > 0 {
		var bases []int32
		s.domains, bases = l.nets.domainsOf(func(netset int32) bool { return has(told, l.slotOf[netset]) }, func(netset int32) model.IdentityID {
			if u := l.netsets[l.slotOf[netset]].unowned; u >= 0 {
				return l.ids.ids[u]
			}
			return 0
		})
		for _, base := range bases {
			if at := l.slotOf[base]; at > 0 {
				told = insert(told, at)
			}
		}
	}
	for len(l.cellAs) < len(l.nets.cells) {
		l.cellAs = append(l.cellAs, None)
	}
	s.covered = map[netip.Prefix]bool{}
	for i := range l.nets.cells {
		c := &l.nets.cells[i]
		inherited := None
		if c.parent >= 0 {
			inherited = l.cellAs[c.parent]
		}
		at := l.slotOf[c.netset]
		if c.prefix.IsSingleIP() {
			if _, owned := l.owned.Get(c.prefix); owned {
				l.cellAs[i] = inherited
				if inherited >= 0 {
					s.covered[c.prefix] = true
				}
				continue
			}
		}
		l.cellAs[i] = None
		if at > 0 && has(told, at) {
			l.cellAs[i] = at
		}
		if l.cellAs[i] >= 0 {
			s.covered[c.prefix] = true
		}
		if l.cellAs[i] != inherited {
			a := hostpolicy.Address{Prefix: c.prefix}
			if u := l.netsets[at].unowned; u >= 0 {
				a.Identity = l.ids.ids[u]
			}
			s.prefixes = append(s.prefixes, a)
		}
	}
}

// listed calls visit for every owned address that the hosts are told of.
func (l *Live) listed(s *groupState, visit func(*addrRecord)) {
	l.mark++
	list := func(e *liveAddr) {
		if e.seen != l.mark {
			e.seen = l.mark
			visit(e.rec)
		}
	}
	for _, c := range s.contents {
		c.each(func(peer, _ int32) {
			if l.identityMark[peer] != l.mark {
				l.identityMark[peer] = l.mark
				for _, e := range l.addrs[peer] {
					list(e)
				}
			}
		})
	}
	for cell := range s.covered {
		for _, e := range l.owned.Subnets(cell) {
			if e.rec.cell == cell {
				list(e)
			}
		}
	}
}

// HostPolicy returns what the agent of the host is given; false if there is no such host. It is what a World of the
// same documents and workloads gives.
func (l *Live) HostPolicy(host string) (*hostpolicy.Policy, bool) {
	h := l.hosts[host]
	if h == nil {
		return nil, false
	}
	s := h.group.state
	p := &hostpolicy.Policy{Host: host, Controllers: l.opts.Controllers, Subjects: subjectsOf(h.shape, s)}
	for _, j := range distinctSets(s) {
		p.Sets = append(p.Sets, l.policySet(j))
	}
	p.Addresses, p.Domains = slices.Clone(s.prefixes), s.domains
	l.listed(s, func(r *addrRecord) {
		p.Addresses = append(p.Addresses, r.address)
		p.Ports = append(p.Ports, r.ports...)
	})
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	slices.SortFunc(p.Ports, func(a, b hostpolicy.PortOwner) int { return hostpolicy.ComparePorts(&a, &b) })
	return p, true
}

// HostHash returns the hash of HostPolicy without making it; false if there is no such host.
func (l *Live) HostHash(host string) (hostpolicy.Hash, bool) {
	h := l.hosts[host]
	if h == nil {
		return hostpolicy.Hash{}, false
	}
	return l.hashOf(h.name, subjectsOf(h.shape, h.group.state), h.group.state), true
}

func (l *Live) hashOf(host string, subjects []hostpolicy.Subject, s *groupState) hostpolicy.Hash {
	p := &hostpolicy.Policy{Host: host, Controllers: l.opts.Controllers, Subjects: subjects, Domains: s.domains}
	for _, j := range distinctSets(s) {
		p.Sets = append(p.Sets, hostpolicy.PolicySet{ID: j.id})
	}
	return p.HashOf(&s.addresses, &s.ports)
}

// Hosts returns the names of every host with an agent, sorted.
func (l *Live) Hosts() []string {
	out := make([]string, 0, len(l.hosts))
	for name := range l.hosts {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// distinctSets returns the policy sets that the subjects name, sorted by ID.
func distinctSets(s *groupState) []*judgeState {
	out := slices.Clone(s.judges)
	slices.SortFunc(out, func(a, b *judgeState) int { return cmp.Compare(a.id, b.id) })
	return slices.CompactFunc(out, func(a, b *judgeState) bool { return a.id == b.id })
}

func subjectsOf(shape []hostSubject, s *groupState) []hostpolicy.Subject {
	out := make([]hostpolicy.Subject, len(shape))
	for k := range shape {
		out[k] = subjectOf(&shape[k], &s.subjects[k])
	}
	return out
}

func subjectOf(h *hostSubject, s *subjectState) hostpolicy.Subject {
	out := hostpolicy.Subject{
		Workload: h.workload, Unit: h.unit, Identity: h.identity, Set: s.set.id, Isolation: s.isolation.id,
		Quarantine: h.quarantine, OnAgentLoss: s.loss,
	}
	for i, at := range h.locals {
		out.Local = append(out.Local, hostpolicy.LocalSet{Addr: at.addr, Identity: at.identity, Set: s.locals[i].id})
	}
	return out
}

func (l *Live) policySet(j *judgeState) hostpolicy.PolicySet {
	return hostpolicy.PolicySet{
		ID: j.id, Ingress: l.hostTable(j.contents[model.Ingress]), Egress: l.hostTable(j.contents[model.Egress]),
	}
}

func (l *Live) hostTable(c *content) hostpolicy.Table {
	type numbered struct {
		peer model.IdentityID
		fn   int32
	}
	var rows []numbered
	c.each(func(peer, fn int32) { rows = append(rows, numbered{l.ids.ids[peer], fn}) })
	slices.SortFunc(rows, func(a, b numbered) int { return cmp.Compare(a.peer, b.peer) })
	var n numbering
	n.reset(len(l.functions.funcs))
	n.add(c.def)
	for _, r := range rows {
		n.add(r.fn)
	}
	out := hostpolicy.Table{Funcs: n.funcs(l.functions.functions)}
	for _, r := range rows {
		out.Peers = append(out.Peers, hostpolicy.PeerFunc{Peer: r.peer, Func: uint32(n.index[r.fn])})
	}
	return out
}
