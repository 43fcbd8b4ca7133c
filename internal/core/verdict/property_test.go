package verdict_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/verdict"
)

// TestOracleAgrees compares the evaluator with the oracle on 120,000 generated pairs of policy and flow.
func TestOracleAgrees(t *testing.T) {
	pairs := 0
	for seed := uint64(0); pairs < 120_000; seed++ {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
		o := options(seed, inv)
		w, err := compile.Compile(docs, inv, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		e := verdict.New(w)
		for i := range flows {
			f := &flows[i]
			got, err := e.Judge(f)
			want, wantErr := oracle.Judge(docs, inv, o, f)
			pairs++
			if (err != nil) == (wantErr != nil) && got == want {
				continue
			}
			small := shrink(world{docs, inv}, func(w world) bool { return disagree(w, o, f) })
			t.Fatalf("seed %d flow %d: evaluator %v %v, oracle %v %v\n%s", seed, i, got, err, want, wantErr, describe(small, f))
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
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
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
