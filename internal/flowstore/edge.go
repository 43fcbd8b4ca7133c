package flowstore

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"bulkhead/internal/core/model"
)

// Edge is one communication as both ends recorded it.
type Edge struct {
	From, To               string // workload; "" if no workload had the address
	FromAddr, ToAddr       netip.Addr
	Proto                  model.Proto
	Port                   uint16        // destination port; of ICMP type<<8|code
	FromProcess, ToProcess string        // names
	FromPath, ToPath       string        // executables
	Egress, Ingress        *EdgeEnd      // nil: that end said nothing
	Verdict                model.Verdict // over both ends, or of the one that spoke
	First, Last            time.Time
	Connections            uint64 // the greater of the two ends; so are the bytes
	BytesToServer          uint64
	BytesToClient          uint64
}

// EdgeEnd is what one end recorded of an edge.
type EdgeEnd struct {
	Verdict     model.Verdict
	Rule        model.RuleID
	Connections uint64
}

// Seen says which ends recorded the edge: both, source or destination.
func (e *Edge) Seen() string {
	switch {
	case e.Egress == nil:
		return "destination"
	case e.Ingress == nil:
		return "source"
	}
	return "both"
}

// Joiner makes edges of records. It is for one goroutine; the zero value is ready.
//
// Records of both ends are brought together by source address, destination address, protocol and destination port.
// Each end knows exactly which workload it speaks of, and only guesses the other from a shared address, so an edge
// takes each name from that name's own end. Where several workloads or rules stand on one side, the connections of
// both sides are laid side by side in the order of time: this gives every workload its own share, keeps the sums of
// both sides, and puts what happened before a change of policy with what happened before it at the other end.
type Joiner struct {
	groups map[group]*sides
}

// group is what both ends of one communication agree on.
type group struct {
	scope        string // the host, for addresses that mean something on one host only and for peers the kernel knew
	source, dest netip.Addr
	proto        model.Proto
	port         uint16
	from, to     string // set where the kernel knew both
}

type sides struct {
	egress, ingress rows
	since           time.Time // when the first record came, for Take
}

// rows are the distinct records of one side.
type rows struct {
	list  []Record
	index map[Key]int
}

func (r *rows) add(rec *Record) {
	if i, ok := r.index[rec.Key]; ok {
		r.list[i].Sums.Add(&rec.Sums)
		return
	}
	if r.index == nil {
		r.index = map[Key]int{}
	}
	r.index[rec.Key] = len(r.list)
	r.list = append(r.list, *rec)
}

// Add adds a record.
func (j *Joiner) Add(rec *Record) { j.AddAt(rec, time.Time{}) }

// AddAt adds a record that came at a time, for Take.
func (j *Joiner) AddAt(rec *Record, at time.Time) {
	g := group{source: rec.Source, dest: rec.Dest, proto: rec.Proto, port: rec.Port}
	if rec.Exact || local(rec.Source) || local(rec.Dest) {
		g.scope = rec.Host
	}
	if rec.Exact {
		g.from, g.to = rec.Workload, rec.Peer
		if rec.Direction == model.Ingress {
			g.from, g.to = rec.Peer, rec.Workload
		}
	}
	s := j.groups[g]
	if s == nil {
		if j.groups == nil {
			j.groups = map[group]*sides{}
		}
		s = &sides{since: at}
		j.groups[g] = s
	}
	if rec.Direction == model.Egress {
		s.egress.add(rec)
	} else {
		s.ingress.add(rec)
	}
}

func local(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() }

// Edges returns the edges, latest first.
func (j *Joiner) Edges() []Edge {
	var edges []Edge
	for _, s := range j.groups {
		edges = s.join(edges)
	}
	slices.SortFunc(edges, compareEdges)
	return edges
}

// Take returns the edges of which both ends have spoken or that can have one end only, and those that have waited
// since before, latest first. They are not in the joiner any more.
func (j *Joiner) Take(before time.Time) []Edge {
	var edges []Edge
	for g, s := range j.groups {
		if s.complete() || s.since.Before(before) {
			edges = s.join(edges)
			delete(j.groups, g)
		}
	}
	slices.SortFunc(edges, compareEdges)
	return edges
}

