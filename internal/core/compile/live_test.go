package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

// mutator changes a world step by step. What it puts in comes from other generated worlds, so that everything meets
// everything.
type mutator struct {
	*rand.Rand
	docs  *model.Documents
	inst  map[string]model.Instance
	now   time.Time
	pool  []*model.Documents
	hosts []model.Instance // to take parts from
	done  map[string]int
}

func newMutator(seed uint64) *mutator {
	m := &mutator{
		Rand: rand.New(rand.NewPCG(seed, 5)), inst: map[string]model.Instance{}, now: policytest.Now, done: map[string]int{},
	}
	var inv *model.Inventory
	m.docs, inv, _ = policytest.Generate(seed, policytest.Alternate(seed))
	for _, i := range inv.Instances {
		m.inst[i.Name] = i
	}
	m.hosts = inv.Instances
	for k := range uint64(3) {
		docs, inv, _ := policytest.Generate(seed*3+k+1000, policytest.Kubernetes)
		m.pool = append(m.pool, docs)
		m.hosts = append(m.hosts, inv.Instances...)
	}
	return m
}

func (m *mutator) inventory() *model.Inventory {
	inv := &model.Inventory{}
	for _, name := range slices.Sorted(maps.Keys(m.inst)) {
		inv.Instances = append(inv.Instances, m.inst[name])
	}
	return inv
}

