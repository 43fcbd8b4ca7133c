package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/internal/wire"
)

// flowMap is who talks to whom, added up by labels so that it stays small. It is what `map --format json` prints.
type flowMap struct {
	By    []string  `json:"by"`
	Nodes []mapNode `json:"nodes"`
	Edges []mapEdge `json:"edges"`

	everyDenial bool // the text lists every denial, however many
}

// mapNode is a group of workloads or of addresses that the map does not tell apart.
type mapNode struct {
	Name    string       `json:"name"`
	Labels  model.Labels `json:"labels,omitempty"`
	Outside bool         `json:"outside,omitempty"` // addresses that no workload owns
	Members []string     `json:"members"`
}

// mapEdge is what one group asked of another on one service, with one verdict.
type mapEdge struct {
	From        string   `json:"from"`
	To          string   `json:"to"`
	Service     string   `json:"service"`
	Verdict     string   `json:"verdict"`
	Rules       []string `json:"rules,omitempty"` // what decided, where it was not allowed
	OneEnd      bool     `json:"one_end_only"`    // some of it was recorded at one end only
	Connections uint64   `json:"connections"`     //
	Ports       int      `json:"ports"`           // distinct ports that Service stands for
	verdict     model.Verdict
}

// byWorkload as the only key of --by keeps every workload apart.
const byWorkload = "workload"

// manyPorts is how many ports of one protocol two groups may use, with one verdict, before the map shows their range.
const manyPorts = 8

// mapBuilder adds edges up. Memory grows with the groups and their services, not with the flows.
type mapBuilder struct {
	by        []string
	networks  []model.Network
	unmanaged map[string]bool // workloads at which nothing of ours judges
	nodes     map[string]*nodeSum
	edges     map[edgeKey]*edgeSum
}

type nodeSum struct {
	labels  model.Labels
	outside bool
	members map[string]bool
}

type edgeKey struct {
	from, to string
	proto    model.Proto
	port     uint16
	verdict  model.Verdict
}

type edgeSum struct {
	connections uint64
	rules       map[string]bool
	oneEnd      bool
}

func newMapBuilder(by []string, s *scene) *mapBuilder {
	b := &mapBuilder{
		by: by, networks: s.docs.Networks, unmanaged: map[string]bool{}, nodes: map[string]*nodeSum{}, edges: map[edgeKey]*edgeSum{},
	}
	for i := range s.inv.Instances {
		if inst := &s.inv.Instances[i]; !inst.Managed {
			b.unmanaged[inst.Name] = true
		}
	}
	return b
}

// add counts one edge in.
func (b *mapBuilder) add(e *pb.Edge) error {
	verdict, err := wire.VerdictFromProto(e.Verdict)
	if err != nil {
		return err
	}
	proto, port, err := wire.PortFromProto(e.Proto, e.Port)
	if err != nil {
		return err
	}
	if proto.IsICMP() {
		port &= 0xff00 // the codes of one type belong together
	}
	key := edgeKey{b.node(e.From, e.FromLabels), b.node(e.To, e.ToLabels), proto, port, verdict}
	sum := b.edges[key]
	if sum == nil {
		sum = &edgeSum{rules: map[string]bool{}}
		b.edges[key] = sum
	}
	sum.connections += e.Connections
	sum.oneEnd = sum.oneEnd || b.halfSeen(e)
	for _, end := range []*pb.EdgeEnd{e.Egress, e.Ingress} {
		if end != nil && end.Verdict != pb.Verdict_VERDICT_ALLOW {
			sum.rules[end.Rule] = true
		}
	}
	return nil
}

// halfSeen reports whether an end that should have recorded the edge did not.
func (b *mapBuilder) halfSeen(e *pb.Edge) bool {
	silent := e.To
	switch e.Seen {
	case "both":
		return false
	case "destination":
		silent = e.From
	}
	_, err := netip.ParseAddr(silent)
	return err != nil && !b.unmanaged[silent]
}

