package diff

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/reach"
	"bulkhead/internal/core/verdict"
)

func world(t testing.TB, docs *model.Documents, inv *model.Inventory) *compile.World {
	t.Helper()
	w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// respell returns documents that mean the same: everything but workloads has another name, services are written out or
// made up, rules are split, shuffled and spread over other policies.
func respell(docs *model.Documents, rng *rand.Rand) *model.Documents {
	out := *docs
	services := map[string][]model.PortRange{}
	out.Services = nil
	for _, s := range docs.Services {
		services[s.Name] = s.Ports
		s.Name = "renamed-" + s.Name
		out.Services = append(out.Services, s)
	}
	out.Networks = nil
	for _, n := range docs.Networks {
		n.Name = "renamed-" + n.Name
		out.Networks = append(out.Networks, n)
	}
	refs := func(on []model.PortRef) []model.PortRef {
		var all []model.PortRef
		for _, r := range on {
			switch {
			case r.Service == "":
				all = append(all, r)
			case rng.IntN(2) == 0:
				all = append(all, model.PortRef{Service: "renamed-" + r.Service})
			default:
				for _, p := range services[r.Service] {
					all = append(all, model.PortRef{Range: p})
				}
			}
		}
		return all
	}
	peers := func(list []model.Peer) []model.Peer {
		list = slices.Clone(list)
		for i := range list {
			if list[i].Kind == model.PeerNetwork {
				list[i].Network = "renamed-" + list[i].Network
			}
		}
		rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list
	}
	out.Segments = nil
	for _, s := range docs.Segments {
		s.Name = "renamed-" + s.Name
		s.Services = refs(s.Services)
		out.Segments = append(out.Segments, s)
	}
	var rules []model.Rule
	for _, p := range docs.Policies {
		for _, r := range p.Rules {
			r.From, r.To, r.On = peers(r.From), peers(r.To), refs(r.On)
			if rng.IntN(2) == 0 {
				rules = append(rules, r)
				continue
			}
			for _, from := range r.From {
				for _, to := range r.To {
					for _, on := range r.On {
						one := r
						one.From, one.To, one.On = []model.Peer{from}, []model.Peer{to}, []model.PortRef{on}
						rules = append(rules, one)
					}
				}
			}
		}
	}
	rng.Shuffle(len(rules), func(i, j int) { rules[i], rules[j] = rules[j], rules[i] })
	out.Policies = nil
	for i, r := range rules {
		r.Name = fmt.Sprintf("r%d", i)
		if i%3 == 0 {
			out.Policies = append(out.Policies, model.Policy{Meta: model.Meta{Name: fmt.Sprintf("p%03d", i)}})
		}
		p := &out.Policies[len(out.Policies)-1]
		p.Rules = append(p.Rules, r)
	}
	out.Guardrails = nil
	return &out
}

func TestSpellingIsNoChange(t *testing.T) {
	for seed := range uint64(200) {
		docs, inv, _ := policytest.Generate(seed, policytest.Small)
		before := world(t, docs, inv)
		after := world(t, respell(docs, rand.New(rand.NewPCG(seed, 1))), inv)
		if d := Between(before, after); !d.Empty() {
			text, _ := json.MarshalIndent(d, "", " ")
			t.Fatalf("seed %d: %s", seed, text)
		}
	}
}

// edit returns the documents with a few things changed.
func edit(docs, other *model.Documents, rng *rand.Rand) *model.Documents {
	out := *docs
	switch rng.IntN(5) {
	case 0: // a policy goes
		if n := len(docs.Policies); n > 0 {
			i := rng.IntN(n)
			out.Policies = slices.Delete(slices.Clone(docs.Policies), i, i+1)
		}
	case 1: // a segment enforces
		out.Segments = slices.Clone(docs.Segments)
		for i := range out.Segments {
			if rng.IntN(2) == 0 {
				out.Segments[i].Mode = model.ModeEnforce
			}
		}
	case 2: // a rule loses an alternative, another one gains everybody
		out.Policies = slices.Clone(docs.Policies)
		for i := range out.Policies {
			out.Policies[i].Rules = slices.Clone(out.Policies[i].Rules)
			r := &out.Policies[i].Rules[rng.IntN(len(out.Policies[i].Rules))]
			if len(r.From) > 1 {
				r.From = r.From[1:]
			} else if rng.IntN(3) == 0 {
				r.From = []model.Peer{{Kind: model.PeerAny}}
			}
		}
	case 4: // rules get constraints on processes, or others
		return constrained(docs, rng)
	case 3: // the policies of another world over one's own networks
		out.Policies = nil
		for _, p := range other.Policies {
			p.Name = "other-" + p.Name
			p.Rules = slices.DeleteFunc(slices.Clone(p.Rules), func(r model.Rule) bool {
				named := func(p model.Peer) bool { return p.Kind == model.PeerNetwork }
				return slices.ContainsFunc(r.From, named) || slices.ContainsFunc(r.To, named) ||
					slices.ContainsFunc(r.On, func(p model.PortRef) bool { return p.Service != "" })
			})
			out.Policies = append(out.Policies, p)
		}
	}
	return &out
}

// constrained returns the documents with constraints on processes in half of the rules' ends.
func constrained(docs *model.Documents, rng *rand.Rand) *model.Documents {
	out := *docs
	out.Policies = slices.Clone(docs.Policies)
	for i := range out.Policies {
		out.Policies[i].Rules = slices.Clone(out.Policies[i].Rules)
		for k := range out.Policies[i].Rules {
			r := &out.Policies[i].Rules[k]
			r.From, r.To = constrain(r.From, rng), constrain(r.To, rng)
		}
	}
	return &out
}

func constrain(peers []model.Peer, rng *rand.Rand) []model.Peer {
	peers = slices.Clone(peers)
	for i := range peers {
		if p := &peers[i]; p.Kind == model.PeerWorkloads && rng.IntN(2) == 0 {
			p.Process = process(rng)
			if p.Process != nil && rng.IntN(4) > 0 { // of one field, and so met more often
				*p.Process = []model.Process{{Unit: p.Process.Unit}, {Path: p.Process.Path}, {User: p.Process.User}}[rng.IntN(3)]
			}
			if p.Process != nil && *p.Process == (model.Process{}) {
				p.Process = nil
			}
		}
	}
	return peers
}

// TestBruteForceAgrees evaluates every pair of ends at sampled ports in both worlds and finds the same changes as the
// comparison, no more and no fewer.
func TestBruteForceAgrees(t *testing.T) {
	changed, same, some, named, asked := 0, 0, 0, 0, 0
	for seed := range uint64(120) {
		rng := rand.New(rand.NewPCG(seed, 2))
		docs, inv, flows := policytest.Generate(seed, policytest.Alternate(seed/2))
		other, _, _ := policytest.Generate(seed+5000, policytest.Small)
		if seed%2 == 0 {
			docs = constrained(docs, rng)
		}
		edited := edit(docs, other, rng)
		before, after := world(t, docs, inv), world(t, edited, inv)
		c := newComparison(before, after)
		c.scan()
		claimed := c.expand()
		judges := [2]*verdict.Evaluator{verdict.New(before), verdict.New(after)}
		var ports []model.PortRange
		for i := range flows[:10] {
			ports = append(ports, model.PortRange{Proto: flows[i].Proto, Lo: flows[i].Port})
		}
		for i := range c.u.Actors {
			for j := range c.u.Actors {
				a, b := &c.u.Actors[i], &c.u.Actors[j]
				if skip(c.u, a, b) {
					continue
				}
				near := c.u.Example([]int32{int32(i)}, []int32{int32(j)}, reach.SameHost) != nil
				for _, p := range ports {
					if _, always := essential.Match(p.Proto, p.Lo); always {
						continue
					}
					f := model.Flow{From: a.Exactly(), To: b.Exactly(), Proto: p.Proto, Port: p.Lo, ToDomain: b.Name}
					f.FromProcess, f.ToProcess = process(rng), process(rng)
					was, err1 := judges[0].Judge(&f)
					is, err2 := judges[1].Judge(&f)
					if err1 != nil || err2 != nil {
						t.Fatal(err1, err2)
					}
					if ownNode(was) || ownNode(is) {
						continue // of a class of pods, only some are on the node
					}
					if asked++; asked%50 == 0 { // the evaluators are held to the oracle elsewhere too
						slow := judgeSlowly(t, &f, docs, edited, inv)
						if slow != [2]model.Verdict{was.Verdict, is.Verdict} {
							t.Fatalf("seed %d: %+v is judged %v, and by the oracle %v", seed, f, [2]model.Verdict{was.Verdict, is.Verdict}, slow)
						}
					}
					want := ""
					switch {
					case was.Verdict == is.Verdict:
						same++
					default:
						want = was.Verdict.String() + " " + is.Verdict.String()
						changed++
						if b.Domain != "" {
							named++
						}
					}
					if !pairSame(judges, f) {
						some++
					}
					if got := claimed.at(c, int32(i), int32(j), near, &f); got != want {
						t.Fatalf("seed %d: %s %v to %s %v %s on %v/%d (same host %v): the difference says %q, the evaluators %q",
							seed, f.From, f.FromProcess, f.To, f.ToProcess, f.ToDomain, p.Proto, p.Lo, near, got, want)
					}
				}
			}
		}
		checkReport(t, seed, c)
	}
	if changed < 5000 || same < 50000 || some < 500 || named < 500 {
		t.Fatalf("only %d changes (%d by name) and %d agreements were checked, %d where processes count", changed, named, same, some)
	}
}

// process returns what a process may be, most often one that some rule may name.
func process(rng *rand.Rand) *model.Process {
	if rng.IntN(4) == 0 {
		return nil
	}
	one := func(list ...string) string { return list[rng.IntN(len(list))] }
	return &model.Process{
		Unit: one("", "payapi.service", "cron.service", "else.service"), Path: one("", "/usr/bin/curl", "/usr/bin/python3"),
		User: one("", "www-data", "1000", "root"),
	}
}

func ownNode(v model.FlowVerdict) bool {
	return v.Egress.Rule == model.RuleOwnNode || v.Ingress.Rule == model.RuleOwnNode
}

// judgeSlowly asks the oracle about the flow before and after.
func judgeSlowly(t *testing.T, f *model.Flow, before, after *model.Documents, inv *model.Inventory) (out [2]model.Verdict) {
	t.Helper()
	for i, docs := range [2]*model.Documents{before, after} {
		v, err := oracle.Judge(docs, inv, compile.Options{Now: policytest.Now}, f)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = v.Verdict
	}
	return out
}

// pairSame reports whether both worlds say the same for processes that are not known.
func pairSame(judges [2]*verdict.Evaluator, f model.Flow) bool {
	var with, without [2]model.Verdict
	for i, j := range judges {
		v, err1 := j.Judge(&f)
		plain := f
		plain.FromProcess, plain.ToProcess = nil, nil
		w, err2 := j.Judge(&plain)
		if err1 != nil || err2 != nil {
			return true
		}
		with[i], without[i] = v.Verdict, w.Verdict
	}
	return with == without
}

// skip leaves out pairs about which there is nothing to say, and ends that no flow can name exactly.
func skip(u *reach.Universe, a, b *reach.Actor) bool {
	exact := func(a *reach.Actor) bool { return a.Exactly().Addr.IsValid() || !a.Addr.IsValid() }
	return a.Domain != "" || a.Owned() && a.Workload == b.Workload || !a.Owned() && !b.Owned() || !exact(a) || !exact(b) ||
		a.Addr.IsValid() && b.Addr.IsValid() && a.Addr.Is4() != b.Addr.Is4()
}

// claims are the changes of a comparison by pair of classes.
type claims map[[3]int32][]int32

func (c *comparison) expand() claims {
	out := claims{}
	for where := range c.relations {
		for n := range c.relations[where] {
			for _, b := range c.relations[where][n].blocks {
				for _, from := range b.from {
					for _, to := range b.to {
						k := [3]int32{int32(where), from, to}
						out[k] = append(out[k], int32(n))
					}
				}
			}
		}
	}
	return out
}

// at returns the change claimed for one flow; more than one is one too many.
func (m claims) at(c *comparison, from, to int32, near bool, f *model.Flow) string {
	var out []string
	a, b := c.u.ClassOf(from), c.u.ClassOf(to)
	for _, where := range []reach.Where{reach.Anywhere, reach.Elsewhere, reach.SameHost} {
		if where != reach.Anywhere && near != (where == reach.SameHost) {
			continue
		}
		for _, n := range m[[3]int32{int32(where), a, b}] {
			if ch := &c.all[n]; ch.Ports.Contains(f.Proto, f.Port) && c.u.Holds(ch.Who, f.FromProcess, f.ToProcess) {
				out = append(out, ch.Before.String()+" "+ch.After.String())
			}
		}
	}
	return strings.Join(out, " and ")
}

// checkReport: gathering blocks loses and invents no pair, and examples show the change that they stand for.
func checkReport(t *testing.T, seed uint64, c *comparison) {
	t.Helper()
	for where := range c.relations {
		for n := range c.relations[where] {
			r := &c.relations[where][n]
			want, got := map[[2]int32]int{}, map[[2]int32]int{}
			for _, b := range r.blocks {
				count(want, &b)
			}
			for _, b := range r.gather() {
				count(got, &b)
			}
			if len(want) != len(got) {
				t.Fatalf("seed %d: %d pairs became %d", seed, len(want), len(got))
			}
			for k, n := range got {
				if want[k] != 1 || n != 1 {
					t.Fatalf("seed %d: pair %v is there %d times, was %d times", seed, k, n, want[k])
				}
			}
		}
	}
	d := c.report()
	for _, list := range [][]Communication{d.Opened, d.Closed, d.WouldClose, d.WouldOpen} {
		for i := range list {
			x := &list[i]
			if len(x.From) == 0 || len(x.To) == 0 || len(x.On) == 0 || x.Pairs == 0 {
				t.Fatalf("seed %d: a communication lacks something: %+v", seed, x)
			}
			if v := x.Example; v.From == "" || v.Before.Verdict != "" && (v.Before.Verdict != x.Before || v.After.Verdict != x.After) {
				t.Fatalf("seed %d: the example %+v is not of %+v", seed, v, x)
			}
		}
	}
}

func count(m map[[2]int32]int, b *block) {
	for _, from := range b.from {
		for _, to := range b.to {
			m[[2]int32{from, to}]++
		}
	}
}

func host(name, labels, addr string) model.Instance {
	return instance(name, labels, addr, true)
}

func TestWording(t *testing.T) {
	inv := &model.Inventory{Instances: []model.Instance{
		host("api-1", "app=pay,env=prod,role=api", "10.0.0.1"),
		host("api-2", "app=pay,env=prod,role=api", "10.0.0.2"),
		host("db-1", "app=pay,env=prod,role=db", "10.0.0.3"),
		host("dev-1", "app=pay,env=dev,role=api", "10.0.0.4"),
		host("web-1", "app=portal,env=prod,role=web", "10.0.0.5"),
	}}
	allow := func(name, from, to string, on ...model.PortRef) model.Rule {
		return model.Rule{
			Name: name, Action: model.ActionAllow, On: on,
			From: []model.Peer{{Workloads: model.MustParseSelector(from)}}, To: []model.Peer{{Workloads: model.MustParseSelector(to)}},
		}
	}
	segment := func(name, selector string, mode model.Mode) model.Segment {
		return model.Segment{
			Meta: model.Meta{Name: name}, Selector: model.MustParseSelector(selector), Mode: mode,
			Directions: []model.Direction{model.Ingress, model.Egress},
		}
	}
	postgres := model.Service{Meta: model.Meta{Name: "postgres"}, Ports: []model.PortRange{{Proto: model.ProtoTCP, Lo: 5432, Hi: 5432}}}
	docs := func(mode model.Mode, rules ...model.Rule) *model.Documents {
		return &model.Documents{
			Services: []model.Service{postgres},
			Segments: []model.Segment{segment("pay", "app=pay,env=prod", mode)},
			Policies: []model.Policy{{Meta: model.Meta{Name: "pay"}, Rules: rules}},
		}
	}
	apiDB := allow("api-db", "app=pay,role=api,env=prod", "app=pay,role=db,env=prod", model.PortRef{Service: "postgres"})
	webAPI := allow("web-api", "app=portal", "app=pay,role=api,env=prod", model.PortRef{Range: model.PortRange{Proto: model.ProtoTCP, Lo: 8443, Hi: 8443}})
	for _, c := range []struct {
		name          string
		before, after *model.Documents
		want          []string
	}{
		{
			"a rule is added", docs(model.ModeEnforce), docs(model.ModeEnforce, apiDB),
			[]string{"opened app=pay,env=prod,role=api -> app=pay,env=prod,role=db on postgres (2)"},
		},
		{
			"a rule is removed", docs(model.ModeEnforce, apiDB, webAPI), docs(model.ModeEnforce, webAPI),
			[]string{"closed app=pay,env=prod,role=api -> app=pay,env=prod,role=db on postgres (2)"},
		},
		{
			"a rule is added to a segment that only observes", docs(model.ModeObserve), docs(model.ModeObserve, apiDB),
			[]string{"would open app=pay,env=prod,role=api -> app=pay,env=prod,role=db on postgres (2)"},
		},
		{
			"a segment enforces", docs(model.ModeObserve, apiDB, webAPI), docs(model.ModeEnforce, apiDB, webAPI),
			[]string{
				"closed app=pay,env=prod -> any address or every workload but app=pay,env=prod,role=db on any (13)",
				"closed app=pay,env=dev,role=api or any address -> app=pay,env=prod on any (6)",
				"closed app=pay,env=prod,role=api -> app=pay,env=prod,role=db on any but postgres (2)",
				"closed app=portal,env=prod,role=web -> app=pay,env=prod,role=api on any but tcp/8443 (2)",
				"closed app=portal,env=prod,role=web -> app=pay,env=prod,role=db on any (1)",
			},
		},
	} {
		d := Between(world(t, c.before, inv), world(t, c.after, inv))
		got := say(d)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func say(d *Diff) []string {
	var out []string
	for _, l := range []struct {
		word string
		list []Communication
	}{{"opened", d.Opened}, {"closed", d.Closed}, {"would close", d.WouldClose}, {"would open", d.WouldOpen}} {
		for _, c := range l.list {
			out = append(out, fmt.Sprintf("%s %s -> %s on %s (%d)", l.word, strings.Join(c.From, " or "), strings.Join(c.To, " or "), strings.Join(c.On, ", "), c.Pairs))
		}
	}
	return out
}

func instance(name, labels, addr string, managed bool) model.Instance {
	in := model.Instance{Name: name, Labels: model.Labels{}, Managed: managed, Host: name}
	for _, pair := range strings.Split(labels, ",") {
		k, v, _ := strings.Cut(pair, "=")
		in.Labels[k] = v
	}
	in.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	return in
}

// TestOtherInventories: worlds need not have the same workloads. One that is new or gone is an address before or after.
func TestOtherInventories(t *testing.T) {
	checked := 0
	for seed := range uint64(60) {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
		other, otherInv, _ := policytest.Generate(seed+9000, policytest.Small)
		for _, p := range [][2]*compile.World{
			{world(t, docs, inv), world(t, other, otherInv)},
			{world(t, docs, inv), world(t, docs, fewer(inv))},
			{world(t, docs, fewer(inv)), world(t, docs, inv)},
		} {
			c := newComparison(p[0], p[1])
			c.scan()
			claimed := c.expand()
			checkReport(t, seed, c)
			judges := [2]*verdict.Evaluator{verdict.New(p[0]), verdict.New(p[1])}
			for i := range c.u.Actors {
				for j := range c.u.Actors {
					a, b := &c.u.Actors[i], &c.u.Actors[j]
					f := model.Flow{
						From: a.Exactly(), To: b.Exactly(), Proto: flows[j%8].Proto, Port: flows[j%8].Port, ToDomain: b.Name,
						FromProcess: flows[j%8].FromProcess, ToProcess: flows[j%8].ToProcess,
					}
					if _, always := essential.Match(f.Proto, f.Port); always || skip(c.u, a, b) || !f.From.Addr.IsValid() || !f.To.Addr.IsValid() {
						continue
					}
					was, err1 := judges[0].Judge(&f)
					is, err2 := judges[1].Judge(&f)
					if err1 != nil || err2 != nil {
						t.Fatal(err1, err2)
					}
					want := ""
					if was.Verdict != is.Verdict {
						want = was.Verdict.String() + " " + is.Verdict.String()
					}
					near := c.u.Example([]int32{int32(i)}, []int32{int32(j)}, reach.SameHost) != nil
					if got := claimed.at(c, int32(i), int32(j), near, &f); got != want {
						t.Fatalf("seed %d: %s to %s on %v/%d: the difference says %q, the evaluators %q", seed, f.From, f.To, f.Proto, f.Port, got, want)
					}
					checked++
				}
			}
		}
	}
	if checked < 2000 {
		t.Fatalf("only %d were checked", checked)
	}
}

func fewer(inv *model.Inventory) *model.Inventory {
	return &model.Inventory{Instances: inv.Instances[:len(inv.Instances)/2]}
}

func TestEmptyWorlds(t *testing.T) {
	none := world(t, &model.Documents{}, &model.Inventory{})
	if d := Between(none, none); !d.Empty() {
		t.Errorf("got %+v", d)
	}
	docs, inv, _ := policytest.Generate(1, policytest.Small)
	w := world(t, docs, inv)
	if d := Between(none, w); d.Empty() {
		t.Error("a world with policy is no change from nothing")
	}
	if d := Between(w, w); !d.Empty() {
		t.Errorf("got %+v", d)
	}
}