func choose[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// step changes one thing, or several at once, and returns the change.
func (m *mutator) step() *compile.Change {
	c := &compile.Change{}
	set := map[string]bool{}
	docs := *m.docs
	for range 1 + m.IntN(3)/2*m.IntN(4) {
		switch n := m.IntN(100); {
		case n < 55:
			m.workload(set)
		case n < 90:
			m.document(&docs)
			m.docs = &docs
			c.Documents = &docs
		default:
			m.done["clock"]++
			m.now = policytest.Now.Add(choose(m.Rand, []time.Duration{-2 * time.Hour, -1, 0, 1, time.Minute, 2 * time.Hour}))
			c.Now = m.now
		}
	}
	if m.IntN(8) == 0 { // the same documents, parsed anew: nothing is shared with those before
		m.done["copy"]++
		docs := *m.docs
		docs.Policies, docs.Segments = slices.Clone(docs.Policies), slices.Clone(docs.Segments)
		docs.Networks, docs.Services = slices.Clone(docs.Networks), slices.Clone(docs.Services)
		for i := range docs.Policies {
			docs.Policies[i].Rules = slices.Clone(docs.Policies[i].Rules)
			for k := range docs.Policies[i].Rules {
				r := &docs.Policies[i].Rules[k]
				r.From, r.To, r.On = slices.Clone(r.From), slices.Clone(r.To), slices.Clone(r.On)
			}
		}
		m.docs, c.Documents = &docs, &docs
	}
	for name := range set {
		if inst, ok := m.inst[name]; ok {
			c.Set = append(c.Set, inst)
		} else {
			c.Gone = append(c.Gone, name)
		}
	}
	return c
}

// workload changes a workload.
func (m *mutator) workload(set map[string]bool) {
	names := slices.Sorted(maps.Keys(m.inst))
	other := choose(m.Rand, m.hosts)
	if len(names) == 0 || m.IntN(10) == 0 {
		m.done["join"]++
		m.inst[other.Name] = other
		set[other.Name] = true
		return
	}
	name := choose(m.Rand, names)
	inst := m.inst[name]
	set[name] = true
	switch m.IntN(12) {
	case 0:
		m.done["leave"]++
		delete(m.inst, name)
		return
	case 1, 2:
		m.done["relabel"]++
		inst.Labels = other.Labels
	case 3:
		m.done["new label"]++
		inst.Labels = inst.Labels.With(model.Labels{"role": choose(m.Rand, []string{"api", "db", "new"})})
	case 4:
		m.done["readdress"]++
		inst.Addresses = other.Addresses
	case 5:
		m.done["no address"]++
		inst.Addresses = nil
	case 6:
		m.done["two addresses"]++
		third := choose(m.Rand, m.hosts)
		inst.Addresses = nil
		for _, a := range slices.Concat(other.Addresses, third.Addresses) {
			if !slices.Contains(inst.Addresses, a) {
				inst.Addresses = append(inst.Addresses, a)
			}
		}
	case 7:
		m.done["listen"]++
		inst.Listening = other.Listening
	case 8:
		m.done["managed"]++
		inst.Managed = !inst.Managed
	case 9:
		m.done["rehost"]++
		if inst.Host == "" && !inst.IsUnit() {
			inst.Host = inst.Name
		} else if !inst.IsUnit() {
			inst.Host = ""
		}
	default:
		q := model.Quarantine{Level: model.QuarantineLevel(m.IntN(4))}
		m.done["quarantine "+q.Level.String()]++
		inst.Labels = inst.Labels.With(nil)
		delete(inst.Labels, model.QuarantineLabel)
		if q.Level != model.QuarantineNone {
			inst.Labels[model.QuarantineLabel] = q.Level.String()
		}
		for range m.IntN(4) {
			if q.Level == model.QuarantineRestrict {
				q.InUse = append(q.InUse, model.InUse{
					Direction: choose(m.Rand, model.Directions[:]), Peer: choose(m.Rand, names),
					Ports: model.PortRange{Proto: model.ProtoTCP, Lo: uint16(m.IntN(100)), Hi: 443},
				})
			}
		}
		inst.Quarantine = q
	}
	m.inst[name] = inst
}

// document changes a document. Lists that it changes are new.
func (m *mutator) document(d *model.Documents) {
	from := choose(m.Rand, m.pool)
	switch m.IntN(14) {
	case 12:
		m.done["one-sided"]++
		d.OneSided = with(d.OneSided, choose(m.Rand, from.OneSided), func(p *model.OneSided) string { return p.Name })
	case 13:
		m.done["one-sided gone"]++
		d.OneSided = without(m, d.OneSided)
	case 0, 1:
		m.done["policy"]++
		d.Policies = with(d.Policies, choose(m.Rand, from.Policies), func(p *model.Policy) string { return p.Name })
	case 2:
		m.done["policy gone"]++
		d.Policies = without(m, d.Policies)
	case 3, 4, 5: // a rule
		if len(d.Policies) == 0 {
			return
		}
		p := choose(m.Rand, d.Policies)
		rules := slices.Clone(p.Rules)
		at := m.IntN(len(rules))
		other := choose(m.Rand, choose(m.Rand, from.Policies).Rules)
		switch m.IntN(4) {
		case 0:
			m.done["rule"]++
			other.Name = rules[at].Name
			rules[at] = other
		case 1:
			m.done["rule gone"]++
			if rules = slices.Delete(rules, at, at+1); len(rules) == 0 {
				return
			}
		case 2:
			m.done["rules swapped"]++
			k := m.IntN(len(rules))
			rules[at], rules[k] = rules[k], rules[at]
		case 3:
			m.done["rule added"]++
			other.Name = "added"
			rules = slices.DeleteFunc(rules, func(r model.Rule) bool { return r.Name == "added" })
			rules = slices.Insert(rules, m.IntN(len(rules)+1), other)
		}
		p.Rules = rules
		d.Policies = with(d.Policies, p, func(p *model.Policy) string { return p.Name })
	case 6:
		m.done["segment"]++
		d.Segments = with(d.Segments, choose(m.Rand, from.Segments), func(s *model.Segment) string { return s.Name })
	case 7:
		m.done["segment gone"]++
		d.Segments = without(m, d.Segments)
	case 8, 9:
		m.done["network"]++
		d.Networks = with(d.Networks, choose(m.Rand, from.Networks), func(n *model.Network) string { return n.Name })
	case 10:
		m.done["service"]++
		d.Services = with(d.Services, choose(m.Rand, from.Services), func(s *model.Service) string { return s.Name })
	case 11: // often an error
		if m.IntN(3) == 0 {
			m.done["network gone"]++
			d.Networks = without(m, d.Networks)
		}
	}
}

func with[T any](list []T, x T, name func(*T) string) []T {
	list = slices.Clone(list)
	at, found := slices.BinarySearchFunc(list, name(&x), func(a T, n string) int { return strings.Compare(name(&a), n) })
	if found {
		list[at] = x
		return list
	}
	return slices.Insert(list, at, x)
}

func without[T any](m *mutator, list []T) []T {
	if len(list) == 0 {
		return list
	}
	at := m.IntN(len(list))
	return slices.Delete(slices.Clone(list), at, at+1)
}

// liveHolds compares a live world, and policies that its changes were applied to, with a world from scratch.
func liveHolds(live *compile.Live, w *compile.World, held map[string]*hostpolicy.Policy) error {
	hosts := w.Hosts()
	if got := live.Hosts(); !slices.Equal(got, hosts) {
		return fmt.Errorf("hosts %v, want %v", got, hosts)
	}
	if len(held) != len(hosts) {
		return fmt.Errorf("%d hosts held, want %d", len(held), len(hosts))
	}
	for _, h := range hosts {
		want, _ := w.HostPolicy(h)
		got, _ := live.HostPolicy(h)
		if !equalPolicies(got, want) {
			return fmt.Errorf("host %s: is not what it should be\ngot  %+v\nwant %+v", h, got, want)
		}
		hash := want.Hash()
		if sum, _ := live.HostHash(h); sum != hash {
			return fmt.Errorf("host %s: hash %s, want %s", h, sum.Short(), hash.Short())
		}
		if !equalPolicies(held[h], want) {
			return fmt.Errorf("host %s: deltas lead elsewhere\ngot  %+v\nwant %+v", h, held[h], want)
		}
	}
	return nil
}

func equalPolicies(a, b *hostpolicy.Policy) bool {
	x, y := *a, *b
	for _, p := range []*hostpolicy.Policy{&x, &y} {
		if len(p.Addresses) == 0 {
			p.Addresses = nil
		}
		if len(p.Ports) == 0 {
			p.Ports = nil
		}
	}
	return reflect.DeepEqual(&x, &y)
}

// follow applies changes to the policies that hosts hold.
func follow(live *compile.Live, c *compile.Changes, held map[string]*hostpolicy.Policy) error {
	for _, h := range c.Left {
		delete(held, h)
	}
	for _, h := range c.Joined {
		if held[h] != nil {
			return fmt.Errorf("host %s joined twice", h)
		}
		held[h], _ = live.HostPolicy(h)
	}
	var err error
	n := 0
	for d := range c.Each {
		n++
		p := held[d.Host]
		if p == nil {
			err = fmt.Errorf("a delta for host %s, which has no policy", d.Host)
			continue
		}
		if p.Hash() != d.Base {
			err = fmt.Errorf("host %s: the delta starts from %s, it has %s", d.Host, d.Base.Short(), p.Hash().Short())
			continue
		}
		next, failed := p.Patch(d)
		if failed == nil {
			failed = next.Check()
		}
		switch {
		case failed != nil:
			err = fmt.Errorf("host %s: %w", d.Host, failed)
		case next.Hash() != d.Result:
			err = fmt.Errorf("host %s: the delta promises %s and gives %s", d.Host, d.Result.Short(), next.Hash().Short())
		case d.Result == d.Base:
			err = fmt.Errorf("host %s: a delta that changes nothing", d.Host)
		}
		held[d.Host] = next
	}
	if n != c.Len() {
		return fmt.Errorf("%d deltas, %d announced", n, c.Len())
	}
	return err
}

// TestLiveIsCompile: after every step of random changes, a live world gives every host what a world from scratch does,
// and the deltas turn the policy that the host had before into exactly that.
func TestLiveIsCompile(t *testing.T) {
	seeds, steps := uint64(150), 30
	if testing.Short() {
		seeds = 20
	}
	done := map[string]int{}
	for seed := range seeds {
		m := newMutator(seed)
		o := compile.Options{Now: m.now, Controllers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:443")}}
		live, err := compile.NewLive(m.docs, m.inventory(), o)
		if err != nil {
			t.Fatal(err)
		}
		held := map[string]*hostpolicy.Policy{}
		for _, h := range live.Hosts() {
			held[h], _ = live.HostPolicy(h)
		}
		w, err := compile.Compile(m.docs, m.inventory(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := liveHolds(live, w, held); err != nil {
			t.Fatalf("seed %d, at first: %v", seed, err)
		}
		for k := range steps {
			docs, now, before := m.docs, m.now, maps.Clone(m.inst)
			clear(m.done)
			c := m.step()
			o.Now = m.now
			w, refused := compile.Compile(m.docs, m.inventory(), o)
			changes, err := live.Apply(c)
			what := fmt.Sprintf("seed %d, step %d %v", seed, k, m.done)
			if (err == nil) != (refused == nil) || err != nil && err.Error() != refused.Error() {
				t.Fatalf("%s: error %v, want %v", what, err, refused)
			}
			for what, n := range m.done {
				done[what] += n
			}
			if err != nil {
				done["refused"]++
				m.docs, m.now, m.inst = docs, now, before
				o.Now = now
				if w, err = compile.Compile(docs, m.inventory(), o); err != nil {
					t.Fatal(err)
				}
			} else if err := follow(live, changes, held); err != nil {
				t.Fatalf("%s: %v", what, err)
			} else {
				done["deltas"] += changes.Len()
			}
			if err := liveHolds(live, w, held); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	t.Log(done)
	for _, what := range []string{
		"join", "leave", "relabel", "new label", "readdress", "no address", "two addresses", "listen", "managed", "rehost",
		"quarantine none", "quarantine restrict", "quarantine isolate", "policy", "policy gone", "rule", "rule gone", "rules swapped",
		"rule added", "one-sided", "one-sided gone", "segment", "segment gone", "network", "service", "clock", "copy", "refused", "deltas",
	} {
		if done[what] == 0 {
			t.Errorf("no step of kind %q", what)
		}
	}
}
