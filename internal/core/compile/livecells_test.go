package compile_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// TestLiveOfFewRanges changes worlds in which functions may have so few ranges of ports that many tables could need more:
// those are judged at once, others catch up when somebody asks. After every step, a live world says what one from scratch says,
// or refuses as that does, and then goes on from where it was.
func TestLiveOfFewRanges(t *testing.T) {
	seeds, steps := uint64(120), 25
	if testing.Short() {
		seeds = 20
	}
	var accepted, refused, hurried, leisurely, mixed int
	for seed := range seeds {
		m := newMutator(5000 + seed)
		m.onlyAgents(nil)
		o := compile.Options{Now: m.now, MaxCells: 8 + m.IntN(5)}
		var live *compile.Live
		for {
			_, want := compile.Compile(m.docs, m.inventory(), o)
			var err error
			if live, err = compile.NewLive(m.docs, m.inventory(), o); !sameError(err, want) {
				t.Fatalf("seed %d, at first with %d ranges: error %v, want %v", seed, o.MaxCells, err, want)
			}
			if err == nil {
				break
			}
			refused++
			o.MaxCells += 1 + m.IntN(3)
		}
		if more := 3 + m.IntN(60); o.MaxCells < more {
			o.MaxCells = more
			var err error
			if live, err = compile.NewLive(m.docs, m.inventory(), o); err != nil {
				t.Fatalf("seed %d: %v with more ranges", seed, err)
			}
		}
		held := map[string]*hostpolicy.Policy{}
		for _, h := range live.Hosts() {
			held[h], _ = live.HostPolicy(h)
		}
		for k := range steps {
			what := fmt.Sprintf("seed %d, step %d, %d ranges", seed, k, o.MaxCells)
			docs, now, before := m.docs, m.now, maps.Clone(m.inst)
			c := m.step()
			m.onlyAgents(c)
			o.Now = m.now
			w, want := compile.Compile(m.docs, m.inventory(), o)
			changes, err := live.Apply(c)
			if !sameError(err, want) {
				t.Fatalf("%s: error %v, want %v", what, err, want)
			}
			if err != nil {
				if strings.Contains(err.Error(), "ranges: use fewer") {
					refused++
				}
				m.docs, m.now, m.inst = docs, now, before
				o.Now = now
				if w, err = compile.Compile(docs, m.inventory(), o); err != nil {
					t.Fatalf("%s: what was accepted before: %v", what, err)
				}
			} else if err := follow(live, changes, held); err != nil {
				t.Fatalf("%s: %v", what, err)
			} else {
				accepted++
			}
			if m.IntN(3) > 0 || k == steps-1 { // else tables have more to catch up with
				if err := liveHolds(live, w, held); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			switch n, of := live.Hurried(); {
			case n == 0:
				leisurely++
			case n == of:
				hurried++
			default:
				mixed++
			}
		}
	}
	t.Logf("%d accepted, %d refused; no table judged at once %d times, some %d, all %d", accepted, refused, leisurely, mixed, hurried)
	if accepted < 10*int(seeds) || refused < int(seeds)/2 || mixed < int(seeds) || leisurely == 0 {
		t.Error("too few of some kind")
	}
}

// onlyAgents lets nothing enforce at workloads that are on no host with an agent, and adds to the change what that changes: a
// live world judges for agents only, a world from scratch for whatever enforces.
func (m *mutator) onlyAgents(c *compile.Change) {
	for name, inst := range m.inst {
		host, ok := m.inst[inst.Host]
		agent := ok && !host.IsUnit() && host.Host == host.Name
		if !inst.Managed || agent && (inst.IsUnit() || inst.Host == name) {
			continue
		}
		inst.Managed = false
		m.inst[name] = inst
		if c == nil {
			continue
		}
		at := -1
		for i := range c.Set {
			if c.Set[i].Name == name {
				at = i
			}
		}
		if at < 0 {
			c.Set = append(c.Set, inst)
		} else {
			c.Set[at] = inst
		}
	}
}

func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Error() == b.Error()
}

// TestLiveJudgesForAgents: rules that make too many ranges at a workload on a host without an agent are no error of a live
// world, until there is one.
func TestLiveJudgesForAgents(t *testing.T) {
	docs := &model.Documents{Policies: []model.Policy{{Meta: model.Meta{Name: "p"}, Rules: []model.Rule{{
		Name: "r", Action: model.ActionAllow,
		From: []model.Peer{{Kind: model.PeerAny}}, To: []model.Peer{{Kind: model.PeerAny}},
	}}}}}
	for port := uint16(1); port < 40; port += 2 {
		docs.Policies[0].Rules[0].On = append(docs.Policies[0].Rules[0].On, model.PortRef{Range: model.PortRange{Proto: model.ProtoTCP, Lo: port, Hi: port}})
	}
	inst := model.Instance{Name: "a", Labels: model.Labels{"app": "a"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Managed: true}
	inv := &model.Inventory{Instances: []model.Instance{inst}}
	o := compile.Options{MaxCells: 10}
	live, err := compile.NewLive(docs, inv, o)
	if err != nil {
		t.Fatalf("nobody is told: %v", err)
	}
	inst.Host = inst.Name
	inv = &model.Inventory{Instances: []model.Instance{inst}}
	_, want := compile.Compile(docs, inv, o)
	if _, err := live.Apply(&compile.Change{Set: inv.Instances}); want == nil || !sameError(err, want) {
		t.Fatalf("with an agent: error %v, want %v", err, want)
	}
	if hosts := live.Hosts(); len(hosts) > 0 {
		t.Fatalf("what was refused is there: %v", hosts)
	}
}
