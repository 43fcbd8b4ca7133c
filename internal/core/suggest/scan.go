package suggest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// What makes a scan: many edges that were hardly used, that nothing answered and that nobody else uses, of one source,
// fanning out over ports or destinations within a short time.
const (
	scanEdges  = 10               // at least so many edges
	scanFan    = 5                // over at least so many ports of one destination, or so many destinations
	scanWindow = 10 * time.Minute // within this time, unless nothing listens there at all
	thinEdge   = 3                // hardly used: at most so many connections
	dynamicLow = 32768            // from here on a port may be short-lived (Linux 32768–60999, IANA 49152–65535)
)

// adminPorts are those by which one machine is taken over from another. A sweep over them counts although it is
// answered.
var adminPorts = map[uint16]bool{22: true, 23: true, 135: true, 139: true, 445: true, 512: true, 513: true, 514: true,
	2375: true, 3389: true, 5900: true, 5985: true, 5986: true}

type target struct {
	dst   partyID
	proto model.Proto
	port  uint16
}

// scanFinder looks for sources that scan.
type scanFinder struct {
	r     *records
	thick map[target]partyID // one source that uses the target regularly; sharedParty if several do
	// siblings hold, for workloads of one kind, who uses a target other than in a scan.
	siblings map[string]map[target]partyID
}

// found is a source that scans.
type found struct {
	edges       []edge  // all of the source's
	marked      []*edge // those of the scan
	first, last time.Time
}

// findScans sets the fate of edges that look like a scan to FateSuspicious and says why.
func findScans(r *records, trusted []string) []Suspicion {
	f := &scanFinder{r: r, thick: map[target]partyID{}, siblings: map[string]map[target]partyID{}}
	for i := range r.edges {
		if e := &r.edges[i]; e.connections > thinEdge && !e.denied {
			noteSource(f.thick, e)
		}
	}
	var scans []found
	for lo := 0; lo < len(r.edges); {
		hi := lo
		for hi < len(r.edges) && r.edges[hi].src == r.edges[lo].src {
			hi++
		}
		src := &r.parties[r.edges[lo].src]
		scan, yes := found{}, false
		if !slices.Contains(trusted, src.String()) {
			scan, yes = f.judge(r.edges[lo:hi])
		}
		if yes {
			scans = append(scans, scan)
		}
		f.noteSiblings(r.edges[lo:hi], yes)
		lo = hi
	}
	out := make([]Suspicion, len(scans))
	for i := range scans {
		out[i] = f.takeAlong(&scans[i])
	}
	return out
}

// noteSiblings notes what a source does; of one that scans, only what it does regularly.
func (f *scanFinder) noteSiblings(edges []edge, scans bool) {
	k := siblingKey(&f.r.parties[edges[0].src])
	if f.siblings[k] == nil {
		f.siblings[k] = map[target]partyID{}
	}
	for i := range edges {
		if e := &edges[i]; e.fate == FateLearned && (!scans || e.connections > thinEdge) {
			noteSource(f.siblings[k], e)
		}
	}
}

func noteSource(m map[target]partyID, e *edge) {
	t := target{e.dst, e.proto, e.port}
	if before, ok := m[t]; ok && before != e.src {
		m[t] = sharedParty
	} else {
		m[t] = e.src
	}
}

// siblingKey is equal for workloads that do the same as far as labels, or else names, tell.
func siblingKey(p *party) string {
	if !p.owned() {
		return p.addr.String()
	}
	if len(p.instance.Labels) > 0 {
		return p.instance.Labels.String()
	}
	return stem(p.name)
}

// usedByOthers reports whether a source other than the edge's is noted for its target.
func usedByOthers(m map[target]partyID, e *edge) bool {
	src, ok := m[target{e.dst, e.proto, e.port}]
	return ok && src != e.src
}

// judge looks at all edges of one source.
func (f *scanFinder) judge(edges []edge) (found, bool) {
	var lonely []*edge
	low := map[partyID]int{} // lonely ports below the dynamic ones, by destination
	for i := range edges {
		if e := &edges[i]; f.lonely(e) {
			lonely = append(lonely, e)
			if e.port < dynamicLow || e.proto.IsICMP() {
				low[e.dst]++
			}
		}
	}
	// Short-lived ports of a destination on which nothing else is odd are a protocol's own, not a scan.
	lonely = slices.DeleteFunc(lonely, func(e *edge) bool {
		return e.port >= dynamicLow && !e.proto.IsICMP() && low[e.dst] < 2
	})
	marked := f.burst(lonely)
	if len(marked) < scanEdges || !fansOut(marked) {
		return found{}, false
	}
	scan := found{edges: edges, marked: marked, first: marked[0].first, last: marked[0].first}
	for _, e := range marked {
		if e.first.Before(scan.first) {
			scan.first = e.first
		}
		if e.first.After(scan.last) {
			scan.last = e.first
		}
		if e.fate == FateLearned {
			e.fate = FateSuspicious
		}
	}
	return scan, true
}

