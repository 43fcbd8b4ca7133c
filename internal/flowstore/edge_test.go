package flowstore_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
)

var (
	start = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	hostA = netip.MustParseAddr("10.0.0.1")
	hostB = netip.MustParseAddr("10.0.0.2")
)

// record returns a record of n connections from second to second, from hostA to port 5432 of hostB.
func record(d model.Direction, workload, peer string, v model.Verdict, rule string, from, to int, n uint64) flowstore.Record {
	host := "b"
	if d == model.Egress {
		host = "a"
	}
	return flowstore.Record{
		Key: flowstore.Key{
			Host: host, Direction: d, Workload: workload, Peer: peer, Source: hostA, Dest: hostB,
			Proto: model.ProtoTCP, Port: 5432, Process: workload + "-process", Verdict: v, Rule: model.RuleID(rule),
		},
		Sums: flowstore.Sums{
			First: start.Add(time.Duration(from) * time.Second), Last: start.Add(time.Duration(to) * time.Second),
			Connections: n, BytesToServer: 100 * n, BytesToClient: 1000 * n,
		},
	}
}

func out(workload, peer string, v model.Verdict, rule string, from, to int, n uint64) flowstore.Record {
	return record(model.Egress, workload, peer, v, rule, from, to, n)
}

func in(workload, peer string, v model.Verdict, rule string, from, to int, n uint64) flowstore.Record {
	return record(model.Ingress, workload, peer, v, rule, from, to, n)
}

// lines returns an edge a line, sorted.
func lines(edges []flowstore.Edge) (list []string) {
	end := func(e *flowstore.EdgeEnd) string {
		if e == nil {
			return "-"
		}
		return fmt.Sprintf("%s %s %d", e.Verdict, e.Rule, e.Connections)
	}
	for i := range edges {
		e := &edges[i]
		list = append(list, fmt.Sprintf("%s>%s %s x%d [%s|%s] %s", e.From, e.To, e.Verdict, e.Connections, end(e.Egress), end(e.Ingress), e.Seen()))
	}
	slices.Sort(list)
	return list
}

