package flows

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
)

// Filter says which edges are wanted. Zero fields do not constrain.
type Filter struct {
	Since, Until time.Time
	From, To     string // name of a workload, address, prefix or selector
	Port         string // tcp/5432, tcp, or the name of a service
	Verdicts     []model.Verdict
	Rule         string // of either end; the name of a policy stands for all of its rules
}

// Query is a filter that has been understood.
type Query struct {
	filter   Filter
	from, to *end
	ports    []model.PortRange
}

// end matches one end of an edge.
type end struct {
	name     string
	unknown  bool // no workload has the name now; one may have had it
	prefix   netip.Prefix
	selector *model.Selector
}

// Parse understands a filter. The error is for its author.
func Parse(f Filter, s *world.Snapshot) (*Query, error) {
	q := &Query{filter: f}
	var err error
	if q.from, err = parseEnd(f.From, s); err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	if q.to, err = parseEnd(f.To, s); err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	if f.Port != "" {
		if q.ports, err = parsePort(f.Port, s.Documents().Parsed); err != nil {
			return nil, err
		}
	}
	if !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return nil, fmt.Errorf("the time from which on flows are asked for must be before the time until which they are")
	}
	return q, nil
}

func parseEnd(text string, s *world.Snapshot) (*end, error) {
	if text == "" {
		return nil, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap()
		return &end{prefix: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return &end{prefix: p.Masked()}, nil
	}
	if s.Instance(text) != nil {
		return &end{name: text}, nil
	}
	if !strings.ContainsAny(text, "=!,() ") {
		return &end{name: text, unknown: true}, nil
	}
	selector, err := model.ParseSelector(text)
	if err != nil {
		return nil, err
	}
	return &end{selector: &selector}, nil
}

func parsePort(text string, docs *model.Documents) ([]model.PortRange, error) {
	for i := range docs.Services {
		if docs.Services[i].Name == text {
			return docs.Services[i].Ports, nil
		}
	}
	r, err := model.ParsePortRange(text)
	if err != nil {
		return nil, fmt.Errorf("%w, or the name of a service", err)
	}
	return []model.PortRange{r}, nil
}

func (e *end) matches(name string, addr netip.Addr, s *world.Snapshot) bool {
	switch {
	case e == nil:
		return true
	case e.selector != nil:
		inst := s.Instance(name)
		return inst != nil && e.selector.Matches(inst.Labels)
	case e.name != "":
		if e.name == name {
			e.unknown = false // somebody had the name
			return true
		}
		return false
	}
	return e.prefix.Contains(addr)
}

func (q *Query) matches(e *flowstore.Edge, s *world.Snapshot) bool {
	if len(q.ports) > 0 && !slices.ContainsFunc(q.ports, func(r model.PortRange) bool { return r.Contains(e.Proto, e.Port) }) {
		return false
	}
	if len(q.filter.Verdicts) > 0 && !slices.Contains(q.filter.Verdicts, e.Verdict) {
		return false
	}
	if q.filter.Rule != "" && !q.ruleOf(e.Egress) && !q.ruleOf(e.Ingress) {
		return false
	}
	return q.from.matches(e.From, e.FromAddr, s) && q.to.matches(e.To, e.ToAddr, s)
}

func (q *Query) ruleOf(e *flowstore.EdgeEnd) bool {
	return e != nil && (string(e.Rule) == q.filter.Rule || strings.HasPrefix(string(e.Rule), q.filter.Rule+"/"))
}

// Select keeps the edges that the query wants.
func (q *Query) Select(edges []flowstore.Edge, s *world.Snapshot) []flowstore.Edge {
	return slices.DeleteFunc(edges, func(e flowstore.Edge) bool { return !q.matches(&e, s) })
}

// Unknown returns the first name that the query asked for and that no workload has or had, or "".
func (q *Query) Unknown() string {
	for _, e := range []*end{q.from, q.to} {
		if e != nil && e.unknown {
			return e.name
		}
	}
	return ""
}

// Edges returns the recorded edges that the query wants, latest first.
func (i *Ingester) Edges(ctx context.Context, q *Query, s *world.Snapshot) ([]flowstore.Edge, error) {
	var j flowstore.Joiner
	err := i.store.Scan(ctx, q.filter.Since, q.filter.Until, func(r *flowstore.Record) error {
		if len(q.ports) == 0 || slices.ContainsFunc(q.ports, func(p model.PortRange) bool { return p.Contains(r.Proto, r.Port) }) {
			j.Add(r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return q.Select(j.Edges(), s), nil
}

// Recorded returns the edges since then as the pure core reads them. An end is named as long as its workload exists.
func (i *Ingester) Recorded(ctx context.Context, since time.Time, s *world.Snapshot) ([]model.RecordedFlow, error) {
	edges, err := i.Edges(ctx, &Query{filter: Filter{Since: since}}, s)
	if err != nil {
		return nil, err
	}
	flows := make([]model.RecordedFlow, len(edges))
	for k := range edges {
		e := &edges[k]
		flows[k] = model.RecordedFlow{
			Flow: model.Flow{
				From: endOf(e.From, e.FromAddr, s), To: endOf(e.To, e.ToAddr, s), Proto: e.Proto, Port: e.Port,
				FromProcess: processOf(e.FromPath), ToProcess: processOf(e.ToPath),
			},
			FromAddr: e.FromAddr, ToAddr: e.ToAddr, Connections: max(e.Connections, 1), First: e.First, Last: e.Last,
			Verdict: e.Verdict, FromName: e.FromProcess, ToName: e.ToProcess,
		}
	}
	return flows, nil
}

// processOf returns what is recorded of a process, for rules that ask for it; nil if nothing is.
func processOf(path string) *model.Process {
	if path == "" {
		return nil
	}
	return &model.Process{Path: path}
}

func endOf(name string, addr netip.Addr, s *world.Snapshot) model.End {
	if name != "" && s.Instance(name) != nil {
		return model.End{Workload: name}
	}
	return model.End{Addr: addr}
}

// InUse returns the edges between the workload and other workloads since then that were not denied, sorted.
func (i *Ingester) InUse(ctx context.Context, workload string, since time.Time, s *world.Snapshot) ([]model.InUse, error) {
	edges, err := i.Edges(ctx, &Query{filter: Filter{Since: since}}, s)
	if err != nil {
		return nil, err
	}
	var out []model.InUse
	for k := range edges {
		e := &edges[k]
		if e.Verdict == model.Deny || e.From == e.To {
			continue
		}
		use := model.InUse{Ports: model.PortRange{Proto: e.Proto, Lo: e.Port, Hi: e.Port}}
		switch workload {
		case e.From:
			use.Direction, use.Peer = model.Egress, e.To
		case e.To:
			use.Direction, use.Peer = model.Ingress, e.From
		default:
			continue
		}
		if use.Peer != "" {
			out = append(out, use)
		}
	}
	slices.SortFunc(out, func(a, b model.InUse) int {
		if c := strings.Compare(a.Peer, b.Peer); c != 0 {
			return c
		}
		if a.Direction != b.Direction {
			return int(a.Direction) - int(b.Direction)
		}
		return (int(a.Ports.Proto)<<16 | int(a.Ports.Lo)) - (int(b.Ports.Proto)<<16 | int(b.Ports.Lo))
	})
	return slices.Compact(out), nil
}