// takeAlong adds what the source touched lightly meanwhile, unless others of its kind do it as well, and describes all.
func (f *scanFinder) takeAlong(scan *found) Suspicion {
	counted := len(scan.marked)
	for i := range scan.edges {
		e := &scan.edges[i]
		during := !e.first.Before(scan.first) && !e.first.After(scan.last)
		if e.fate != FateLearned || e.connections > thinEdge || !during {
			continue
		}
		if !usedByOthers(f.siblings[siblingKey(&f.r.parties[e.src])], e) {
			e.fate = FateSuspicious
			scan.marked = append(scan.marked, e)
		}
	}
	slices.SortFunc(scan.marked, f.r.compareEdges)
	return f.describe(scan.marked, counted)
}

// lonely reports whether an edge was hardly used, was not answered as far as one can tell, and is used by nobody else.
func (f *scanFinder) lonely(e *edge) bool {
	if e.fate != FateLearned && e.fate != FateDenied || usedByOthers(f.thick, e) {
		return false
	}
	switch f.answer(e) {
	case answerNo:
		return true
	case answerYes:
		return e.connections <= thinEdge && adminPorts[e.port] && e.proto == model.ProtoTCP
	}
	return e.connections <= thinEdge
}

type answer uint8

const (
	answerUnknown answer = iota
	answerNo             // the destination's sockets are known, and none has this port
	answerYes
)

func (f *scanFinder) answer(e *edge) answer {
	if len(e.servers) > 0 {
		return answerYes
	}
	dst := &f.r.parties[e.dst]
	if !dst.owned() || e.proto.IsICMP() || len(dst.instance.Listening) == 0 {
		return answerUnknown
	}
	for _, l := range dst.instance.Listening {
		if l.Proto == e.proto && l.Port == e.port {
			return answerYes
		}
	}
	if e.denied { // a denied attempt says nothing about who listens
		return answerUnknown
	}
	return answerNo
}

// burst returns the edges that lie in some window with enough of them; edges to closed ports count at any time.
func (f *scanFinder) burst(lonely []*edge) []*edge {
	slices.SortStableFunc(lonely, func(a, b *edge) int { return a.first.Compare(b.first) })
	keep := make([]bool, len(lonely))
	closed := 0
	for i, e := range lonely {
		if f.answer(e) == answerNo {
			keep[i] = true
			closed++
		}
	}
	if closed < scanEdges {
		clear(keep)
	}
	lo := 0
	for hi := range lonely {
		for lonely[hi].first.Sub(lonely[lo].first) > scanWindow {
			lo++
		}
		if hi-lo+1 >= scanEdges {
			for i := lo; i <= hi; i++ {
				keep[i] = true
			}
		}
	}
	var out []*edge
	for i, e := range lonely {
		if keep[i] {
			out = append(out, e)
		}
	}
	return out
}

func fansOut(edges []*edge) bool {
	dsts, ports := map[partyID]int{}, 0
	for _, e := range edges {
		dsts[e.dst]++
		ports = max(ports, dsts[e.dst])
	}
	return len(dsts) >= scanFan || ports >= scanFan
}

func (f *scanFinder) describe(edges []*edge, counted int) Suspicion {
	s := Suspicion{Source: f.r.parties[edges[0].src].String(), Flows: len(edges)}
	dsts, ports := map[partyID]bool{}, map[model.PortRange]bool{}
	for _, e := range edges {
		dsts[e.dst], ports[e.ports()] = true, true
		s.Connections += e.connections
		if !e.first.IsZero() && (s.First.IsZero() || e.first.Before(s.First)) {
			s.First = e.first
		}
		if e.last.After(s.Last) {
			s.Last = e.last
		}
		if len(s.Examples) < 5 {
			s.Examples = append(s.Examples, f.r.parties[e.dst].String()+" "+e.ports().String())
		}
	}
	s.Destinations, s.Ports = len(dsts), len(ports)
	var b strings.Builder
	fmt.Fprintf(&b, "%s tried %s at %s", s.Source, count(s.Ports, "port"), count(s.Destinations, "destination"))
	if d := s.Last.Sub(s.First); d > 0 {
		fmt.Fprintf(&b, " within %s", d.Round(time.Second))
	}
	fmt.Fprintf(&b, "; %d of these %s had hardly any connection, no known listener and no other regular user", counted, plural(len(edges), "flow"))
	if counted < len(edges) {
		fmt.Fprintf(&b, ", the others were touched meanwhile")
	}
	b.WriteString(". If this is its job, name it as trusted")
	s.Why = b.String()
	return s
}
