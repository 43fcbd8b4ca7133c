package suggest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// evidence sums up what a rule stands on.
func (w *writer) evidence(d *draft, id model.RuleID, on []string) RuleEvidence {
	e := RuleEvidence{Rule: id, From: d.from.text, To: d.to.text, On: on, Flows: len(d.edges), Dynamic: d.dynamic}
	sources, destinations := map[partyID]bool{}, map[partyID]bool{}
	for _, i := range d.edges {
		x := &w.r.edges[i]
		sources[x.src], destinations[x.dst] = true, true
		e.Connections += x.connections
		e.First, e.Last = earlier(e.First, x.first), later(e.Last, x.last)
		for _, p := range processPairs(x) {
			e.Processes = insert(e.Processes, p)
		}
	}
	e.Sources, e.Destinations = len(sources), len(destinations)
	e.OverPermission = OverPermission{Allowed: allowed(d), Observed: uint64(len(d.edges))}
	e.OverPermission.Ratio = math.Round(float64(e.OverPermission.Allowed)/float64(e.OverPermission.Observed)*100) / 100
	e.WouldBreak = fmt.Sprintf("%s could not reach %s on %s: %s and %s%s would fail.", d.from.name, d.to.name,
		strings.Join(on, ", "), count(e.Flows, "flow"), count(e.Connections, "connection"), lastSeen(e.Last))
	return e
}

func processPairs(e *edge) []string {
	clients, servers := e.clients, e.servers
	if len(clients) == 0 && len(servers) == 0 {
		return nil
	}
	if len(clients) == 0 {
		clients = []string{"?"}
	}
	if len(servers) == 0 {
		servers = []string{"?"}
	}
	var out []string
	for _, c := range clients {
		for _, s := range servers {
			out = append(out, c+" > "+s)
		}
	}
	return out
}

// allowed counts the triples that a draft allows among the parties there are now.
func allowed(d *draft) uint64 {
	ports := uint64(0)
	for _, p := range d.ports {
		ports += uint64(p.Hi-p.Lo) + 1
	}
	return pairs(d.from.members, d.to.members) * ports
}

// pairs counts (source, destination) without those of a party with itself.
func pairs(from, to []partyID) uint64 {
	n := uint64(len(from)) * uint64(len(to))
	set := make(map[partyID]bool, len(from))
	for _, id := range from {
		set[id] = true
	}
	for _, id := range to {
		if set[id] {
			n--
		}
	}
	return n
}

func lastSeen(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return ", last seen " + stamp(t) + ","
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

func between(first, last time.Time) string {
	if first.IsZero() || last.IsZero() {
		return ""
	}
	return " between " + stamp(first) + " and " + stamp(last)
}

// note is the line of a policy's note that stands for one rule.
func note(rule string, e *RuleEvidence) string {
	parts := []string{
		count(e.Sources, "source"), count(e.Destinations, "destination"), count(e.Connections, "connection"),
	}
	if !e.Last.IsZero() {
		parts = append(parts, "last seen "+stamp(e.Last))
	}
	line := rule + ": " + strings.Join(parts, ", ")
	if n := len(e.Processes); n > 0 {
		line += "; " + strings.Join(e.Processes[:min(n, 3)], ", ")
		if n > 3 {
			line += fmt.Sprintf(" and %d more", n-3)
		}
	}
	switch {
	case e.Dynamic:
		line += "; a range for short-lived ports: review it"
	case e.OverPermission.Allowed > e.OverPermission.Observed:
		line += fmt.Sprintf("; allows %s, %s seen", count(e.OverPermission.Allowed, "flow"), thousands(e.OverPermission.Observed))
	}
	return line + "."
}

// stats sums up the proposal.
func (r *records) stats(p *Proposal, rules []draft) Stats {
	s := Stats{
		Recorded: r.flows, Rules: len(rules), Labels: len(p.Labels), Segments: len(p.Documents.Segments),
	}
	learned := 0
	for i := range r.edges {
		switch r.edges[i].fate {
		case FateLearned:
			learned++
		case FateAllowed:
			s.Covered++
		case FateSuspicious:
			s.Suspicious++
		case FateDenied:
			s.Denied++
		}
	}
	s.Covered += learned
	s.Distinct = s.Covered + s.Suspicious + s.Denied
	if len(rules) > 0 {
		s.Compression = math.Round(float64(learned)/float64(len(rules))*100) / 100
	}
	s.Surface = r.surface(rules)
	return s
}

// surface is the share of (source, service) pairs of a flat network that the rules allow.
func (r *records) surface(rules []draft) float64 {
	sources := map[partyID]bool{}
	services := map[partyID][]model.PortRange{}
	total := 0
	for i := range r.edges {
		e := &r.edges[i]
		if e.fate != FateLearned {
			continue
		}
		sources[e.src] = true
		if at := services[e.dst]; !slices.Contains(at, e.ports()) {
			services[e.dst] = append(at, e.ports())
			total++
		}
	}
	if total == 0 {
		return 0
	}
	open := uint64(0)
	for i := range rules {
		d := &rules[i]
		from := make(map[partyID]bool, len(d.from.members))
		active := uint64(0)
		for _, id := range d.from.members {
			if sources[id] {
				from[id] = true
				active++
			}
		}
		for _, dst := range d.to.members {
			callers := active
			if from[dst] {
				callers--
			}
			for _, s := range services[dst] {
				if slices.ContainsFunc(d.ports, func(p model.PortRange) bool { return p.Contains(s.Proto, s.Lo) }) {
					open += callers
				}
			}
		}
	}
	return math.Round(float64(open)/float64(uint64(len(sources))*uint64(total))*10000) / 10000
}
