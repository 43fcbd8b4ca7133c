package compile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Live is a compiled policy that takes changes: it knows what each host is told, and a change costs as much as it
// concerns (ADR 0005). Whatever the order of changes, it ends in what Compile makes of the same documents and
// workloads. It judges nothing; a World does.
//
// A Live is not safe for use by several goroutines. Documents and instances that it was given must not be written to.
type Live struct {
	opts Options
	docs *model.Documents

	rules      [2][]Rule
	nextExpiry time.Time
	portValues portValues
	segments   []int32 // indexes into docs.Segments, by name
	services   map[int32][]model.PortRange

	nets         *partition
	slotOf       []int32 // netset of nets to its slot
	netsets      []liveNetset
	netsetSlots  slots
	netsetsByKey map[string]int32

	labelSets   []liveLabels
	labelSlots  slots
	labelsByKey map[string]int32
	index       *labelIndex

	terms         []liveTerm
	termSlots     slots
	termsByKey    map[string]int32
	selectors     selectorIndex
	matches       *matches
	matchInfo     []liveMatch // parallel to the lists of matches
	matchSlots    slots
	profiles      map[string]*profile
	profileNumber map[*profile]uint32

	// Identities have slots: the lists of ids are parallel to these.
	ids           *identities
	identitySlots slots
	refs          []int         // points, cells, shared identities and addresses that need it
	meant         [][]int32     // the matches that mean it, sorted
	addrs         [][]*liveAddr // that it, alone or among others, stands behind
	places        [][]placeSums // the sums of the addresses that are taken for it
	judgeOf       [][]*judge    // that judge subjects of it
	identityMark  []uint32      // mark of the last walk that met it
	byKey         map[identityKey]int32
	byMembers     map[string]int32
	byID          map[model.IdentityID]int32

	workloads map[string]*liveWorkload
	units     map[string][]*liveWorkload // host to its units, by name
	owned     *bart.Table[*liveAddr]
	namedBy   map[string]map[string]bool // workload to those that restrictions let talk to it

	functions  *functionBuilder
	builder    *tableBuilder
	tables     []*liveTable
	tableByKey map[string]*liveTable
	restricted []*liveTable
	unmanaged  *liveTable

	judges      map[string]*judge
	judgeNumber uint32
	groups      map[string]*group
	hosts       map[string]*liveHost

	cells        []liveCell
	cellByPrefix map[netip.Prefix]int32
	covers       map[string]*cover // by the netsets told; of the present partition
	log          addressLog

	latest *batch // what it leaves is tidied up when the next begins: until then its changes can be read
	mark   uint32
	cellAs []int32
	buf    []byte
	keys   []string
}

// Change is what is different from one moment to the next. Its parts take effect together.
type Change struct {
	// Documents take the place of the present ones; nil leaves them. They cost least if they share with those the
	// lists, and the elements of lists, that are the same.
	Documents *model.Documents
	Now       time.Time // zero: as it was
	// Set are workloads that are new or differ, whatever was there of their names.
	Set []model.Instance
	// Gone are the names of workloads that are there no more.
	Gone []string
}

// NewLive compiles the documents for the inventory, as Compile does.
func NewLive(docs *model.Documents, inv *model.Inventory, o Options) (*Live, error) {
	l := emptyLive(o)
	_, err := l.apply(&Change{Documents: docs, Set: inv.Instances, Now: o.Now})
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		return nil, refused.error
	case err != nil:
		return nil, err
	}
	return l, nil
}