// complete reports whether nothing is to come from another end.
func (s *sides) complete() bool {
	if len(s.ingress.list) > 0 {
		return len(s.egress.list) > 0
	}
	for i := range s.egress.list {
		if s.egress.list[i].Verdict != model.Deny {
			return false
		}
	}
	return true
}

func compareEdges(a, b Edge) int {
	if c := b.Last.Compare(a.Last); c != 0 {
		return c
	}
	return cmp.Or(
		cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), a.FromAddr.Compare(b.FromAddr), a.ToAddr.Compare(b.ToAddr),
		cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.FromProcess, b.FromProcess), cmp.Compare(a.ToProcess, b.ToProcess),
		cmp.Compare(a.FromPath, b.FromPath), cmp.Compare(a.ToPath, b.ToPath),
		compareEnds(a.Egress, b.Egress), compareEnds(a.Ingress, b.Ingress), cmp.Compare(b.Connections, a.Connections),
	)
}

func compareEnds(a, b *EdgeEnd) int {
	if a == nil || b == nil {
		return cmp.Compare(btoi(a != nil), btoi(b != nil))
	}
	return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Rule, b.Rule))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s *sides) join(edges []Edge) []Edge {
	var out []*Record // what may have reached the other end
	for i := range s.egress.list {
		if r := &s.egress.list[i]; r.Verdict == model.Deny {
			edges = append(edges, edge(r, nil)) // dropped at the source: the other end cannot have seen it
		} else {
			out = append(out, r)
		}
	}
	in := make([]*Record, len(s.ingress.list))
	for i := range in {
		in[i] = &s.ingress.list[i]
	}
	switch {
	case len(in) == 0:
		for _, r := range out {
			edges = append(edges, edge(r, nil))
		}
		return edges
	case len(out) == 0:
		for _, r := range in {
			edges = append(edges, edge(nil, r))
		}
		return edges
	}
	slices.SortFunc(out, compareRecords)
	slices.SortFunc(in, compareRecords)
	for _, p := range match(out, in) {
		edges = append(edges, edge(&p.out, &p.in))
	}
	return edges
}

// edge makes an edge of what each end recorded; one of them may be nil.
func edge(out, in *Record) Edge {
	var e Edge
	fill := func(r *Record, own, peer, process, path *string) *EdgeEnd {
		if *own = r.Workload; *peer == "" {
			*peer = r.Peer
		}
		*process, *path = r.Process, r.Path
		e.FromAddr, e.ToAddr, e.Proto, e.Port = r.Source, r.Dest, r.Proto, r.Port
		if !r.First.IsZero() && (e.First.IsZero() || r.First.Before(e.First)) {
			e.First = r.First
		}
		if r.Last.After(e.Last) {
			e.Last = r.Last
		}
		e.Connections = max(e.Connections, r.Connections)
		e.BytesToServer, e.BytesToClient = max(e.BytesToServer, r.BytesToServer), max(e.BytesToClient, r.BytesToClient)
		return &EdgeEnd{Verdict: r.Verdict, Rule: r.Rule, Connections: r.Connections}
	}
	e.Verdict = model.Allow
	if out != nil {
		e.Egress = fill(out, &e.From, &e.To, &e.FromProcess, &e.FromPath)
		e.Verdict = min(e.Verdict, out.Verdict)
	}
	if in != nil {
		e.Ingress = fill(in, &e.To, &e.From, &e.ToProcess, &e.ToPath)
		e.Verdict = min(e.Verdict, in.Verdict)
	}
	return e
}

func compareRecords(a, b *Record) int {
	if c := a.First.Compare(b.First); c != 0 {
		return c
	}
	return cmp.Or(
		cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Process, b.Process),
		cmp.Compare(a.Path, b.Path), cmp.Compare(a.UID, b.UID), cmp.Compare(a.Verdict, b.Verdict),
		cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Host, b.Host),
	)
}
