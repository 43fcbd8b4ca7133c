package inventory

import (
	"maps"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// Ledger is Accept for documents, reports and leases that change: it builds anew only the workloads that what changed may
// concern. Those are few, because workloads hang together by their names alone: a report with its host and with the units
// that it found, a declared unit with its host.
//
// A Ledger is not safe for use by several goroutines. What it is given, and what it gives, must not be written to.
type Ledger struct {
	declared map[string]*model.Workload
	units    map[string][]*model.Workload // host to the units that documents declare on it
	reports  map[string]*Report
	leases   map[string]Lease

	instances map[string]*model.Instance
	refused   map[string]error
	dirty     map[string]bool // names whose workloads must be built again
}

// NewLedger returns a ledger of nothing.
func NewLedger() *Ledger {
	return &Ledger{
		declared: map[string]*model.Workload{}, units: map[string][]*model.Workload{}, reports: map[string]*Report{}, leases: map[string]Lease{},
		instances: map[string]*model.Instance{}, refused: map[string]error{}, dirty: map[string]bool{},
	}
}

// SetWorkloads takes the workloads that documents declare in place of those before. It is cheap for those that are the same in
// memory or alike. The error is that of Build for the documents alone, and changes nothing.
func (l *Ledger) SetWorkloads(list []model.Workload) error {
	b := builder{byName: make(map[string]*model.Instance, len(list)), byUnit: map[unitKey]*model.Instance{}}
	if err := b.declare(list); err != nil {
		return err
	}
	before := l.declared
	l.declared, l.units = make(map[string]*model.Workload, len(list)), map[string][]*model.Workload{}
	for i := range list {
		w := &list[i]
		l.declared[w.Name] = w
		if w.Unit != nil {
			l.units[w.Unit.Host] = append(l.units[w.Unit.Host], w)
		}
		if old := before[w.Name]; old != nil {
			delete(before, w.Name)
			if sameWorkload(old, w) {
				continue
			}
			l.touch(old)
		}
		l.touch(w)
	}
	for _, old := range before {
		l.touch(old)
	}
	return nil
}

func (l *Ledger) touch(w *model.Workload) {
	l.dirty[w.Name] = true
	if w.Unit != nil {
		l.dirty[w.Unit.Host] = true
	}
}

// SetReport takes a report in place of the one that its host had.
func (l *Ledger) SetReport(r *Report) {
	l.DropReport(r.Host)
	l.reports[r.Host] = r
	l.touchReport(r)
}

// DropReport forgets the report of a host.
func (l *Ledger) DropReport(host string) {
	if r := l.reports[host]; r != nil {
		l.touchReport(r)
		delete(l.reports, host)
	}
}

func (l *Ledger) touchReport(r *Report) {
	l.dirty[r.Host] = true
	for _, u := range r.Units {
		l.dirty[unitName(r.Host, u.Name)] = true
	}
}

// SetLease takes a lease in place of the one that its workload had.
func (l *Ledger) SetLease(x Lease) {
	l.leases[x.Workload] = x
	l.dirty[x.Workload] = true
}

// DropLease forgets the lease of a workload.
func (l *Ledger) DropLease(workload string) {
	delete(l.leases, workload)
	l.dirty[workload] = true
}

// Outcome is what has become of changes.
type Outcome struct {
	Set  []*model.Instance // workloads that are new or differ, sorted by name
	Gone []string          // names of those that are there no more, sorted
	// Looked are the names that were looked at: of no other one can Ledger.Refused say something else than before.
	Looked []string
}

// Settle builds what the changes since the last call concern.
func (l *Ledger) Settle() *Outcome {
	out := &Outcome{}
	done := map[string]bool{}
	for name := range l.dirty {
		if !done[name] {
			part := l.part(name, done)
			l.build(part, out)
			out.Looked = append(out.Looked, part...)
		}
	}
	l.dirty = map[string]bool{} // not cleared: a map that was large once is slow to walk through
	slices.SortFunc(out.Set, func(a, b *model.Instance) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(out.Gone)
	return out
}

// Refused returns why the report of a host is left out, nil if it is not.
func (l *Ledger) Refused(host string) error { return l.refused[host] }

// Instance returns the workload of that name as of the last Settle, or nil.
func (l *Ledger) Instance(name string) *model.Instance { return l.instances[name] }

// Instances returns every workload as of the last Settle, sorted by name.
func (l *Ledger) Instances() []*model.Instance {
	out := slices.Collect(maps.Values(l.instances))
	slices.SortFunc(out, func(a, b *model.Instance) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// part returns every name that hangs together with the name, and notes them as done.
func (l *Ledger) part(name string, done map[string]bool) []string {
	list := []string{name}
	done[name] = true
	add := func(n string) {
		if !done[n] {
			done[n] = true
			list = append(list, n)
		}
	}
	for i := 0; i < len(list); i++ {
		n := list[i]
		if w := l.declared[n]; w != nil && w.Unit != nil {
			add(w.Unit.Host)
		}
		for _, w := range l.units[n] {
			add(w.Name)
		}
		if r := l.reports[n]; r != nil {
			for _, u := range r.Units {
				add(unitName(n, u.Name))
			}
		}
		// Hosts that may have found a unit which has this name.
		for at := range n {
			if n[at] != '/' || done[n[:at]] {
				continue
			}
			if r := l.reports[n[:at]]; r != nil && slices.Contains(r.Units, UnitReport{n[at+1:]}) {
				add(n[:at])
			}
		}
	}
	return list
}

// build builds a part from scratch.
func (l *Ledger) build(names []string, out *Outcome) {
	slices.Sort(names)
	var (
		docs    model.Documents
		leases  []Lease
		reports = []Report{} // not nil: there are agents to ask
	)
	for _, n := range names {
		if w := l.declared[n]; w != nil {
			docs.Workloads = append(docs.Workloads, *w)
		}
		if r := l.reports[n]; r != nil {
			reports = append(reports, *r)
		}
		if x, ok := l.leases[n]; ok {
			leases = append(leases, x)
		}
	}
	inv, refused, err := Accept(&docs, reports, leases)
	if err != nil {
		panic("inventory: workloads that were accepted together are refused in part: " + err.Error())
	}
	left := inv.Instances
	for _, n := range names {
		if delete(l.refused, n); refused[n] != nil {
			l.refused[n] = refused[n]
		}
		old := l.instances[n]
		if len(left) == 0 || left[0].Name != n {
			if old != nil {
				out.Gone = append(out.Gone, n)
				delete(l.instances, n)
			}
			continue
		}
		now := &left[0]
		left = left[1:]
		if old == nil || !sameInstance(old, now) {
			out.Set = append(out.Set, now)
			l.instances[n] = now
		}
	}
}

func sameInstance(a, b *model.Instance) bool {
	return a.Name == b.Name && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Addresses, b.Addresses) && a.Managed == b.Managed &&
		a.Host == b.Host && a.Unit == b.Unit && a.Node == b.Node && a.Quarantine.Level == b.Quarantine.Level &&
		slices.Equal(a.Quarantine.InUse, b.Quarantine.InUse) && slices.Equal(a.Listening, b.Listening)
}

// sameWorkload reports whether two documents declare the same.
func sameWorkload(a, b *model.Workload) bool {
	if a == b {
		return true
	}
	return a.Name == b.Name && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Addresses, b.Addresses) && a.Managed == b.Managed &&
		a.Node == b.Node && (a.Unit == nil) == (b.Unit == nil) && (a.Unit == nil || *a.Unit == *b.Unit)
}
