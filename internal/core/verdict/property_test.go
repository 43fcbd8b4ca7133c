package verdict_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/verdict"
)

// wantPairs is how many generated pairs of policy and flow the evaluator is compared with the oracle on. A pair that is
// an error for both, as it names an unknown workload or a shared address, is not among them.
const wantPairs, wantPairsShort = 1_000_000, 110_000

// TestOracleAgrees compares the evaluator with the oracle. What the pairs are about is counted, so that a generator
// which stops making something is noticed; TestEveryFeatureDecides does the same for the features of the language.
func TestOracleAgrees(t *testing.T) {
	met, want := tally{}, wantPairs
	if testing.Short() {
		want = wantPairsShort
	}
	for seed := uint64(0); met["judged"] < want; seed++ {
		docs, inv, flows := policytest.Generate(seed, policytest.Alternate(seed))
		o := options(seed, inv)
		w, err := compile.Compile(docs, inv, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		e := verdict.New(w)
		batchAgrees(t, seed, e, flows)
		for i := range flows {
			f := &flows[i]
			got, err := e.Judge(f)
			want, wantErr := oracle.Judge(docs, inv, o, f)
			if (err != nil) == (wantErr != nil) && got == want {
				met.add(inv, f, got, err)
				continue
			}
			small := shrink(world{docs, inv}, func(w world) bool { return disagree(w, o, f) })
			t.Fatalf("seed %d flow %d: evaluator %v %v, oracle %v %v\n%s", seed, i, got, err, want, wantErr, describe(small, f))
		}
	}
	met.check(t)
}

// batchAgrees compares batches of several lengths with judging one by one.
func batchAgrees(t *testing.T, seed uint64, e *verdict.Evaluator, flows []model.Flow) {
	t.Helper()
	b := e.NewBatch()
	judged := make([]verdict.Judged, verdict.BatchSize)
	together := make([]*model.Flow, verdict.BatchSize)
	for from, n := 0, 0; from < len(flows); from += n {
		n = min(1+(n+11)%verdict.BatchSize, len(flows)-from)
		for i := range n {
			together[i] = &flows[from+i]
		}
		b.Judge(judged, together[:n])
		for i := range n {
			want, wantErr := e.Judge(together[i])
			got := &judged[i]
			if got.FlowVerdict != want || fmt.Sprint(got.Err) != fmt.Sprint(wantErr) {
				t.Fatalf("seed %d flow %d: in a batch %v %v, alone %v %v", seed, from+i, got.FlowVerdict, got.Err, want, wantErr)
			}
		}
	}
}

// TestOracleAgreesOnLargeWorlds compares the two where tables are long and identities many.
func TestOracleAgreesOnLargeWorlds(t *testing.T) {
	size := policytest.Large
	size.Hosts, size.Policies, size.Flows = 300, 60, 300
	for seed := range uint64(2) {
		docs, inv, flows := policytest.Generate(seed, size)
		o := options(seed, inv)
		w, err := compile.Compile(docs, inv, o)
		if err != nil {
			t.Fatal(err)
		}
		e := verdict.New(w)
		for i := range flows {
			got, err := e.Judge(&flows[i])
			want, wantErr := oracle.Judge(docs, inv, o, &flows[i])
			if (err != nil) != (wantErr != nil) || got != want {
				f := &flows[i]
				t.Fatalf("seed %d flow %d (%s -> %s %s/%d): evaluator %v %v, oracle %v %v", seed, i, f.From, f.To, f.Proto, f.Port, got, err, want, wantErr)
			}
		}
	}
}

// tally counts what generated pairs were about.
type tally map[string]int

func (n tally) add(inv *model.Inventory, f *model.Flow, v model.FlowVerdict, err error) {
	if err != nil {
		n["error: "+strings.Fields(err.Error())[0]]++ // "no workload …" or "address … is shared …"
		return
	}
	n["judged"]++
	n["flow "+v.Verdict.String()]++
	for d, end := range map[model.Direction]model.EndVerdict{model.Egress: v.Egress, model.Ingress: v.Ingress} {
		kind := kindOf(end.Rule)
		n[fmt.Sprintf("%s %s %s", d, end.Verdict, kind)]++
		if kind == "rule" {
			n["rule on "+f.Proto.String()]++
		}
	}
	for _, end := range []model.End{f.From, f.To} {
		switch i := slices.IndexFunc(inv.Instances, func(i model.Instance) bool { return i.Name == end.Workload }); {
		case i >= 0:
			n["end by name"]++
		case end.Addr.Unmap().Is4():
			n["end by IPv4 address"]++
		default:
			n["end by IPv6 address"]++
		}
	}
}

// check fails the test where there were few of something.
func (n tally) check(t *testing.T) {
	t.Helper()
	want := map[string]int{
		"judged": 100_000, "flow allow": 10_000, "flow deny": 10_000, "flow would-deny": 5_000, "error: no": 500, "error: address": 500,
		"end by name": 10_000, "end by IPv4 address": 10_000, "end by IPv6 address": 2_000,
		"rule on tcp": 5_000, "rule on udp": 1_000, "rule on sctp": 1_000, "rule on icmp": 500, "rule on icmpv6": 500, "rule on 47": 100,
	}
	for _, d := range model.Directions {
		for text, least := range map[string]int{
			"allow rule": 1_000, "deny rule": 1_000, "would-deny rule": 500, "allow members": 100,
			"deny default-deny": 2_000, "would-deny default-deny": 1_000, "allow open": 2_000, "allow unmanaged": 5_000,
			"allow essential/same-workload": 500, "allow essential/dhcp": 200, "allow essential/neighbor-discovery": 200, "allow essential/icmp-error": 500,
			"allow essential/controller": 20, "allow essential/dns": 20, "allow essential/time": 20,
			"deny quarantine/isolate": 500, "deny quarantine/restrict": 500, "allow quarantine/forensic": 20,
		} {
			want[d.String()+" "+text] = least
		}
	}
	for what, least := range want {
		if n[what] < least {
			t.Errorf("%s: %d of the generated pairs, want %d", what, n[what], least)
		}
	}
}

// options are those under which a generated world is judged: at its moment, with controllers at some of its workloads
// and at an address that nobody owns.
func options(seed uint64, inv *model.Inventory) compile.Options {
	r := rand.New(rand.NewPCG(seed, 1))
	o := compile.Options{Now: policytest.Now, Controllers: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:8443")}}
	for range r.IntN(3) {
		if a := inv.Instances[r.IntN(len(inv.Instances))].Addresses; len(a) > 0 {
			o.Controllers = append(o.Controllers, netip.AddrPortFrom(a[r.IntN(len(a))], []uint16{443, 8443, 5432}[r.IntN(3)]))
		}
	}
	return o
}

// TestExplanationAgrees holds every explanation to the verdict that it explains.
func TestExplanationAgrees(t *testing.T) {
	seen := map[model.RuleID]int{}
	outcomes := map[verdict.Outcome]int{}
	for seed := uint64(0); seed < 300; seed++ {
		docs, inv, flows := policytest.Generate(seed, policytest.Alternate(seed))
		w, err := compile.Compile(docs, inv, options(seed, inv))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		e := verdict.New(w)
		for i := range flows {
			f := &flows[i]
			want, err := e.Judge(f)
			x, xErr := e.Explain(f)
			if err != nil || xErr != nil {
				if err == nil || xErr == nil || err.Error() != xErr.Error() {
					t.Fatalf("seed %d flow %d: Judge fails with %v, Explain with %v", seed, i, err, xErr)
				}
				continue
			}
			if x.Verdict != want.Verdict.String() ||
				x.Egress.Verdict != want.Egress.Verdict.String() || x.Egress.Rule != want.Egress.Rule ||
				x.Ingress.Verdict != want.Ingress.Verdict.String() || x.Ingress.Rule != want.Ingress.Rule {
				t.Fatalf("seed %d flow %d: verdict %v, explained as\n%s\n%s", seed, i, want, x.Text(), describe(world{docs, inv}, f))
			}
			for _, end := range []*verdict.EndExplanation{&x.Egress, &x.Ingress} {
				decided := 0
				for _, s := range end.Steps {
					outcomes[s.Outcome]++
					if s.Outcome == verdict.Decided {
						decided++
						seen[kindOf(s.Rule)]++
						if s.Rule != end.Rule || s.Why == "" || s.Why != end.Why {
							t.Fatalf("seed %d flow %d: step %+v decided, the end says %s (%s)", seed, i, s, end.Rule, end.Why)
						}
					}
				}
				if decided != 1 {
					t.Fatalf("seed %d flow %d: %d steps decided\n%s", seed, i, decided, x.Text())
				}
			}
		}
	}
	for _, rule := range []model.RuleID{
		"rule", "members", model.RuleOpen, model.RuleDefaultDeny, model.RuleUnmanaged, model.RuleDNS, model.RuleTime, model.RuleDHCP,
		model.RuleND, model.RuleICMPError, model.RuleController, model.RuleSameWorkload, model.RuleIsolate, model.RuleRestrict, model.RuleForensic,
	} {
		if seen[rule] < 10 {
			t.Errorf("%s decided only %d times: the generated worlds do not test it", rule, seen[rule])
		}
	}
	for _, o := range []verdict.Outcome{verdict.Decided, verdict.NoMatch, verdict.NotReached} {
		if outcomes[o] < 100 {
			t.Errorf("outcome %q came up only %d times", o, outcomes[o])
		}
	}
}

// kindOf folds rules of documents into one kind each.
func kindOf(rule model.RuleID) model.RuleID {
	switch {
	case strings.HasPrefix(string(rule), "pol-"):
		return "rule"
	case strings.HasPrefix(string(rule), "segment/"):
		return "members"
	}
	return rule
}

// describe writes everything that a verdict depends on.
func describe(w world, f *model.Flow) string {
	var b strings.Builder
	fmt.Fprintf(&b, "flow %s -> %s %s/%d\n", f.From, f.To, f.Proto, f.Port)
	b.Write(policy.Marshal(w.docs))
	for _, i := range w.inv.Instances {
		fmt.Fprintf(&b, "%+v\n", i)
	}
	return b.String()
}
