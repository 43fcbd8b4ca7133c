package suggest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
)

// landscape is a random world: documents in force, agents' reports, and flows among them.
type landscape struct {
	rng     *rand.Rand
	docs    *model.Documents
	reports []inventory.Report
	names   []string
	outside []netip.Addr
}

var (
	someApps  = []string{"portal", "payments", "customer-data", "mes"}
	someRoles = []string{"web", "api", "db", "worker", "plc"}
	someEnvs  = []string{"prod", "dev"}
)

func newLandscape(seed uint64) *landscape {
	l := &landscape{rng: rand.New(rand.NewPCG(seed, 7)), docs: &model.Documents{}}
	for i := range 3 + l.rng.IntN(8) {
		r := inventory.Report{Host: fmt.Sprintf("%s-%d", pick(l.rng, []string{"node", "pay-db", "portal-web", "dev-api", "plain"}), i), Labels: l.labels()}
		r.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(l.rng.IntN(2)), byte(i + 1)})}
		if l.rng.IntN(3) == 0 {
			r.Addresses = append(r.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1)))
		}
		l.names = append(l.names, r.Host)
		for u := range l.rng.IntN(4) {
			unit := inventory.UnitReport{Name: fmt.Sprintf("%s-%d.service", pick(l.rng, []string{"payments-api", "redis", "thing"}), u)}
			r.Units = append(r.Units, unit)
			l.names = append(l.names, r.Host+"/"+unit.Name)
		}
		l.reports = append(l.reports, r)
	}
	for i := range l.rng.IntN(5) {
		w := model.Workload{Meta: model.Meta{Name: fmt.Sprintf("device-%d", i), Labels: l.labels()}}
		w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)})}
		l.docs.Workloads = append(l.docs.Workloads, w)
		l.names = append(l.names, w.Name)
	}
	for range l.rng.IntN(40) {
		l.outside = append(l.outside, netip.AddrFrom4([4]byte{byte(20 + l.rng.IntN(3)), 0, 0, byte(l.rng.IntN(64))}))
	}
	if l.rng.IntN(2) == 0 {
		l.docs.Networks = []model.Network{{Meta: model.Meta{Name: "partner"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("21.0.0.0/27")}}}
	}
	if l.rng.IntN(2) == 0 {
		l.docs.Policies = []model.Policy{{Meta: model.Meta{Name: "payments"}, Rules: []model.Rule{
			{
				Name: "there-already", Action: model.ActionAllow, On: []model.PortRef{{Range: tcp(443)}},
				From: []model.Peer{{Workloads: model.MustParseSelector("env=prod")}}, To: []model.Peer{{Workloads: model.MustParseSelector("app=payments")}},
			},
			{
				Name: "no-dev", Action: model.ActionDeny, On: []model.PortRef{{Range: model.AnyPort}},
				From: []model.Peer{{Workloads: model.MustParseSelector("env=dev")}}, To: []model.Peer{{Workloads: model.MustParseSelector("role=db")}},
			},
		}}}
	}
	return l
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (l *landscape) labels() model.Labels {
	out := model.Labels{}
	for _, kv := range []struct {
		key    string
		values []string
	}{{keyApp, someApps}, {keyRole, someRoles}, {keyEnv, someEnvs}} {
		if l.rng.IntN(3) > 0 {
			out[kv.key] = pick(l.rng, kv.values)
		}
	}
	return out
}

func (l *landscape) end() (model.End, netip.Addr) {
	if len(l.outside) > 0 && l.rng.IntN(4) == 0 {
		a := pick(l.rng, l.outside)
		return model.End{Addr: a}, a
	}
	return model.End{Workload: pick(l.rng, l.names)}, netip.Addr{}
}

func (l *landscape) flows(n int) []model.RecordedFlow {
	var out []model.RecordedFlow
	ports := []model.PortRange{tcp(443), tcp(5432), tcp(22), udp(53), tcp(9000), {Proto: model.ProtoICMP, Lo: 0x800, Hi: 0x800}, udp(68), tcp(40000)}
	for range n {
		var f model.RecordedFlow
		f.From, f.FromAddr = l.end()
		f.To, f.ToAddr = l.end()
		p := pick(l.rng, ports)
		f.Proto, f.Port = p.Proto, p.Lo
		if l.rng.IntN(6) == 0 && p.Proto == model.ProtoTCP {
			f.Port = uint16(32768 + l.rng.IntN(32768))
		}
		f.Connections = 1 + uint64(l.rng.IntN(30))
		f.Verdict = model.Allow
		if l.rng.IntN(20) == 0 {
			f.Verdict = model.Deny
		}
		f.First = start.Add(time.Duration(l.rng.IntN(7200)) * time.Second)
		f.Last = f.First.Add(time.Minute)
		out = append(out, f)
	}
	return out
}