func emptyLive(o Options) *Live {
	l := &Live{
		opts: o, docs: &model.Documents{},
		netsetsByKey: map[string]int32{},
		labelsByKey:  map[string]int32{}, index: newLabelIndex(nil),
		termsByKey: map[string]int32{}, selectors: selectorIndex{byPair: map[labelPair][]int32{}, byKey: map[string][]int32{}},
		matches:  &matches{byKey: map[string]int32{}},
		profiles: map[string]*profile{}, profileNumber: map[*profile]uint32{},
		ids:   &identities{},
		byKey: map[identityKey]int32{}, byMembers: map[string]int32{}, byID: map[model.IdentityID]int32{},
		owned:     &bart.Table[*liveAddr]{},
		workloads: map[string]*liveWorkload{}, units: map[string][]*liveWorkload{}, namedBy: map[string]map[string]bool{},
		functions: newFunctionBuilder(), tableByKey: map[string]*liveTable{},
		judges: map[string]*judge{}, groups: map[string]*group{}, hosts: map[string]*liveHost{},
	}
	l.cellByPrefix, l.covers = map[netip.Prefix]int32{}, map[string]*cover{}
	l.opts.Controllers = plainAddrPorts(o.Controllers)
	l.nets = newPartition(l.docs, &l.rules)
	l.slotOf = []int32{l.netset(&l.nets.netsets[0])}
	l.builder = &tableBuilder{
		ids: l.ids, functions: l.functions, rules: &l.rules, byPurpose: map[purposes][]int32{},
		groups: [2]map[int32][]int32{{}, {}}, matches: l.matches, maxCells: o.maxCells(), maxOf: map[[2]int32]int32{},
		paint: painter{functions: l.functions},
	}
	t, _ := l.builder.constant(model.EndVerdict{Verdict: model.Allow, Rule: model.RuleUnmanaged})
	l.unmanaged = &liveTable{fixed: true, now: contentOf(t, &l.builder.digests, l.functions.functions, l.unownedNetset)}
	return l
}

// Documents returns the documents in force.
func (l *Live) Documents() *model.Documents { return l.docs }

// NextExpiry returns when the next rule expires, so that a Change with that moment must follow; ok is false if none does.
func (l *Live) NextExpiry() (at time.Time, ok bool) { return l.nextExpiry, !l.nextExpiry.IsZero() }

// Instance returns the workload of that name, or nil.
func (l *Live) Instance(name string) *model.Instance {
	if w := l.workloads[name]; w != nil {
		return w.Instance
	}
	return nil
}

// Apply makes the change and returns what is different for the hosts, to be read before the next one. After an error,
// which is that of Compile, nothing has changed.
func (l *Live) Apply(c *Change) (*Changes, error) {
	before := make(map[string]*model.Instance, len(c.Set)+len(c.Gone))
	note := func(name string) {
		if _, ok := before[name]; !ok {
			before[name] = l.Instance(name)
		}
	}
	for i := range c.Set {
		note(c.Set[i].Name)
	}
	for _, name := range c.Gone {
		note(name)
	}
	docs, opts := l.docs, l.opts
	out, err := l.apply(c)
	var refused *refusedError
	if errors.As(err, &refused) {
		// Half of the change is done: begin anew from what was before.
		inv := &model.Inventory{}
		for name, w := range l.workloads {
			if _, ok := before[name]; !ok {
				inv.Instances = append(inv.Instances, *w.Instance)
			}
		}
		for _, inst := range before {
			if inst != nil {
				inv.Instances = append(inv.Instances, *inst)
			}
		}
		again, failed := NewLive(docs, inv, opts)
		if failed != nil {
			return nil, fmt.Errorf("policy that was compiled before does not compile again: %w", failed)
		}
		*l = *again
		l.builder.rules = &l.rules
		return nil, refused.error
	}
	return out, err
}

// refusedError is an error that was found in the middle of a change.
type refusedError struct{ error }

