package verdict_test

import (
	"slices"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/verdict"
)

// world is what a property is about.
type world struct {
	docs *model.Documents
	inv  *model.Inventory
}

// shrink leaves out whatever the property fails without: what it prints is what a person must look at.
func shrink(w world, fails func(world) bool) world {
	for again := true; again; {
		again = false
		for _, smaller := range smallerWorlds(w) {
			if fails(smaller) {
				w, again = smaller, true
				break
			}
		}
	}
	return w
}

// smallerWorlds returns every world with one thing less.
func smallerWorlds(w world) []world {
	var out []world
	docs := func(change func(d *model.Documents)) {
		d := *w.docs
		change(&d)
		out = append(out, world{&d, w.inv})
	}
	for i := range w.docs.Policies {
		docs(func(d *model.Documents) { d.Policies = without(d.Policies, i) })
		for k := range w.docs.Policies[i].Rules {
			rule := func(change func(r *model.Rule)) {
				docs(func(d *model.Documents) {
					d.Policies = slices.Clone(d.Policies)
					d.Policies[i].Rules = slices.Clone(d.Policies[i].Rules)
					change(&d.Policies[i].Rules[k])
				})
			}
			docs(func(d *model.Documents) {
				d.Policies = slices.Clone(d.Policies)
				d.Policies[i].Rules = without(d.Policies[i].Rules, k)
			})
			r := &w.docs.Policies[i].Rules[k]
			for m := range r.From {
				rule(func(r *model.Rule) { r.From = without(r.From, m) })
			}
			for m := range r.To {
				rule(func(r *model.Rule) { r.To = without(r.To, m) })
			}
			for m := range r.On {
				rule(func(r *model.Rule) { r.On = without(r.On, m) })
			}
		}
	}
	for i := range w.docs.Segments {
		docs(func(d *model.Documents) { d.Segments = without(d.Segments, i) })
	}
	for i := range w.docs.Networks {
		docs(func(d *model.Documents) { d.Networks = without(d.Networks, i) })
	}
	for i := range w.docs.Services {
		docs(func(d *model.Documents) { d.Services = without(d.Services, i) })
	}
	docs(func(d *model.Documents) { d.Workloads, d.Guardrails, d.Expectations = nil, nil, nil })
	if len(w.docs.Workloads)+len(w.docs.Guardrails)+len(w.docs.Expectations) == 0 {
		out = out[:len(out)-1]
	}
	for i := range w.inv.Instances {
		out = append(out, world{w.docs, &model.Inventory{Instances: without(w.inv.Instances, i)}})
	}
	return out
}

func without[T any](list []T, i int) []T { return slices.Delete(slices.Clone(list), i, i+1) }

// disagree reports whether evaluator and oracle differ about the flow. A world that does not compile is no example.
func disagree(w world, o compile.Options, f *model.Flow) bool {
	compiled, err := compile.Compile(w.docs, w.inv, o)
	if err != nil {
		return false
	}
	got, gotErr := verdict.New(compiled).Judge(f)
	want, wantErr := oracle.Judge(w.docs, w.inv, o, f)
	return (gotErr != nil) != (wantErr != nil) || got != want
}

// TestShrinkFindsTheCause shrinks a world to what one verdict hangs on.
func TestShrinkFindsTheCause(t *testing.T) {
	o := compile.Options{Now: policytest.Now}
	for seed := uint64(0); ; seed++ {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
		for i := range flows {
			want, err := oracle.Judge(docs, inv, o, &flows[i])
			if err != nil || kindOf(want.Ingress.Rule) != "rule" {
				continue
			}
			small := shrink(world{docs, inv}, func(w world) bool {
				got, err := oracle.Judge(w.docs, w.inv, o, &flows[i])
				return err == nil && got.Ingress.Rule == want.Ingress.Rule
			})
			if n := len(small.docs.Policies); n != 1 || len(small.docs.Policies[0].Rules) != 1 || len(small.inv.Instances) > 2 {
				t.Errorf("a rule's verdict needs %d policies and %d workloads:\n%s", n, len(small.inv.Instances), describe(small, &flows[i]))
			}
			return
		}
	}
}