// compiled returns the evaluator of the world in which the proposal is accepted and every segment enforces.
func (l *landscape) compiled(t *testing.T, p *Proposal) *verdict.Evaluator {
	t.Helper()
	docs := policy.Merge(l.docs, p.Documents)
	for i := range docs.Segments {
		docs.Segments[i].Mode = model.ModeEnforce
	}
	again, err := policy.Parse([]policy.File{{Name: "proposal.yaml", Data: policy.Marshal(docs)}})
	if err != nil {
		t.Fatalf("the proposal is not valid: %v\n%s", err, policy.Marshal(docs))
	}
	inv, err := inventory.Build(again, l.reports, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := compile.Compile(again, inv, compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return verdict.New(w)
}

// TestEveryLearntFlowIsAllowed holds the promise of the package: in random worlds, every flow that is not left out for
// a stated reason is allowed by the proposal in mode enforce, by a rule; and no rule joins two environments that no
// flow joins.
func TestEveryLearntFlowIsAllowed(t *testing.T) {
	learned := 0
	for seed := range uint64(300) {
		l := newLandscape(seed)
		inv, err := inventory.Build(l.docs, l.reports, nil)
		if err != nil {
			t.Fatal(err)
		}
		flows := l.flows(1 + l.rng.IntN(150))
		p, err := Suggest(flows, inv, Options{Documents: l.docs})
		if err != nil {
			t.Fatal(err)
		}
		e := l.compiled(t, p)
		for i := range flows {
			fate := p.FateOf(i)
			if fate < FateUnmanaged {
				continue
			}
			learned++
			v, err := e.Judge(&flows[i].Flow)
			if err != nil {
				t.Fatal(err)
			}
			if v.Verdict != model.Allow {
				t.Fatalf("seed %d: %s flow %s to %s on %v is %v: %+v\n%s", seed, fate, flows[i].From, flows[i].To,
					model.PortRange{Proto: flows[i].Proto, Lo: flows[i].Port, Hi: flows[i].Port}, v.Verdict, v, policy.Marshal(p.Documents))
			}
		}
		checkEnvironments(t, seed, e.World(), p, flows)
	}
	if learned < 10000 {
		t.Fatalf("only %d flows were checked", learned)
	}
}

// checkEnvironments fails if a proposed rule lets one environment reach another which no flow reaches from it.
func checkEnvironments(t *testing.T, seed uint64, w *compile.World, p *Proposal, flows []model.RecordedFlow) {
	t.Helper()
	env := func(name string) (string, bool) {
		wl := w.Workload(name)
		if wl == nil {
			return "", false
		}
		v, ok := wl.Labels[keyEnv]
		return v, ok
	}
	seen := map[[2]string]bool{}
	for i := range flows {
		from, ok1 := env(flows[i].From.Workload)
		to, ok2 := env(flows[i].To.Workload)
		if ok1 && ok2 && p.FateOf(i) == FateLearned {
			seen[[2]string{from, to}] = true
		}
	}
	instances := w.Inventory().Instances
	for i := range p.Documents.Policies {
		for _, r := range p.Documents.Policies[i].Rules {
			for a := range instances {
				for b := range instances {
					from, ok1 := instances[a].Labels[keyEnv]
					to, ok2 := instances[b].Labels[keyEnv]
					if ok1 && ok2 && from != to && !seen[[2]string{from, to}] &&
						r.From[0].Kind == model.PeerWorkloads && r.From[0].Workloads.Matches(instances[a].Labels) &&
						r.To[0].Kind == model.PeerWorkloads && r.To[0].Workloads.Matches(instances[b].Labels) {
						t.Fatalf("seed %d: rule %s lets %s (%s) reach %s (%s)", seed, r.Name, instances[a].Name, from, instances[b].Name, to)
					}
				}
			}
		}
	}
}

// TestDeterministic: the order of the flows does not count.
func TestDeterministic(t *testing.T) {
	for seed := range uint64(40) {
		l := newLandscape(seed)
		inv, err := inventory.Build(l.docs, l.reports, nil)
		if err != nil {
			t.Fatal(err)
		}
		flows := l.flows(80)
		var want []byte
		for range 4 {
			p, err := Suggest(flows, inv, Options{Documents: l.docs})
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Append(policy.Marshal(p.Documents), p.Labels, p.Abstained, p.Rules, p.Suspicious, p.Unknown, p.Stats)
			if want != nil && !bytes.Equal(got, want) {
				t.Fatalf("seed %d: another order of flows gives another proposal:\n%s\n---\n%s", seed, got, want)
			}
			want = got
			slices.Reverse(flows)
			l.rng.Shuffle(len(flows), func(i, j int) { flows[i], flows[j] = flows[j], flows[i] })
		}
	}
}