func TestJoin(t *testing.T) {
	const allow, would, deny = model.Allow, model.WouldDeny, model.Deny
	exact := func(r flowstore.Record) flowstore.Record {
		r.Exact, r.Host = true, "a"
		return r
	}
	loopback := func(host string, r flowstore.Record) flowstore.Record {
		r.Host, r.Source, r.Dest = host, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")
		return r
	}
	for _, c := range []struct {
		name    string
		records []flowstore.Record
		want    []string
	}{
		{"both ends", []flowstore.Record{
			out("web", "db", allow, "p/r", 0, 9, 10), in("db", "web", allow, "p/r", 0, 9, 10),
		}, []string{"web>db allow x10 [allow p/r 10|allow p/r 10] both"}},

		{"windows add up", []flowstore.Record{
			out("web", "db", allow, "p/r", 0, 4, 3), out("web", "db", allow, "p/r", 5, 9, 4), in("db", "web", allow, "p/r", 0, 9, 7),
		}, []string{"web>db allow x7 [allow p/r 7|allow p/r 7] both"}},

		{"source only, to nobody", []flowstore.Record{out("web", "", allow, "open", 0, 9, 1)},
			[]string{"web> allow x1 [allow open 1|-] source"}},

		{"destination only", []flowstore.Record{in("db", "web", would, "default-deny", 0, 9, 1)},
			[]string{"web>db would-deny x1 [-|would-deny default-deny 1] destination"}},

		{"the stricter end decides, the greater count counts", []flowstore.Record{
			out("web", "db", allow, "p/r", 0, 9, 2), in("db", "web", deny, "default-deny", 0, 9, 6),
		}, []string{"web>db deny x6 [allow p/r 2|deny default-deny 6] both"}},

		{"what the source denied never arrived", []flowstore.Record{
			out("web", "db", deny, "default-deny", 5, 9, 4), out("web", "db", allow, "p/r", 0, 4, 3), in("db", "web", allow, "p/r", 0, 4, 3),
		}, []string{
			"web>db allow x3 [allow p/r 3|allow p/r 3] both",
			"web>db deny x4 [deny default-deny 4|-] source",
		}},

		{"a shared source: each end is exact about its own", []flowstore.Record{
			out("u1", "db", allow, "p/r", 0, 8, 10), out("u2", "db", allow, "p/r", 1, 9, 5), in("db", "a", allow, "p/r", 0, 9, 15),
		}, []string{
			"u1>db allow x10 [allow p/r 10|allow p/r 10] both",
			"u2>db allow x5 [allow p/r 5|allow p/r 5] both",
		}},

		{"a shared destination: the name is that of its own end", []flowstore.Record{
			out("web", "b", allow, "p/r", 0, 9, 4), in("u1", "web", allow, "p/r", 0, 9, 4),
		}, []string{"web>u1 allow x4 [allow p/r 4|allow p/r 4] both"}},

		{"before and after a change of policy", []flowstore.Record{
			out("web", "db", allow, "open", 0, 4, 10), out("web", "db", would, "default-deny", 5, 9, 5),
			in("db", "web", allow, "open", 0, 4, 10), in("db", "web", would, "default-deny", 5, 9, 5),
		}, []string{
			"web>db allow x10 [allow open 10|allow open 10] both",
			"web>db would-deny x5 [would-deny default-deny 5|would-deny default-deny 5] both",
		}},

		{"one rule at the source, two at the destination", []flowstore.Record{
			out("web", "db", allow, "p/r", 0, 9, 12), in("db", "web", allow, "p/r", 0, 5, 10), in("db", "web", deny, "p/no", 6, 9, 2),
		}, []string{
			"web>db allow x10 [allow p/r 10|allow p/r 10] both",
			"web>db deny x2 [allow p/r 2|deny p/no 2] both",
		}},

		{"a long-lived connection opens nothing in the window", []flowstore.Record{
			out("web", "db", allow, "p/r", 0, 9, 0), in("db", "web", allow, "p/r", 0, 9, 0),
		}, []string{"web>db allow x0 [allow p/r 0|allow p/r 0] both"}},

		{"long-lived beside short ones", []flowstore.Record{
			out("web", "db", allow, "p/r", 0, 9, 3), out("job", "db", allow, "p/r", 0, 8, 0), in("db", "a", allow, "p/r", 0, 9, 3),
		}, []string{
			"web>db allow x3 [allow p/r 3|allow p/r 3] both",
			"job>db allow x0 [allow p/r 0|allow p/r 0] both",
		}},

		{"same host: the kernel knows both", []flowstore.Record{
			exact(out("u1", "u3", allow, "p/1", 0, 8, 2)), exact(in("u3", "u1", allow, "p/1", 0, 8, 2)),
			exact(out("u2", "u3", allow, "p/2", 0, 9, 7)), exact(in("u3", "u2", allow, "p/2", 0, 9, 7)),
		}, []string{
			"u1>u3 allow x2 [allow p/1 2|allow p/1 2] both",
			"u2>u3 allow x7 [allow p/2 7|allow p/2 7] both",
		}},

		{"loopback means another machine on every host", []flowstore.Record{
			loopback("a", out("x", "", allow, "open", 0, 8, 1)), loopback("b", in("y", "", allow, "open", 0, 9, 1)),
		}, []string{
			"x> allow x1 [allow open 1|-] source",
			">y allow x1 [-|allow open 1] destination",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var j flowstore.Joiner
			for i := range c.records {
				j.Add(&c.records[i])
			}
			slices.Sort(c.want)
			if d := cmp.Diff(c.want, lines(j.Edges())); d != "" {
				t.Errorf("edges (-want +got):\n%s", d)
			}
		})
	}
}

func TestJoinKeepsProcessesAndBytes(t *testing.T) {
	o, i := out("web", "db", model.Allow, "p/r", 0, 9, 2), in("db", "web", model.Allow, "p/r", 1, 8, 2)
	o.Path, i.Path, i.BytesToClient = "/usr/bin/web", "/usr/bin/db", 5000
	var j flowstore.Joiner
	j.Add(&o)
	j.Add(&i)
	edges := j.Edges()
	if len(edges) != 1 {
		t.Fatalf("%d edges, want 1", len(edges))
	}
	e := edges[0]
	if e.FromProcess != "web-process" || e.ToProcess != "db-process" || e.FromPath != "/usr/bin/web" || e.ToPath != "/usr/bin/db" {
		t.Errorf("processes %q (%s) and %q (%s)", e.FromProcess, e.FromPath, e.ToProcess, e.ToPath)
	}
	if e.BytesToServer != 200 || e.BytesToClient != 5000 || !e.First.Equal(o.First) || !e.Last.Equal(o.Last) {
		t.Errorf("edge %+v", e)
	}
	if e.FromAddr != hostA || e.ToAddr != hostB || e.Proto != model.ProtoTCP || e.Port != 5432 {
		t.Errorf("edge %+v", e)
	}
}

