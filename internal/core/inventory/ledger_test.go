package inventory

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
)

// script is a sequence of changes in which names meet each other in every way: hosts that are units of others, units that are
// found under the name of a host, or under that of another unit.
type script struct {
	*rand.Rand
	workloads map[string]model.Workload
	reports   map[string]Report
	leases    map[string]Lease
}

var scriptNames = []string{"a", "b", "c", "a/b", "a/b/c", "b/c", "c/u", "a/u", "d"}
var scriptUnits = []string{"b", "c", "b/c", "u", "v", ""}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (s *script) labels() model.Labels {
	l := model.Labels{}
	for _, k := range []string{"app", "role"} {
		if s.IntN(2) == 0 {
			l[k] = pick(s.Rand, []string{"x", "y"})
		}
	}
	return l
}

func (s *script) addresses() []netip.Addr {
	var list []netip.Addr
	for range s.IntN(3) {
		list = append(list, netip.AddrFrom4([4]byte{10, 0, 0, byte(s.IntN(6))}))
	}
	return list
}

// workload declares a workload, or declares one no more.
func (s *script) workload() {
	name := pick(s.Rand, scriptNames)
	if s.IntN(3) == 0 {
		delete(s.workloads, name)
		return
	}
	w := model.Workload{Meta: model.Meta{Name: name, Labels: s.labels()}, Addresses: s.addresses(), Managed: s.IntN(4) > 0}
	if s.IntN(2) == 0 {
		w.Unit = &model.Unit{Host: pick(s.Rand, scriptNames), Name: pick(s.Rand, scriptUnits[:5])}
	}
	s.workloads[name] = w
}

func (s *script) report() Report {
	r := Report{Host: pick(s.Rand, scriptNames), Labels: s.labels(), Addresses: s.addresses()}
	for range s.IntN(3) {
		r.Units = append(r.Units, UnitReport{pick(s.Rand, scriptUnits)})
	}
	for range s.IntN(3) {
		r.Listeners = append(r.Listeners, ListenerReport{pick(s.Rand, scriptUnits), model.Listener{Proto: model.ProtoTCP, Port: uint16(s.IntN(4))}})
	}
	return r
}

func sorted[T any](m map[string]T) []T {
	var out []T
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

// TestLedgerIsBuild: after every step of random changes the ledger holds what Accept makes from scratch, says what differs from
// before, and refuses the same reports for the same reasons.
func TestLedgerIsBuild(t *testing.T) {
	refusals, sets, gone, kept := 0, 0, 0, 0
	for seed := range uint64(300) {
		s := &script{rand.New(rand.NewPCG(seed, 9)), map[string]model.Workload{}, map[string]Report{}, map[string]Lease{}}
		l := NewLedger()
		told := map[string]*model.Instance{}
		for step := range 40 {
			for range 1 + s.IntN(3) {
				switch s.IntN(8) {
				case 0, 1:
					before := maps.Clone(s.workloads)
					s.workload()
					err := l.SetWorkloads(sorted(s.workloads))
					_, _, want := Accept(&model.Documents{Workloads: sorted(s.workloads)}, nil, nil)
					if fmt.Sprint(err) != fmt.Sprint(want) {
						t.Fatalf("seed %d, step %d: error %v, want %v", seed, step, err, want)
					}
					if err != nil {
						s.workloads = before
					}
				case 2, 3, 4:
					r := s.report()
					s.reports[r.Host] = r
					l.SetReport(&r)
				case 5:
					host := pick(s.Rand, scriptNames)
					delete(s.reports, host)
					l.DropReport(host)
				case 6:
					x := Lease{Workload: pick(s.Rand, scriptNames), Level: model.QuarantineLevel(s.IntN(4)), InUse: []model.InUse{{Peer: "p"}}}
					s.leases[x.Workload] = x
					l.SetLease(x)
				case 7:
					name := pick(s.Rand, scriptNames)
					delete(s.leases, name)
					l.DropLease(name)
				}
			}
			out := l.Settle()
			for _, i := range out.Set {
				if told[i.Name] != nil && show(&model.Inventory{Instances: []model.Instance{*i}}) == show(&model.Inventory{Instances: []model.Instance{*told[i.Name]}}) {
					t.Fatalf("seed %d, step %d: %s is said to differ and does not", seed, step, i.Name)
				}
				told[i.Name] = i
				sets++
			}
			for _, n := range out.Gone {
				if told[n] == nil {
					t.Fatalf("seed %d, step %d: %s is said to be gone and was not there", seed, step, n)
				}
				delete(told, n)
				gone++
			}
			kept += len(told) - len(out.Set)
			inv, refused, err := Accept(&model.Documents{Workloads: sorted(s.workloads)}, append([]Report{}, sorted(s.reports)...), sorted(s.leases))
			if err != nil {
				t.Fatal(err)
			}
			held := &model.Inventory{}
			for _, i := range l.Instances() {
				if told[i.Name] != i || l.Instance(i.Name) != i {
					t.Fatalf("seed %d, step %d: %s was not told", seed, step, i.Name)
				}
				held.Instances = append(held.Instances, *i)
			}
			if got, want := show(held), show(inv); got != want || len(told) != len(inv.Instances) {
				t.Fatalf("seed %d, step %d:\ngot\n%s\nwant\n%s", seed, step, got, want)
			}
			for _, n := range scriptNames {
				if fmt.Sprint(l.Refused(n)) != fmt.Sprint(refused[n]) {
					t.Fatalf("seed %d, step %d: %s is refused for %v, want %v", seed, step, n, l.Refused(n), refused[n])
				}
				if refused[n] != nil {
					refusals++
				}
			}
		}
	}
	t.Logf("%d workloads set, %d gone, %d untouched, %d reports refused", sets, gone, kept, refusals)
	if min(sets, gone, kept, refusals) < 100 {
		t.Error("too few")
	}
}

// TestLedgerLooksAtLittle: a report is looked at with what hangs together with it, and nothing else.
func TestLedgerLooksAtLittle(t *testing.T) {
	l := NewLedger()
	if err := l.SetWorkloads([]model.Workload{unit("db", "h-7", "db.service", nil), host("h-7", nil, "10.0.0.7"), host("plc", nil, "10.0.9.9")}); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		l.SetReport(&Report{Host: fmt.Sprintf("h-%d", i), Units: []UnitReport{{"u"}}})
	}
	l.Settle()
	l.SetReport(&Report{Host: "h-7", Labels: model.Labels{"app": "x"}})
	out := l.Settle()
	var set []string
	for _, i := range out.Set {
		set = append(set, i.Name)
	}
	if got := strings.Join(set, " "); got != "db h-7" || !slices.Equal(out.Gone, []string{"h-7/u"}) {
		t.Errorf("%s differ, %v are gone", got, out.Gone)
	}
	if len(out.Looked) != 3 {
		t.Errorf("looked at %v", out.Looked)
	}
	l.SetReport(&Report{Host: "h-7", Labels: model.Labels{"app": "x"}})
	if out := l.Settle(); len(out.Set)+len(out.Gone) != 0 {
		t.Errorf("the same report changes %v", out.Set)
	}
}