// node returns the name of the group that an endpoint belongs to, and makes it known.
func (b *mapBuilder) node(name string, labels model.Labels) string {
	group, own, outside := b.group(name, labels)
	sum := b.nodes[group]
	if sum == nil {
		sum = &nodeSum{labels: own, outside: outside, members: map[string]bool{}}
		b.nodes[group] = sum
	}
	sum.members[name] = true
	return group
}

func (b *mapBuilder) group(name string, labels model.Labels) (group string, own model.Labels, outside bool) {
	if addr, err := netip.ParseAddr(name); err == nil && len(labels) == 0 {
		for i := range b.networks {
			if b.networks[i].Contains(addr) {
				return "network " + b.networks[i].Name, nil, true
			}
		}
		if len(b.by) == 1 && b.by[0] == byWorkload {
			return name, nil, true
		}
		return "other addresses", nil, true
	}
	own = model.Labels{}
	for _, k := range b.by {
		if v, ok := labels[k]; ok {
			own[k] = v
		}
	}
	if len(own) == 0 {
		return name, nil, false // a workload without those labels stands for itself
	}
	return own.String(), own, false
}

// build returns the map, sorted.
func (b *mapBuilder) build() *flowMap {
	m := &flowMap{By: b.by, Nodes: []mapNode{}, Edges: []mapEdge{}}
	for name, sum := range b.nodes {
		m.Nodes = append(m.Nodes, mapNode{name, sum.labels, sum.outside, sortedKeys(sum.members)})
	}
	slices.SortFunc(m.Nodes, func(x, y mapNode) int { return strings.Compare(x.Name, y.Name) })
	for _, g := range b.bundles() {
		m.Edges = append(m.Edges, g.edges()...)
	}
	slices.SortFunc(m.Edges, func(x, y mapEdge) int {
		return cmp.Or(strings.Compare(x.From, y.From), strings.Compare(x.To, y.To),
			strings.Compare(x.Service, y.Service), strings.Compare(x.Verdict, y.Verdict))
	})
	return m
}

// bundle is everything between two groups over one protocol with one verdict.
type bundle struct {
	edgeKey
	ports map[uint16]*edgeSum
}

func (b *mapBuilder) bundles() []bundle {
	all := map[edgeKey]bundle{}
	for key, sum := range b.edges {
		port := key.port
		key.port = 0
		g, ok := all[key]
		if !ok {
			g = bundle{key, map[uint16]*edgeSum{}}
			all[key] = g
		}
		g.ports[port] = sum
	}
	out := make([]bundle, 0, len(all))
	for _, g := range all {
		out = append(out, g)
	}
	return out
}

// edges returns one edge for each port, or a single one for a range of many.
func (g bundle) edges() []mapEdge {
	ports := make([]uint16, 0, len(g.ports))
	for p := range g.ports {
		ports = append(ports, p)
	}
	slices.Sort(ports)
	if len(ports) > manyPorts && !g.proto.IsICMP() {
		r := model.PortRange{Proto: g.proto, Lo: ports[0], Hi: ports[len(ports)-1]}
		return []mapEdge{g.edge(fmt.Sprintf("%s (%d ports)", r, len(ports)), ports)}
	}
	out := make([]mapEdge, len(ports))
	for i, p := range ports {
		r := model.PortRange{Proto: g.proto, Lo: p, Hi: p}
		if g.proto.IsICMP() {
			r.Hi |= 0xff
		}
		out[i] = g.edge(r.String(), ports[i:i+1])
	}
	return out
}

func (g bundle) edge(service string, ports []uint16) mapEdge {
	e := mapEdge{From: g.from, To: g.to, Service: service, Verdict: g.verdict.String(), Ports: len(ports), verdict: g.verdict}
	rules := map[string]bool{}
	for _, p := range ports {
		sum := g.ports[p]
		e.Connections += sum.connections
		e.OneEnd = e.OneEnd || sum.oneEnd
		for r := range sum.rules {
			rules[r] = true
		}
	}
	e.Rules = sortedKeys(rules)
	return e
}

func sortedKeys(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
