package ebpf

import (
	"fmt"
	"testing"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

// mapsOf says which maps hold a resource.
var mapsOf = [budget.Resources][]string{
	budget.Rows:         {programsMapRows},
	budget.Ranges:       {programsMapRanges},
	budget.Alternatives: {programsMapAlternatives},
	budget.Sets:         {programsMapPolicySets},
	budget.Rules:        {programsMapRules},
	budget.Subjects:     {programsMapSubjects, programsMapSubjectInfo},
	budget.LocalSets:    {programsMapLocalSets, programsMapLocalIdentities},
	budget.Addresses:    {programsMapAddresses},
	budget.Prefixes:     {programsMapPrefixes},
	budget.Ports:        {programsMapPorts},
	budget.Controllers:  {programsMapControllers},
	budget.Patterns:     {programsMapPatterns},
	budget.Named:        {programsMapDomains},
}

// TestTargetIsTheMaps compares what package budget promises with the maps that are loaded.
func TestTargetIsTheMaps(t *testing.T) {
	spec, err := loadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	d := &Dataplane{cfg: DefaultConfig()}
	d.resize(spec)
	target := budget.EBPF()
	for r := range budget.All() {
		bytes := 0
		for _, name := range mapsOf[r] {
			m := spec.Maps[name]
			bytes += int(m.KeySize + m.ValueSize)
			if int(m.MaxEntries) != target.Max[r] {
				t.Errorf("%s: map %s holds %d, the target says %d", r, name, m.MaxEntries, target.Max[r])
			}
		}
		if bytes == 0 || bytes != target.EntryBytes[r] {
			t.Errorf("%s: an entry has %d bytes, the target says %d", r, bytes, target.EntryBytes[r])
		}
	}
	if name := len(ruleName{}); name != target.MaxName+1 || name != len(subjectInfo{}.Name) {
		t.Errorf("names have %d bytes, of workloads %d; the target says %d and a zero", name, len(subjectInfo{}.Name), target.MaxName)
	}
	if target.Max[budget.Sets] > maxSets {
		t.Errorf("%d policy sets cannot be numbered", target.Max[budget.Sets])
	}
}

// TestBudgetCountsEntries compares what package budget says that policies, and changes from one to the next, take with
// the entries that are written for them.
func TestBudgetCountsEntries(t *testing.T) {
	seen := budget.Cost{}
	for seed := range uint64(40) {
		docs, inv, _ := policytest.Generate(seed, policytest.Alternate(seed))
		// Another inventory makes other policies for the same hosts.
		_, later, _ := policytest.Generate(seed+1, policytest.Alternate(seed))
		worlds := [2]*compile.World{}
		for i, inv := range []*model.Inventory{inv, later} {
			w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
			if err != nil {
				t.Fatal(err)
			}
			worlds[i] = w
		}
		for _, host := range worlds[0].Hosts() {
			p, _ := worlds[0].HostPolicy(host)
			if got, want := budget.Of(p), entriesOf(t, p); got != want {
				t.Fatalf("seed %d host %s: budget %v, entries %v", seed, host, got, want)
			}
			if next, ok := worlds[1].HostPolicy(host); ok {
				got, want := budget.Between(p, next), entriesOf(t, p, next)
				if got != want {
					t.Fatalf("seed %d host %s: budget of the change %v, entries %v", seed, host, got, want)
				}
				seen.Add(got)
			}
		}
	}
	for r := range budget.All() {
		if r != budget.Controllers && seen[r] < 20 {
			t.Errorf("%s: %d in all worlds; they test little", r, seen[r])
		}
	}
}

// entriesOf counts the entries of the maps that hold the policies at once, as the dataplane writes them.
func entriesOf(t *testing.T, policies ...*hostpolicy.Policy) budget.Cost {
	t.Helper()
	var (
		c           budget.Cost
		sets        = map[hostpolicy.PolicySetID]bool{}
		rules       = map[uint64]bool{}
		subjects    = map[string]bool{}
		local       = map[any]bool{}
		addresses   = map[address]bool{}
		prefixes    = map[netKey]bool{}
		ports       = map[portKey]bool{}
		controllers = map[portKey]bool{}
		lists       = map[string]bool{} // of patterns
		domains     = map[any]bool{}
	)
	for _, p := range policies {
		for i := range p.Sets {
			if set := &p.Sets[i]; !sets[set.ID] {
				sets[set.ID] = true
				l := lower(set, 1)
				c[budget.Rows] += len(l.rows)
				c[budget.Ranges] += len(l.ranges)
				c[budget.Alternatives] += len(l.alternatives(1))
			}
		}
		empty := &held{sets: map[uint64]*heldSet{}, spoiled: map[uint32]bool{}, subjects: make([]heldSubject, 512)}
		next := &transition{policy: p, changed: map[int]bool{}}
		if err := next.planSets(empty); err != nil {
			t.Fatal(err)
		}
		if err := next.planSubjects(empty, 512); err != nil {
			t.Fatal(err)
		}
		if err := next.nameRules(); err != nil {
			t.Fatal(err)
		}
		next.planAddresses(empty)
		if err := next.planDomains(empty, 0); err != nil {
			t.Fatal(err)
		}
		list := fmt.Sprint(next.patterns)
		if !lists[list] {
			lists[list] = true
			c[budget.Patterns] += len(patternKeys(next.patterns, next.epoch))
		}
		for _, x := range next.domains {
			domains[struct {
				list string
				key  domainKey
			}{list, x.key}] = true
		}
		for n := range next.rules {
			rules[n] = true
		}
		for _, s := range next.subjects {
			if s.used {
				subjects[s.name] = true
			}
		}
		for _, x := range next.localSets {
			local[struct {
				addr    address
				subject string
			}{x.key.Addr, next.subjects[x.key.Subject].name}] = true
		}
		for _, x := range next.addresses {
			addresses[x.key] = true
		}
		for _, x := range next.prefixes {
			prefixes[x.key] = true
		}
		for _, x := range next.ports {
			ports[x.key] = true
		}
		for _, x := range next.controllers {
			controllers[x.key] = true
		}
	}
	c[budget.Named] = len(domains)
	c[budget.Sets], c[budget.Rules], c[budget.Subjects], c[budget.LocalSets] = len(sets), len(rules), len(subjects), len(local)
	c[budget.Addresses], c[budget.Prefixes], c[budget.Ports], c[budget.Controllers] = len(addresses), len(prefixes), len(ports), len(controllers)
	return c
}
