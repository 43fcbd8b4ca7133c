package suggest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// partyID is an index into records.parties.
type partyID int32

const (
	noParty     partyID = -1
	sharedParty partyID = -2
)

// party is one end that policy can tell from others: a workload, or an address that no workload owns.
type party struct {
	name     string          // of the workload; "" for an address
	addr     netip.Addr      // of an address that no workload owns
	instance *model.Instance // nil for such an address
	named    bool            // known from flows only: the proposal declares it
}

func (p *party) owned() bool { return p.instance != nil }

func (p *party) managed() bool { return p.instance != nil && p.instance.Managed }

// String returns the workload's name or the address.
func (p *party) String() string {
	if p.owned() {
		return p.name
	}
	return p.addr.String()
}

// edge is one distinct flow: all records of one source, destination and port.
type edge struct {
	src, dst    partyID
	proto       model.Proto
	port        uint16
	denied      bool // its records were denied at the time; kept apart from those that were not
	fate        Fate
	connections uint64
	first, last time.Time
	clients     []string // process names at the source, sorted
	servers     []string // process names at the destination, sorted
}

func (e *edge) ports() model.PortRange {
	return model.PortRange{Proto: e.proto, Lo: e.port, Hi: e.port}
}

type edgeKey struct {
	src, dst partyID
	proto    model.Proto
	port     uint16
	denied   bool
}

// records are the flows, resolved.
type records struct {
	parties []party
	edges   []edge  // sorted by source, destination, protocol, port
	edgeOf  []int32 // by flow; -1 where an end is unknown
	options *Options
	unknown []Unknown // sorted by End
	flows   int

	documentsGiven bool // Options.Documents was not nil

	byName  map[string]partyID
	byAddr  map[netip.Addr]partyID
	sharing map[netip.Addr][]string
}

// resolve turns flows into edges between parties and settles the fates that need no judgement.
func resolve(flows []model.RecordedFlow, inv *model.Inventory, o *Options) (*records, error) {
	r := &records{
		options: o, flows: len(flows), edgeOf: make([]int32, len(flows)),
		byName: map[string]partyID{}, byAddr: map[netip.Addr]partyID{}, sharing: map[netip.Addr][]string{},
	}
	if inv != nil && len(inv.Instances) > 0 {
		r.addInventory(inv)
	} else {
		r.addNamed(flows)
	}
	unknown := map[string]*Unknown{}
	seen := map[edgeKey]int32{}
	for i := range flows {
		f := &flows[i]
		src, err := r.party(f.From, f.FromAddr, i, "source", unknown)
		if err != nil {
			return nil, err
		}
		dst, err := r.party(f.To, f.ToAddr, i, "destination", unknown)
		if err != nil {
			return nil, err
		}
		if src < 0 || dst < 0 {
			r.edgeOf[i] = -1
			continue
		}
		key := edgeKey{src, dst, f.Proto, f.Port, f.Verdict == model.Deny}
		n, ok := seen[key]
		if !ok {
			n = int32(len(r.edges))
			seen[key] = n
			r.edges = append(r.edges, edge{src: src, dst: dst, proto: f.Proto, port: f.Port, denied: key.denied})
		}
		r.edges[n].add(f)
		r.edgeOf[i] = n
	}
	r.sortEdges()
	for i := range r.edges {
		r.edges[i].fate = r.settle(&r.edges[i])
	}
	for _, u := range unknown {
		r.unknown = append(r.unknown, *u)
	}
	slices.SortFunc(r.unknown, func(a, b Unknown) int { return strings.Compare(a.End, b.End) })
	return r, nil
}

func (r *records) addInventory(inv *model.Inventory) {
	for i := range inv.Instances {
		in := &inv.Instances[i]
		id := partyID(len(r.parties))
		r.parties = append(r.parties, party{name: in.Name, instance: in})
		r.byName[in.Name] = id
		for _, a := range in.Addresses {
			r.own(a.Unmap(), id)
		}
	}
}

func (r *records) own(a netip.Addr, id partyID) {
	name := r.parties[id].name
	switch before, taken := r.byAddr[a]; {
	case !taken:
		r.byAddr[a] = id
	case before == id:
		return
	default:
		r.byAddr[a] = sharedParty
	}
	r.sharing[a] = append(r.sharing[a], name)
}

// addNamed makes a workload of every name in the flows, with the addresses seen with that name alone.
func (r *records) addNamed(flows []model.RecordedFlow) {
	addrs := map[string][]netip.Addr{}
	note := func(name string, a netip.Addr) {
		if name == "" {
			return
		}
		list := addrs[name]
		if a = a.Unmap(); a.IsValid() && !slices.Contains(list, a) {
			list = append(list, a)
		}
		addrs[name] = list
	}
	for i := range flows {
		note(flows[i].From.Workload, flows[i].FromAddr)
		note(flows[i].To.Workload, flows[i].ToAddr)
	}
	names := make([]string, 0, len(addrs))
	owners := map[netip.Addr]int{}
	for name, list := range addrs {
		names = append(names, name)
		for _, a := range list {
			owners[a]++
		}
	}
	slices.Sort(names)
	for _, name := range names {
		list := slices.DeleteFunc(addrs[name], func(a netip.Addr) bool { return owners[a] > 1 })
		slices.SortFunc(list, netip.Addr.Compare)
		id := partyID(len(r.parties))
		r.parties = append(r.parties, party{
			name: name, named: true, instance: &model.Instance{Name: name, Managed: true, Addresses: list},
		})
		r.byName[name] = id
		for _, a := range list {
			r.own(a, id)
		}
	}
}

