package policy_test

import (
	"fmt"
	"slices"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/verdict"
)

// TestFixesChangeNoVerdict does everything that findings say can be done by a program, all at once, to generated worlds:
// remove rules, elements of lists and segments, and write the merged rule in place of several. It also removes rules that
// match nobody. No flow may be judged otherwise. Findings that narrow a rule to its use are not of this kind.
func TestFixesChangeNoVerdict(t *testing.T) {
	done := map[string]int{}
	for seed := range uint64(150) {
		size := policytest.Small
		size.Policies, size.Rules, size.Segments, size.Flows = 5, 8, 5, 200
		docs, inv, flows := policytest.Generate(seed, size)
		addRelatives(docs)
		docs = parse(t, string(policy.Marshal(docs))) // now with positions
		f := &fixer{t: t, docs: docs, done: done}
		for _, x := range policy.Hygiene(docs, inv, policytest.Now) {
			f.fix(&x)
		}
		after := f.apply()
		options := compile.Options{Now: policytest.Now}
		before, err := compile.Compile(docs, inv, options)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		world, err := compile.Compile(after, inv, options)
		if err != nil {
			t.Fatalf("seed %d: after the fixes: %v\n%s", seed, err, policy.Marshal(after))
		}
		was, is := verdict.New(before), verdict.New(world)
		for i := range flows {
			v, err1 := was.Judge(&flows[i])
			w, err2 := is.Judge(&flows[i])
			if fmt.Sprint(err1) != fmt.Sprint(err2) || v.Egress.Verdict != w.Egress.Verdict || v.Ingress.Verdict != w.Ingress.Verdict {
				t.Fatalf("seed %d: flow %+v was %+v (%v) and is %+v (%v)\nfixes: %v\n%s\n=== after\n%s", seed, flows[i], v, err1, w, err2, f.log,
					policy.Marshal(docs), policy.Marshal(after))
			}
		}
	}
	t.Log(done)
	for _, what := range []string{"shadowed rule", "redundant rule", "duplicate rule", "contradictory rule", "expired rule", "redundant element", "mergeable rules", "never-matches rule"} {
		if done[what] == 0 {
			t.Errorf("no %s was fixed in all worlds: the test shows nothing of it", what)
		}
	}
}

// addRelatives adds to each policy rules that say nearly what others of it say.
func addRelatives(docs *model.Documents) {
	for i := range docs.Policies {
		p := &docs.Policies[i]
		for j, r := range slices.Clone(p.Rules) {
			twin := r
			twin.Name += "-twin"
			switch (i + j) % 4 {
			case 0:
				twin.On = []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: 8080, Hi: 8080}}}
			case 1:
				if twin.Action == model.ActionAllow {
					twin.Action = model.ActionDeny
				}
			case 2:
				twin.To = slices.Clone(r.To)
				at := slices.IndexFunc(twin.To[0].Workloads.Requirements, func(r model.Requirement) bool { return r.Op == model.OpIn })
				if at < 0 {
					continue
				}
				s := &twin.To[0].Workloads
				s.Requirements = slices.Clone(s.Requirements)
				s.Requirements[at].Values = []string{"api"}
				if s.Contradiction() != "" {
					continue
				}
			default:
				continue
			}
			p.Rules = append(p.Rules, twin)
		}
	}
}

// fixer collects what findings say to do, by position.
type fixer struct {
	t      *testing.T
	docs   *model.Documents
	done   map[string]int
	log    []string
	remove map[model.Position]bool
	merged map[model.Position]model.Rule
	nobody map[model.Position]bool // peers that match nobody
}

func (f *fixer) fix(x *policy.Finding) {
	if f.remove == nil {
		f.remove, f.merged, f.nobody = map[model.Position]bool{}, map[model.Position]model.Rule{}, map[model.Position]bool{}
	}
	if x.Code == policy.CodeNeverMatches {
		f.nobody[x.Pos] = true
	}
	if x.Edit == nil || x.Code == policy.CodeLookalike {
		return // a lookalike is mended, not simplified
	}
	f.log = append(f.log, x.String())
	if x.Edit.Replace == "" {
		f.remove[x.Pos] = true
		f.done[string(x.Code)+" "+f.what(x.Pos)]++
		return
	}
	text := "apiVersion: bulkhead/v1\nkind: Policy\nmetadata: {name: merged}\nspec: {rules: [" + x.Edit.Replace + "]}\n"
	read, err := policy.Read([]policy.File{{Name: "merged", Data: []byte(text)}})
	if err != nil || x.Code != policy.CodeMergeable {
		f.t.Fatalf("%s: cannot write %q: %v", x, x.Edit.Replace, err)
	}
	f.merged[x.Pos] = read.Policies[0].Rules[0]
	for _, p := range x.Also {
		f.remove[p] = true
	}
	f.done["mergeable rules"]++
}

func (f *fixer) what(pos model.Position) string {
	for _, p := range f.docs.Policies {
		if slices.ContainsFunc(p.Rules, func(r model.Rule) bool { return r.Pos == pos }) {
			return "rule"
		}
	}
	if slices.ContainsFunc(f.docs.Segments, func(s model.Segment) bool { return s.Pos == pos }) {
		return "segment"
	}
	return "element"
}

// apply returns the documents with everything done.
func (f *fixer) apply() *model.Documents {
	out := *f.docs
	out.Segments = slices.DeleteFunc(slices.Clone(out.Segments), func(s model.Segment) bool { return f.remove[s.Pos] })
	for i := range out.Segments {
		out.Segments[i].Services = f.ports(out.Segments[i].Services)
	}
	out.Policies = slices.Clone(out.Policies)
	for i := range out.Policies {
		p := &out.Policies[i]
		var rules []model.Rule
		for _, r := range p.Rules {
			if m, ok := f.merged[r.Pos]; ok {
				rules = append(rules, m)
				continue
			}
			nobody := func(p model.Peer) bool { return f.nobody[p.Pos] }
			matchesNobody := !slices.ContainsFunc(r.From, func(p model.Peer) bool { return !nobody(p) }) ||
				!slices.ContainsFunc(r.To, func(p model.Peer) bool { return !nobody(p) })
			if matchesNobody && !f.remove[r.Pos] {
				f.done["never-matches rule"]++
			}
			if f.remove[r.Pos] || matchesNobody {
				continue
			}
			r.From, r.To, r.On = f.peers(r.From), f.peers(r.To), f.ports(r.On)
			rules = append(rules, r)
		}
		p.Rules = rules
	}
	return &out
}

func (f *fixer) peers(list []model.Peer) []model.Peer {
	return slices.DeleteFunc(slices.Clone(list), func(p model.Peer) bool { return f.remove[p.Pos] })
}

func (f *fixer) ports(list []model.PortRef) []model.PortRef {
	return slices.DeleteFunc(slices.Clone(list), func(p model.PortRef) bool { return f.remove[p.Pos] })
}
