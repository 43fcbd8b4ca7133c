package compile

import (
	"cmp"
	"fmt"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// step is one thing that may decide: an essential, a quarantine, a rule or the default. The steps of a table are in
// the order in which they are asked.
type step struct {
	ports     []model.PortRange
	verdict   model.Verdict
	rule      uint32
	essential bool
	pass      bool  // leave the rest of the stage out
	process   int32 // the constraint on the process at the subject; everyProcess
	source    *Rule // nil if no document's rule
}

// everyProcess is no constraint.
const everyProcess = int32(-1)

var anyPorts = []model.PortRange{model.AnyPort}

func everyPort(v model.Verdict, rule uint32) step {
	return step{ports: anyPorts, verdict: v, rule: rule, process: everyProcess}
}

// tier returns the stage of the step if it is one in which rules pass, else StageAllow.
func (s *step) tier() Stage {
	if s.source != nil && (s.source.Stage == StageAdmin || s.source.Stage == StageBaseline) {
		return s.source.Stage
	}
	return StageAllow
}

// final reports whether nothing is left to decide after the step; passed says that a step before it passed something.
func (s *step) final(passed bool) bool {
	return s.process == everyProcess && !s.pass && !(passed && s.tier() != StageAllow) && slices.ContainsFunc(s.ports, func(r model.PortRange) bool { return r.Proto == model.ProtoAny })
}

// subject is everything about a workload that its policy set depends on. Equal subjects share a policy set.
type subject struct {
	profile *profile
	own     purposes   // what the networks of its own address are for
	matched [2][]int32 // by direction: the matches that are subjects of rules and mean it
	level   model.QuarantineLevel
	inUse   [2][]restriction // by direction; of level restrict only
}

// restriction is a peer that a restricted workload may still talk to, and on which ports. Sorted by peer.
type restriction struct {
	peer  int32
	ports []model.PortRange
}

// tableBuilder makes the table of one direction of a subject. Its scratch space is reused from table to table.
//
// It refines a partition of the peers: all begin as one class, and each step splits from every class the peers that
// it speaks about. Peers that end in one class were met by the same steps, so they share a function.
type tableBuilder struct {
	ids       *identities
	functions *functionBuilder
	rules     [2][]*Rule
	byPurpose map[purposes][]int32 // identities at addresses that serve a purpose
	groups    [2][][]int32         // by direction and match: the rules that it is the subject of
	matches   *matches
	maxCells  int

	paint     painter
	steps     []step
	universal []int32 // steps that speak about every peer
	sealed    bool    // one of them speaks about every port too: nothing after it counts
	passed    bool    // some step passes
	nodes     []node  // classes; nodes[0] is that of a peer which no step speaks about
	child     []childOf
	class     []int32 // peer to node
	touched   []int32 // peers with a class other than 0
	fn        []int32 // peer to function; of touched peers and of those in rows
	inUse     [][]model.PortRange
	order     []int32
	own       []int32
	maxOf     map[[2]int32]int32
	recent    [1 << 12]maxEntry // in front of maxOf; two zeros are no key, as x differs from y

	only  []int32 // if not nil: the peers that the build is about, sorted
	some  []int32
	there func(peer int32) bool // if not nil: of which peers there is anybody

	rows       bitset // peers that have a row
	candidates bitset // shared identities that may have one
	digests    digester
}

// node is a class of peers: those that step singled out of the class parent.
type node struct {
	parent, step int32
	restricted   int32 // index into inUse; notRestricted
	fn           int32 // index of the function, once it is known
	sealed       bool  // step, or one before it, speaks about every port: no later step counts
}

const (
	unknown       = -1
	notRestricted = -1
	nothingInUse  = 0
)

type childOf struct{ step, node int32 }

func newTableBuilder(w *World, rules [2][]*Rule, m *matches, groups [2][][]int32, f *functionBuilder) *tableBuilder {
	b := &tableBuilder{
		ids:       w.ids,
		functions: f,
		rules:     rules,
		byPurpose: map[purposes][]int32{},
		groups:    groups,
		matches:   m,
		maxCells:  w.opts.maxCells(),
		paint:     painter{functions: f},
		class:     make([]int32, len(w.ids.ids)),
		fn:        make([]int32, len(w.ids.ids)),
		maxOf:     map[[2]int32]int32{},

		rows:       newBitset(len(w.ids.ids)),
		candidates: newBitset(len(w.ids.ids)),
	}
	b.digests.peers = make([]hostpolicy.Sum, len(w.ids.ids))
	for i, id := range w.ids.ids {
		b.digests.peers[i] = hostpolicy.PeerDigest(id)
	}
	for i, s := range w.nets.netsets {
		for _, bit := range []purposes{resolver, timeServer, forensic} {
			if s.purposes&bit != 0 {
				b.byPurpose[bit] = append(b.byPurpose[bit], w.ids.byNetset[i]...)
			}
		}
	}
	for _, list := range b.byPurpose {
		slices.Sort(list)
	}
	return b
}

func rulePointers(rules *[2][]Rule) [2][]*Rule {
	var out [2][]*Rule
	for d := range rules {
		out[d] = make([]*Rule, len(rules[d]))
		for i := range rules[d] {
			out[d][i] = &rules[d][i]
		}
	}
	return out
}

// build makes the table of one direction.
func (b *tableBuilder) build(s *subject, d model.Direction) (table, hostpolicy.Hash, error) {
	t, err := b.rowsOf(s, d, nil)
	if err != nil {
		return table{}, hostpolicy.Hash{}, err
	}
	return t, b.digests.hash(&t, b.functions.functions), nil
}

// rowsOf is build without the hash, for the peers that are there; nil: for all. Of others it has no rows, and what their rules
// would come to is no error.
func (b *tableBuilder) rowsOf(s *subject, d model.Direction, there func(peer int32) bool) (table, error) {
	b.there = there
	defer func() { b.there = nil }()
	b.lay(s, d)
	return b.finish()
}

// lay puts the steps of a subject into order.
func (b *tableBuilder) lay(s *subject, d model.Direction) {
	b.begin()
	b.essentials(s, d)
	switch s.level {
	case model.QuarantineIsolate:
		b.add(everyPort(model.Allow, b.functions.name(model.RuleForensic)), b.byPurpose[forensic])
		b.addUniversal(everyPort(model.Deny, b.functions.name(model.RuleIsolate)))
	case model.QuarantineRestrict:
		b.restrict(s.inUse[d])
		fallthrough
	default:
		b.applyRules(s, d)
		for _, st := range s.profile.defaults[d].steps(b.functions) {
			b.addUniversal(st)
		}
	}
}

// patch makes some rows of the table of one direction: those of the peers, which are sorted and hold with a shared
// identity all of its members. A peer that the default function judges has a row without function here.
func (b *tableBuilder) patch(s *subject, d model.Direction, peers []int32) (def int32, rows []row, err error) {
	b.only = peers
	defer func() { b.only = nil }()
	b.lay(s, d)
	if def, err = b.function(0); err != nil {
		return 0, nil, err
	}
	b.rows.clear()
	for _, p := range peers {
		if b.ids.all[p].members != nil {
			continue
		}
		fn, err := b.function(b.class[p])
		if err != nil {
			return 0, nil, err
		}
		if b.fn[p] = fn; fn != def {
			b.rows.add(p)
		}
	}
	b.share(def)
	for _, p := range peers {
		if !b.rows.has(p) {
			b.fn[p] = none
		}
		rows = append(rows, row{uint32(p), b.fn[p]})
	}
	return def, rows, nil
}

// grow makes room for more identities.
func (b *tableBuilder) grow(identities int) {
	for len(b.class) < identities {
		b.class, b.fn = append(b.class, 0), append(b.fn, 0)
		b.digests.peers = append(b.digests.peers, hostpolicy.Sum{})
	}
	for len(b.rows)*64 < identities {
		b.rows, b.candidates = append(b.rows, 0), append(b.candidates, 0)
	}
}

// among returns which of the peers the build is about.
func (b *tableBuilder) among(peers []int32) []int32 {
	b.some = b.some[:0]
	if len(b.only)*8 < len(peers) {
		for _, p := range b.only {
			if _, ok := slices.BinarySearch(peers, p); ok {
				b.some = append(b.some, p)
			}
		}
		return b.some
	}
	for i, j := 0, 0; i < len(b.only) && j < len(peers); {
		switch {
		case b.only[i] < peers[j]:
			i++
		case b.only[i] > peers[j]:
			j++
		default:
			b.some = append(b.some, peers[j])
			i, j = i+1, j+1
		}
	}
	return b.some
}

// constant makes the table that gives one verdict to everything.
func (b *tableBuilder) constant(v model.EndVerdict) (table, hostpolicy.Hash) {
	b.begin()
	b.rows.clear()
	b.paint.start()
	b.paint.paint(stroke{model.AnyPort, v.Verdict, b.functions.name(v.Rule), noAlternative})
	t := b.table(b.functions.intern(b.paint.finish()))
	return t, b.digests.hash(&t, b.functions.functions)
}

func (b *tableBuilder) begin() {
	for _, p := range b.touched {
		b.class[p] = 0
	}
	b.touched = b.touched[:0]
	b.steps, b.universal, b.sealed, b.passed = b.steps[:0], b.universal[:0], false, false
	b.nodes = append(b.nodes[:0], node{parent: -1, step: -1, restricted: notRestricted, fn: unknown})
	b.child = append(b.child[:0], childOf{-1, 0})
	b.inUse = append(b.inUse[:0], nil)
}

var (
	dnsPorts  = []model.PortRange{{Proto: model.ProtoTCP, Lo: 53, Hi: 53}, {Proto: model.ProtoUDP, Lo: 53, Hi: 53}}
	timePorts = []model.PortRange{{Proto: model.ProtoUDP, Lo: 123, Hi: 123}}
)

// essentials opens the way to resolvers and time servers, and at those the way in.
func (b *tableBuilder) essentials(s *subject, d model.Direction) {
	for _, e := range []struct {
		bit   purposes
		ports []model.PortRange
		rule  model.RuleID
	}{{resolver, dnsPorts, model.RuleDNS}, {timeServer, timePorts, model.RuleTime}} {
		st := step{ports: e.ports, verdict: model.Allow, rule: b.functions.name(e.rule), essential: true, process: everyProcess}
		if d == model.Egress {
			b.add(st, b.byPurpose[e.bit])
		} else if s.own&e.bit != 0 {
			b.addUniversal(st)
		}
	}
}

// restrict closes the way to and from every workload but those in use.
func (b *tableBuilder) restrict(inUse []restriction) {
	closed := b.newNode(node{parent: 0, step: -1, restricted: nothingInUse})
	one := func(i int32) {
		id := &b.ids.all[i]
		if !id.Owned || id.members != nil {
			return
		}
		at := closed
		if edge, ok := slices.BinarySearchFunc(inUse, i, func(r restriction, i int32) int { return cmp.Compare(r.peer, i) }); ok {
			b.inUse = append(b.inUse, inUse[edge].ports)
			at = b.newNode(node{parent: b.class[i], step: -1, restricted: int32(len(b.inUse) - 1)})
		} else if b.class[i] != 0 {
			// An essential speaks about the peer; it stays above the restriction.
			at = b.newNode(node{parent: b.class[i], step: -1, restricted: nothingInUse})
		}
		b.move(i, at)
	}
	if b.only != nil {
		for _, i := range b.only {
			one(i)
		}
		return
	}
	for i := range b.ids.all {
		one(int32(i))
	}
}

func (b *tableBuilder) applyRules(s *subject, d model.Direction) {
	b.order = b.order[:0]
	for _, m := range s.matched[d] {
		b.order = append(b.order, b.groups[d][m]...)
	}
	slices.Sort(b.order)
	denial := model.WouldDeny
	if s.profile.denyDrops {
		denial = model.Deny
	}
	for _, at := range b.order {
		r := b.rules[d][at]
		st := step{ports: r.Ports, verdict: denial, rule: r.name, source: r, pass: r.Action == Pass, process: everyProcess}
		switch {
		case r.Action == Allow:
			st.verdict = model.Allow
		case r.Drops:
			st.verdict = model.Deny
		}
		if r.SubjectProcess != nil {
			st.process = b.functions.process(*r.SubjectProcess)
		}
		if b.matches.any[r.peer] {
			b.addUniversal(st)
		} else {
			b.add(st, b.matches.members[r.peer])
		}
	}
}

func (b *tableBuilder) addUniversal(s step) {
	if b.sealed {
		return
	}
	b.universal = append(b.universal, int32(len(b.steps)))
	b.steps = append(b.steps, s)
	b.passed = b.passed || s.pass
	b.sealed = s.final(b.passed)
}

// add appends a step that speaks about the peers.
func (b *tableBuilder) add(s step, peers []int32) {
	if b.only != nil {
		peers = b.among(peers)
	}
	if len(peers) == 0 || b.sealed {
		return
	}
	at := int32(len(b.steps))
	b.steps = append(b.steps, s)
	b.passed = b.passed || s.pass
	final := s.final(b.passed)
	for _, p := range peers {
		from := b.class[p]
		if n := &b.nodes[from]; n.sealed || n.restricted == nothingInUse {
			continue
		}
		if b.child[from].step != at {
			b.child[from] = childOf{at, b.newNode(node{parent: from, step: at, restricted: b.nodes[from].restricted, sealed: final})}
		}
		b.move(p, b.child[from].node)
	}
}

func (b *tableBuilder) newNode(n node) int32 {
	n.fn = unknown
	b.nodes = append(b.nodes, n)
	b.child = append(b.child, childOf{-1, 0})
	return int32(len(b.nodes) - 1)
}

func (b *tableBuilder) move(peer, to int32) {
	if b.class[peer] == 0 {
		b.touched = append(b.touched, peer)
	}
	b.class[peer] = to
}

// function returns the function of a class.
func (b *tableBuilder) function(n int32) (int32, error) {
	if b.nodes[n].fn != unknown {
		return b.nodes[n].fn, nil
	}
	b.collect(n)
	fn, err := b.resolve(b.order, nil, false)
	if err == nil && b.nodes[n].restricted != notRestricted {
		fn, err = b.resolve(b.order, b.within(fn, b.inUse[b.nodes[n].restricted]), true)
	}
	b.nodes[n].fn = fn
	return fn, err
}

// collect puts the steps that speak about a class into order: those that led to it, latest first as the parents tell
// them, merged into those that speak about every peer.
func (b *tableBuilder) collect(n int32) {
	b.own, b.order = b.own[:0], b.order[:0]
	for at := n; at > 0; at = b.nodes[at].parent {
		if s := b.nodes[at].step; s >= 0 {
			b.own = append(b.own, s)
		}
	}
	left := len(b.own)
	for _, u := range b.universal {
		for ; left > 0 && b.own[left-1] < u; left-- {
			b.order = append(b.order, b.own[left-1])
		}
		b.order = append(b.order, u)
	}
	for ; left > 0; left-- {
		b.order = append(b.order, b.own[left-1])
	}
}

// resolve paints the steps, or with restricted the essential ones of them, then what is left open, then the
// restriction.
func (b *tableBuilder) resolve(steps []int32, open []stroke, restricted bool) (int32, error) {
	b.paint.start()
	tier := StageAdmin
	for _, at := range steps {
		s := &b.steps[at]
		if restricted && !s.essential {
			continue
		}
		if t := s.tier(); t != tier {
			b.paint.resume()
			tier = t
		}
		for _, r := range s.ports {
			switch st := (stroke{r, s.verdict, s.rule, noAlternative}); {
			case s.pass:
				b.paint.pass(r)
			case s.process != everyProcess:
				b.paint.paintFor(s.process, st)
			default:
				b.paint.paint(st)
			}
		}
		if b.paint.cells > b.maxCells {
			return 0, b.tooMany(s)
		}
		if b.paint.done {
			break
		}
	}
	if restricted {
		for _, s := range open {
			b.paint.paint(s)
		}
		b.paint.paint(stroke{model.AnyPort, model.Deny, b.functions.name(model.RuleRestrict), noAlternative})
	}
	return b.functions.intern(b.paint.finish()), nil
}

func (b *tableBuilder) tooMany(s *step) error {
	err := &Error{Msg: fmt.Sprintf("its ports, with those of other rules between the same workloads, make more than %d ranges: use fewer, wider ones", b.maxCells)}
	if s.source != nil {
		err.Pos, err.Rule = s.source.Pos, s.source.ID
	} else {
		err.Msg = fmt.Sprintf("the services of the selective segments make more than %d ranges: use fewer, wider ones", b.maxCells)
	}
	return Errors{err}
}

// within returns what a function says about the ports.
func (b *tableBuilder) within(fn int32, ports []model.PortRange) []stroke {
	var out []stroke
	all := b.functions.of(fn)
	for _, r := range ports {
		if r.Proto == model.ProtoAny {
			return append(slices.Clone(all[1:]), all[0])
		}
		for _, s := range section(all, r.Proto) {
			if c, ok := clip(s, r.Proto, r.Lo, r.Hi); ok {
				out = append(out, c)
			}
		}
	}
	return out
}

// finish turns classes into rows. Peers that the default function judges have none.
func (b *tableBuilder) finish() (table, error) {
	def, err := b.function(0)
	if err != nil {
		return table{}, err
	}
	b.rows.clear()
	for _, p := range b.touched {
		if b.absent(p) {
			continue
		}
		fn := b.nodes[b.class[p]].fn
		if fn == unknown {
			if fn, err = b.function(b.class[p]); err != nil {
				return table{}, err
			}
		}
		b.fn[p] = fn
		if fn != def {
			b.rows.add(p)
		}
	}
	b.share(def)
	return b.table(def), nil
}

func (b *tableBuilder) absent(peer int32) bool { return b.there != nil && !b.there(peer) }

// table lists the rows.
func (b *tableBuilder) table(def int32) table {
	t := table{def: def}
	if n := b.rows.len(); n > 0 {
		t.rows = make([]row, 0, n)
	}
	for p := range b.rows.all() {
		t.rows = append(t.rows, row{uint32(p), b.fn[p]})
	}
	return t
}