// party finds who an end is. A negative result is an end that cannot be told; it is counted in unknown.
func (r *records) party(e model.End, seen netip.Addr, flow int, side string, unknown map[string]*Unknown) (partyID, error) {
	tally := func(end, why string) {
		u := unknown[end]
		if u == nil {
			u = &Unknown{End: end, Why: why}
			unknown[end] = u
		}
		u.Flows++
	}
	if e.Workload != "" {
		if id, ok := r.byName[e.Workload]; ok {
			return id, nil
		}
		tally(e.Workload, "no workload has this name")
		return noParty, nil
	}
	a := e.Addr
	if !a.IsValid() {
		a = seen
	}
	if !a.IsValid() {
		return noParty, fmt.Errorf("flow %d: the %s has neither a name nor an address", flow+1, side)
	}
	a = a.Unmap()
	id, ok := r.byAddr[a]
	switch {
	case !ok:
		id = partyID(len(r.parties))
		r.parties = append(r.parties, party{addr: a})
		r.byAddr[a] = id
	case id == sharedParty:
		tally(a.String(), "several workloads have this address: "+strings.Join(r.sharing[a], ", "))
	}
	return id, nil
}

func (e *edge) add(f *model.RecordedFlow) {
	e.connections += max(f.Connections, 1)
	if !f.First.IsZero() && (e.first.IsZero() || f.First.Before(e.first)) {
		e.first = f.First
	}
	if f.Last.After(e.last) {
		e.last = f.Last
	}
	e.clients = insert(e.clients, f.FromName)
	e.servers = insert(e.servers, f.ToName)
}

// insert adds s to a short sorted list unless it is empty or there already.
func insert(list []string, s string) []string {
	if s == "" {
		return list
	}
	i, ok := slices.BinarySearch(list, s)
	if ok {
		return list
	}
	return slices.Insert(list, i, s)
}

// sortEdges brings edges into an order that does not depend on the order of the flows, as far as the parties' own
// order does not.
func (r *records) sortEdges() {
	order := make([]int32, len(r.edges))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return r.compareEdges(&r.edges[a], &r.edges[b]) })
	sorted, place := make([]edge, len(r.edges)), make([]int32, len(r.edges))
	for to, from := range order {
		sorted[to], place[from] = r.edges[from], int32(to)
	}
	r.edges = sorted
	for i, e := range r.edgeOf {
		if e >= 0 {
			r.edgeOf[i] = place[e]
		}
	}
}

func (r *records) compareEdges(a, b *edge) int {
	if c := r.compareParties(a.src, b.src); c != 0 {
		return c
	}
	if c := r.compareParties(a.dst, b.dst); c != 0 {
		return c
	}
	switch {
	case a.proto != b.proto:
		return int(a.proto) - int(b.proto)
	case a.port != b.port:
		return int(a.port) - int(b.port)
	case a.denied == b.denied:
		return 0
	case a.denied:
		return 1
	}
	return -1
}

// compareParties orders workloads by name, then addresses.
func (r *records) compareParties(a, b partyID) int {
	if a == b {
		return 0
	}
	p, q := &r.parties[a], &r.parties[b]
	switch {
	case p.owned() && q.owned():
		return strings.Compare(p.name, q.name)
	case p.owned():
		return -1
	case q.owned():
		return 1
	}
	return p.addr.Compare(q.addr)
}

// settle gives the fate that an edge has whatever the others look like. FateLearned is a candidate.
func (r *records) settle(e *edge) Fate {
	src, dst := &r.parties[e.src], &r.parties[e.dst]
	switch {
	case !src.managed() && !dst.managed():
		return FateUnmanaged
	case r.essential(e):
		return FateEssential
	case e.denied:
		return FateDenied
	}
	return FateLearned
}

func (r *records) essential(e *edge) bool {
	if _, ok := essential.Match(e.proto, e.port); ok || e.src == e.dst {
		return true
	}
	dst := &r.parties[e.dst]
	if src := r.parties[e.src].instance; src != nil && !src.IsUnit() && e.proto == model.ProtoTCP {
		for _, c := range r.options.Controllers {
			if c.Port() == e.port && (dst.addr == c.Addr().Unmap() || dst.owned() && slices.Contains(dst.instance.Addresses, c.Addr())) {
				return true
			}
		}
	}
	for i := range r.options.Documents.Networks {
		n := &r.options.Documents.Networks[i]
		if essentialPort(n.Purpose, e.proto, e.port) && r.inNetwork(e.dst, n) {
			return true
		}
	}
	return false
}

func essentialPort(p model.Purpose, proto model.Proto, port uint16) bool {
	switch p {
	case model.PurposeResolvers:
		return port == 53 && (proto == model.ProtoUDP || proto == model.ProtoTCP)
	case model.PurposeTime:
		return port == 123 && proto == model.ProtoUDP
	}
	return false
}

// inNetwork reports whether every address of the party is in the network; a workload without addresses is in none.
func (r *records) inNetwork(id partyID, n *model.Network) bool {
	p := &r.parties[id]
	if !p.owned() {
		return n.Contains(p.addr)
	}
	for _, a := range p.instance.Addresses {
		if !n.Contains(a) {
			return false
		}
	}
	return len(p.instance.Addresses) > 0
}

func (r *records) unknowns() []Unknown { return r.unknown }

func (r *records) fates() []Fate {
	out := make([]Fate, len(r.edgeOf))
	for i, e := range r.edgeOf {
		if e >= 0 {
			out[i] = r.edges[e].fate
		}
	}
	return out
}
