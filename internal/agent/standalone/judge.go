package standalone

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	coreinventory "bulkhead/internal/core/inventory"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/diff"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
	"bulkhead/internal/kube"
)

// report is what this host says of itself, as an agent says it to a controller.
func (k *Keeper) report() coreinventory.Report {
	f := k.deps.Found()
	r := coreinventory.Report{Host: k.cfg.Host, Labels: k.cfg.Labels, Addresses: f.Addresses}
	for name := range f.Units {
		r.Units = append(r.Units, coreinventory.UnitReport{Name: name})
	}
	for _, l := range f.Listeners {
		r.Listeners = append(r.Listeners, coreinventory.ListenerReport{
			Unit: l.Unit, Listener: model.Listener{Addr: l.Addr, Proto: l.Proto, Port: l.Port, Process: l.Process},
		})
	}
	return r
}

// compile makes the policy of this host of the documents.
func (k *Keeper) compile(v *version) (*compile.World, *hostpolicy.Policy, error) {
	inv, err := coreinventory.Build(v.docs, []coreinventory.Report{k.report()}, nil)
	if err != nil {
		return nil, nil, err
	}
	w, err := compile.Compile(v.docs, inv, compile.Options{Now: time.Now()})
	if err != nil {
		return nil, nil, err
	}
	p, ok := w.HostPolicy(k.cfg.Host)
	if !ok {
		return nil, nil, fmt.Errorf("workload %q is no host", k.cfg.Host)
	}
	p.Revision = v.number
	return w, p, nil
}

// parse reads the documents of a version; why is what is wrong with them.
func (v *version) parse() (why []string) {
	if len(v.files) == 0 {
		v.docs = &model.Documents{}
		return nil
	}
	docs, findings, err := kube.Load(v.files)
	v.docs, v.findings = docs, findings
	return lines(err)
}

// lines returns an error's problems, one a text.
func lines(err error) []string {
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

// judge parses and compiles a version and asks it about itself. why is what is wrong with it, each with its place.
func (k *Keeper) judge(v *version) (w *compile.World, p *hostpolicy.Policy, why []string) {
	if why := v.parse(); len(why) > 0 {
		return nil, nil, why
	}
	w, p, err := k.compile(v)
	if err != nil {
		return nil, nil, lines(err)
	}
	for _, r := range plan.Unmet(k.world, w, k.targets()) {
		if r.At != "" {
			r.Text = r.At + ": " + r.Text
		}
		why = append(why, lines(errors.New(r.Text))...)
	}
	return w, p, why
}

// targets says what this host can hold; others have no agent here and are not asked about.
func (k *Keeper) targets() budget.Targets {
	return func(string) (budget.Target, bool) { return k.deps.Target, true }
}

// closes says what passed before and is denied in the world. It asks only where that matters: not if a change is for other
// hosts that share the documents.
func (k *Keeper) closes(w *compile.World, p *hostpolicy.Policy) ([]string, error) {
	if k.cfg.Confirm == 0 {
		return nil, nil
	}
	back := k.accepted
	if back == nil {
		back = nothing()
	}
	before, was, err := k.compile(back)
	if err != nil {
		return nil, err
	}
	if was.Hash() == p.Hash() {
		return nil, nil
	}
	d := diff.Between(before, w)
	var out []string
	for i := range d.Closed {
		c := &d.Closed[i]
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s -> %s on %s %s", strings.Join(c.From, " or "), strings.Join(c.To, " or "),
			strings.Join(c.On, " "), c.Whose())))
	}
	return out, nil
}

// Explain implements status.Documents.
func (k *Keeper) Explain(from, to, on string) (*verdict.Explanation, error) {
	k.mu.Lock()
	w := k.world
	k.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("no documents of %s are in force", k.cfg.Dir)
	}
	f, err := verdict.Question(w.Inventory(), from, to, on)
	var unknown *verdict.UnknownError
	if errors.As(err, &unknown) {
		var names []string
		for i := range w.Inventory().Instances {
			names = append(names, w.Inventory().Instances[i].Name)
		}
		return nil, fmt.Errorf("%w%s", err, policy.DidYouMean(unknown.Name, names))
	}
	if err != nil {
		return nil, err
	}
	return verdict.New(w).Explain(f)
}