// TestJoinLosesNothing checks on random records that the connections and bytes of each end are all in the edges, that
// the order of records does not matter, and that every record is in an edge.
func TestJoinLosesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for round := range 2000 {
		var records []flowstore.Record
		for range 1 + r.IntN(8) {
			from := r.IntN(50)
			n := uint64(r.IntN(6))
			if r.IntN(10) == 0 {
				n = r.Uint64N(1 << 40)
			}
			v := []model.Verdict{model.Allow, model.WouldDeny, model.Deny}[r.IntN(3)]
			if r.IntN(2) == 0 {
				records = append(records, out(pick("u1", "u2", "u3"), "db", v, pick("p/1", "p/2"), from, from+r.IntN(10), n))
			} else {
				records = append(records, in(pick("d1", "d2"), "a", v, pick("p/1", "p/2"), from, from+r.IntN(10), n))
			}
		}
		var j, shuffled flowstore.Joiner
		want := map[model.Direction]uint64{}
		for i := range records {
			j.Add(&records[i])
			want[records[i].Direction] += records[i].Connections
		}
		for _, i := range r.Perm(len(records)) {
			shuffled.Add(&records[i])
		}
		edges := j.Edges()
		if d := cmp.Diff(edges, shuffled.Edges(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Fatalf("round %d: the order of records matters:\n%s", round, d)
		}
		got := map[model.Direction]uint64{}
		names := map[string]bool{}
		for i := range edges {
			e := &edges[i]
			if e.Egress != nil {
				got[model.Egress] += e.Egress.Connections
				names[e.From] = true
			}
			if e.Ingress != nil {
				got[model.Ingress] += e.Ingress.Connections
				names[e.To] = true
			}
			if e.Egress != nil && e.Ingress != nil && e.Egress.Verdict == model.Deny {
				t.Fatalf("round %d: a flow that its source denied arrived: %+v", round, e)
			}
		}
		if got[model.Egress] != want[model.Egress] || got[model.Ingress] != want[model.Ingress] {
			t.Fatalf("round %d: connections %v, want %v\n%v", round, got, want, lines(edges))
		}
		for i := range records {
			if !names[records[i].Workload] {
				t.Fatalf("round %d: no edge of %s in %v", round, records[i].Workload, lines(edges))
			}
		}
	}
}

func TestTakeWaitsForTheOtherEnd(t *testing.T) {
	var j flowstore.Joiner
	came := start
	add := func(r flowstore.Record) { j.AddAt(&r, came) }
	add(out("web", "db", model.Allow, "p/r", 0, 1, 1))
	if edges := j.Take(came); len(edges) != 0 {
		t.Fatalf("an edge of which one end has spoken was not held back: %v", lines(edges))
	}
	came = came.Add(time.Second)
	add(in("db", "web", model.Allow, "p/r", 0, 1, 1))
	if d := cmp.Diff([]string{"web>db allow x1 [allow p/r 1|allow p/r 1] both"}, lines(j.Take(start))); d != "" {
		t.Errorf("after both ends:\n%s", d)
	}
	if edges := j.Take(came.Add(time.Hour)); len(edges) != 0 {
		t.Errorf("an edge was taken twice: %v", lines(edges))
	}
	add(out("web", "db", model.Deny, "default-deny", 2, 3, 1)) // nothing is to come from the other end
	if edges := j.Take(start); len(edges) != 1 {
		t.Errorf("a flow that its source denied was held back")
	}
	add(in("db", "web", model.Allow, "p/r", 4, 5, 1))
	if edges := j.Take(came.Add(time.Second)); len(edges) != 1 || edges[0].Seen() != "destination" {
		t.Errorf("an edge that waited long enough was not given: %v", lines(edges))
	}
}

func BenchmarkJoin(b *testing.B) {
	records := make([]flowstore.Record, 0, 20_000)
	for i := range 10_000 {
		o, n := out("web", "db", model.Allow, "p/r", 0, 9, 10), in("db", "web", model.Allow, "p/r", 0, 9, 10)
		o.Source = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		n.Source = o.Source
		records = append(records, o, n)
	}
	b.ReportAllocs()
	for b.Loop() {
		var j flowstore.Joiner
		for i := range records {
			j.Add(&records[i])
		}
		if n := len(j.Edges()); n != 10_000 {
			b.Fatal(n)
		}
	}
}