// batch is a change at work.
type batch struct {
	*Live

	born, dying []int32
	lostUnowned []int32
	touched     []*liveAddr
	was         map[*liveAddr]*addrRecord // touched address to its record before
	dirty       []*liveAddr               // addresses whose record differs
	recover     map[int32]bool            // unowned identities: who tells them apart must look at prefixes again
	hosts       map[string]bool           // to look at again
	moves       []move

	dirtyPeers   [2]map[int32]*dirtyPeers // by direction and subject
	stale        []*judge
	assigned     []*judge // that got other tables
	tablesQueued []*liveTable
	orphans      []*liveTable
	idle         []*judge
	empty        []*group

	adopted bool     // other rules are in force
	recut   bool     // the address space is cut anew
	altered []*group // that are told more than other addresses

	// Of drawing deltas.
	spread        bool     // toLook is known
	toLook        []*group // altered ones, and those that may be told of dirty addresses
	drawnGroups   []*group
	diffs         map[contentPair]*tableDiff
	setDiffs      map[statePair]*hostpolicy.SetDelta
	addressDeltas map[string]*addressDelta
	hasher        hostpolicy.Hasher
	subjects      []hostpolicy.Subject
	key           []byte
}

func (l *Live) apply(c *Change) (*Changes, error) {
	opts, docs := l.opts, l.docs
	if !c.Now.IsZero() {
		opts.Now = c.Now
	}
	if c.Documents != nil {
		docs = c.Documents
	}
	var x *lowered
	if c.Documents != nil || opts.Now.Before(l.opts.Now) || !l.nextExpiry.IsZero() && !opts.Now.Before(l.nextExpiry) {
		var err error
		if x, err = l.lower(docs, opts); err != nil {
			return nil, err
		}
	}
	if l.latest != nil {
		l.latest.finish()
	}
	b := &batch{
		Live: l, was: map[*liveAddr]*addrRecord{}, recover: map[int32]bool{}, hosts: map[string]bool{},
		dirtyPeers: [2]map[int32]*dirtyPeers{{}, {}},
		diffs:      map[contentPair]*tableDiff{}, setDiffs: map[statePair]*hostpolicy.SetDelta{}, addressDeltas: map[string]*addressDelta{},
	}
	l.latest = b
	out, err := b.run(c, x, opts)
	if err != nil {
		return nil, &refusedError{err}
	}
	return out, nil
}

func (b *batch) run(c *Change, x *lowered, opts Options) (*Changes, error) {
	l := b.Live
	l.opts = opts
	for _, name := range c.Gone {
		if w := l.workloads[name]; w != nil {
			b.leave(w)
		}
	}
	for i := range c.Set {
		if w := l.workloads[c.Set[i].Name]; w != nil {
			b.leave(w)
		}
		b.join(&c.Set[i])
	}
	if docs := l.docs; x == nil && len(docs.OneSided) > 0 || x != nil && len(x.values) > 0 {
		// Workloads may have given ports other numbers.
		if x != nil {
			docs = x.docs
		}
		if values := l.portValuesOf(docs); x == nil && !values.equal(l.portValues) || x != nil && !values.equal(x.values) {
			var err error
			if x, err = l.lower(docs, opts); err != nil {
				return nil, err
			}
		}
	}
	if x != nil {
		p := l.plan(x)
		l.docs, l.portValues = x.docs, x.values
		l.nextExpiry = nextExpiry(&x.rules)
		if p.segments {
			b.resegment(p)
		}
		if p.nets != nil {
			b.cut(p.nets)
		}
		b.adopt(p)
	}
	if err := b.settleIdentities(); err != nil {
		return nil, err
	}
	for _, at := range b.born {
		if l.refs[at] > 0 {
			b.doubt(at)
		}
	}
	for _, at := range b.dying {
		if l.refs[at] == 0 {
			b.doubt(at)
		}
	}
	for _, j := range b.takeStale() {
		b.assign(j)
	}
	for name := range b.hosts {
		b.host(name)
	}
	for _, j := range b.takeStale() {
		b.assign(j)
	}
	if err := b.evaluateAll(); err != nil {
		return nil, err
	}
	changes := make([]addressChange, len(b.dirty))
	for i, e := range b.dirty {
		changes[i] = addressChange{b.was[e], e.rec}
	}
	l.log.next(changes)
	b.restate()
	return b.changes(), nil
}