// Plan implements status.Documents.
func (k *Keeper) Plan(_ context.Context, files []policy.File) (*plan.Plan, error) {
	seen := k.deps.Flows() // asks for the world in force
	k.mu.Lock()
	defer k.mu.Unlock()
	next := &version{files: files}
	base := plan.Options{Targets: k.targets()}
	if now := k.now(); now != nil {
		base.BaseRevision = now.number
	}
	if why := next.parse(); len(why) > 0 {
		return nil, errors.New(strings.Join(why, "\n"))
	}
	after, _, err := k.compile(next)
	if err != nil {
		return nil, err
	}
	before := k.world
	if before == nil {
		if before, _, err = k.compile(nothing()); err != nil {
			return nil, err
		}
	}
	return plan.Make(before, after, renamed(seen, before, after), base)
}

// renamed returns recorded flows with the names that their workloads have after a change: a unit is called after its host until a
// document gives it a name.
func renamed(seen []model.RecordedFlow, before, after *compile.World) []model.RecordedFlow {
	type part struct{ host, unit string }
	now := map[part]string{}
	for i := range after.Inventory().Instances {
		in := &after.Inventory().Instances[i]
		now[part{in.Host, in.Unit}] = in.Name
	}
	rename := func(e *model.End) {
		if was := before.Workload(e.Workload); was != nil && was.Host != "" && after.Workload(e.Workload) == nil {
			if name, ok := now[part{was.Host, was.Unit}]; ok {
				e.Workload = name
			}
		}
	}
	out := slices.Clone(seen)
	for i := range out {
		rename(&out[i].From)
		rename(&out[i].To)
	}
	return out
}

// maxNotes bounds what is said about documents that are right by the rules.
const maxNotes = 20

// noted are the notes about a version in a world.
type noted struct {
	version *version
	world   *compile.World
	notes   []string
}

// notes returns what may surprise about what is in force. The caller holds mu.
func (k *Keeper) notes() []string {
	v := k.now()
	if v == nil || k.world == nil {
		return nil
	}
	if k.noted.version != v || k.noted.world != k.world {
		k.noted = noted{v, k.world, k.surprises(v)}
	}
	return k.noted.notes
}

func (k *Keeper) surprises(v *version) (out []string) {
	if v.number > 0 && !k.anySegment() {
		out = append(out, fmt.Sprintf("no segment selects %s or a unit of it: nothing is dropped here", k.cfg.Host))
	}
	for _, a := range k.deps.Found().Addresses {
		for i := range v.docs.Workloads {
			w := &v.docs.Workloads[i]
			if w.Name != k.cfg.Host && w.Unit == nil && slices.ContainsFunc(w.Addresses, func(b netip.Addr) bool { return b.Unmap() == a }) {
				out = append(out, fmt.Sprintf("%s: workload %s has address %s, which is this host's: if it is this host, set `host: %s` in the agent's configuration", w.Pos, w.Name, a, w.Name))
			}
		}
	}
	for _, f := range slices.Concat(v.findings, policy.Hygiene(v.docs, k.world.Inventory(), time.Now())) {
		out = append(out, f.String())
	}
	if n := len(out); n > maxNotes {
		out = append(out[:maxNotes], fmt.Sprintf("and %d more: bulkhead check -f %s", n-maxNotes, k.cfg.Dir))
	}
	return out
}

// anySegment reports whether a segment selects a workload of this host.
func (k *Keeper) anySegment() bool {
	for i := range k.world.Inventory().Instances {
		in := &k.world.Inventory().Instances[i]
		if in.Host == k.cfg.Host && len(k.world.Segments(k.world.Workload(in.Name))) > 0 {
			return true
		}
	}
	return false
}

func countDocuments(d *model.Documents) int {
	return len(d.Services) + len(d.Networks) + len(d.Workloads) + len(d.Segments) + len(d.Policies) + len(d.Guardrails) +
		len(d.Expectations) + len(d.OneSided)
}
