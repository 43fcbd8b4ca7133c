package compile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"

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

	rules      [2][]*Rule
	memo       loweredMemo
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
	refs          []int      // points, cells, shared identities and addresses that need it
	bornIn        []uint64   // the batch that it is new in
	meant         [][]int32  // the matches that mean it, sorted
	places        []*place   // the addresses that are taken for it
	judgeOf       [][]*judge // that judge subjects of it
	members       bitset     // of shared identities
	identityMark  []uint32   // mark of the last walk that met it
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
	judged     []uint64 // parallel to tables: the turns before this position have been judged
	risky      []*liveTable
	turns      turnLog
	buried     []buriedSlot
	swept      int // tables from here on have been swept
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

	told      [2]bitset // of views
	latest    *batch    // what it leaves is tidied up when the next begins: until then its changes can be read
	mark      uint32
	gathering gathering
	numbering numbering
	cellAs    []int32
	buf       []byte
	keys      []string
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
		return nil, refused.asCompiled(docs, inv, o)
	case err != nil:
		return nil, err
	}
	// Everything is new: there is nothing to draw, and the first change need not tidy up.
	l.latest.finish()
	l.latest = &batch{Live: l, number: l.log.version, turnsBefore: l.turns.end()}
	l.recycle()
	l.swept = len(l.tables)
	for _, c := range l.cells {
		for _, p := range c.places {
			l.block(p)
		}
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
	l.cells = []liveCell{nowhere: {}}
	l.cellByPrefix, l.covers = map[netip.Prefix]int32{}, map[string]*cover{}
	l.opts.Controllers = plainAddrPorts(o.Controllers)
	l.nets = newPartition(l.docs, &l.rules)
	l.slotOf = []int32{l.netset(&l.nets.netsets[0])}
	l.builder = &tableBuilder{
		ids: l.ids, functions: l.functions, byPurpose: map[purposes][]int32{},
		matches: l.matches, maxCells: o.maxCells(), maxOf: map[[2]int32]int32{},
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
// which is that of Compile, nothing has changed. Only what an agent would be given is judged: of a workload on a host without
// one, Apply does not find that its rules make too many ranges of ports.
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
		asked, inv := &model.Inventory{}, &model.Inventory{}
		for _, w := range l.workloads {
			asked.Instances = append(asked.Instances, *w.Instance)
		}
		slices.SortFunc(asked.Instances, func(a, b model.Instance) int { return compareNames(a.Name, b.Name) })
		askedDocs, askedOpts := docs, opts
		if c.Documents != nil {
			askedDocs = c.Documents
		}
		if !c.Now.IsZero() {
			askedOpts.Now = c.Now
		}
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
		version := l.log.version + 1 // no Changes are of it
		*l = *again
		l.latest.Live = l
		l.log.version, l.log.since = version, version
		return nil, refused.asCompiled(askedDocs, asked, askedOpts)
	}
	return out, err
}

// refusedError is an error that was found in the middle of a change.
type refusedError struct{ error }

// asCompiled returns the error that Compile has for the same. Where several rules cannot be compiled, the one that is named is
// the first that was met, and a live world meets them in another order.
func (r *refusedError) asCompiled(docs *model.Documents, inv *model.Inventory, o Options) error {
	if _, err := Compile(docs, inv, o); err != nil {
		return err
	}
	return r.error
}