// settleIdentities settles addresses, and finds which identities are gone for good.
func (b *batch) settleIdentities() error {
	l := b.Live
	b.settle()
	dead := map[int32]bool{}
	for i := 0; i < len(b.dying); i++ {
		at := b.dying[i]
		if l.refs[at] > 0 || dead[at] {
			continue
		}
		dead[at] = true
		for _, m := range l.ids.all[at].members {
			b.release(m)
		}
	}
	b.dying = slices.DeleteFunc(b.dying, func(at int32) bool {
		first := dead[at]
		delete(dead, at)
		return !first
	})
	for _, at := range b.born {
		if l.refs[at] == 0 {
			continue
		}
		id := l.ids.ids[at]
		if other, taken := l.byID[id]; taken && other != at && l.refs[other] > 0 {
			return Errors{{Msg: fmt.Sprintf("two identities have the number %s: change a label of %q or of %q",
				id, l.ids.all[other].Labels, l.ids.all[at].Labels)}}
		}
		l.byID[id] = at
	}
	return nil
}

func (b *batch) takeStale() []*judge {
	list := b.stale
	b.stale = nil
	for _, j := range list {
		j.stale = false
	}
	return list
}

// evaluateAll makes the tables that may differ, and finds the groups that judges with other tables concern.
func (b *batch) evaluateAll() error {
	var judges []*judge
	for i := 0; i < len(b.tablesQueued); i++ {
		t := b.tablesQueued[i]
		if len(t.judges) > 0 {
			if err := b.evaluate(t); err != nil {
				return err
			}
		}
		judges = append(judges, t.judges...)
	}
	judges = append(judges, b.assigned...)
	for _, j := range judges {
		b.stateJudge(j)
	}
	return nil
}

func (b *batch) stateJudge(j *judge) {
	if j.tables[0] == nil {
		return
	}
	contents := [2]*content{j.tables[0].now, j.tables[1].now}
	if j.state != nil && j.state.contents == contents {
		return
	}
	j.state = &judgeState{
		id:       hostpolicy.SetID(contents[model.Ingress].hash, contents[model.Egress].hash),
		contents: contents,
	}
	for _, g := range j.groups {
		b.alter(g)
	}
}

// tellers calls visit for every group that tells the peer from others. Groups of which a table changed, that may have told
// it before the batch, are altered.
func (b *batch) tellers(p int32, visit func(*group)) {
	l := b.Live
	l.mark++
	mark := l.mark
	l.mayTell(p, func(t *liveTable) {
		if t.met == mark || t.now == nil {
			return
		}
		t.met = mark
		if _, ok := t.now.find(p); !ok {
			return
		}
		for _, j := range t.judges {
			for _, g := range j.groups {
				if g.met != mark {
					g.met = mark
					visit(g)
				}
			}
		}
	})
}

// finish frees what is not needed any more, and leaves no trace of the batch.
func (b *batch) finish() {
	l := b.Live
	b.sweep()
	for _, at := range b.lostUnowned {
		l.netsets[at].unowned = None
	}
	for _, at := range b.dying {
		if id := l.ids.ids[at]; l.byID[id] == at {
			delete(l.byID, id)
		}
		b.bury(at)
	}
	if b.adopted {
		for m := range l.matchInfo {
			if l.matchInfo[m].key != "" && l.matchInfo[m].refs == 0 {
				l.dropMatch(int32(m))
			}
		}
	}
	if len(b.lostUnowned) > 0 {
		l.dropNetsets()
	}
	for _, t := range b.tablesQueued {
		t.base, t.pending, t.rebuild, t.queued = nil, nil, false, false
	}
	for _, list := range [2][]*group{b.altered, b.toLook} {
		for _, g := range list {
			g.before, g.fresh, g.queued, g.moot = nil, false, false, nil
		}
	}
	for _, g := range b.drawnGroups {
		g.drawn, g.change = false, nil
	}
	for i := range b.moves {
		b.moves[i].host.moved = false
	}
	for _, e := range b.dirty {
		e.dirty = false
	}
}
