package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// mergeable finds rules of one policy that could be one: they differ in their ports only, or in their sources or
// destinations only, and those differ in the value of one label. Rules that are pointless anyway do not count.
func (h *hygiene) mergeable() {
	for i := range h.docs.Policies {
		p := &h.docs.Policies[i]
		taken := map[int]bool{}
		for j := range p.Rules {
			if !h.merges(p, j, taken) {
				continue
			}
			for _, part := range []string{"on", "from", "to"} {
				group := []int{j}
				for k := j + 1; k < len(p.Rules); k++ {
					if h.merges(p, k, taken) && sameBut(part, &p.Rules[j], &p.Rules[k]) && alike(part, &p.Rules[j], &p.Rules[k]) {
						group = append(group, k)
					}
				}
				if len(group) > 1 {
					for _, k := range group {
						taken[k] = true
					}
					h.mergeGroup(p, part, group)
					break
				}
			}
		}
	}
}

func (h *hygiene) merges(p *model.Policy, i int, taken map[int]bool) bool {
	r := &p.Rules[i]
	return !taken[i] && h.alive(r) && !h.pointless[model.NamedRule(p.Name, r.Name)]
}

// sameBut reports whether two rules are the same but for one part.
func sameBut(part string, a, b *model.Rule) bool {
	return a.Action == b.Action && a.Expires.Equal(b.Expires) &&
		(part == "from" || samePeers(a.From, b.From)) && (part == "to" || samePeers(a.To, b.To)) && (part == "on" || samePorts(a.On, b.On))
}

// alike reports whether the peers in which two rules differ become no more when they are merged.
func alike(part string, a, b *model.Rule) bool {
	switch part {
	case "from":
		return len(mergePeers(slices.Concat(a.From, b.From))) <= len(a.From)
	case "to":
		return len(mergePeers(slices.Concat(a.To, b.To))) <= len(a.To)
	}
	return true
}

func samePeers(a, b []model.Peer) bool {
	return slices.Equal(sortedTexts(a, peerText), sortedTexts(b, peerText))
}

func samePorts(a, b []model.PortRef) bool {
	return slices.Equal(sortedTexts(a, portRefText), sortedTexts(b, portRefText))
}

func sortedTexts[T any](list []T, text func(*T) string) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = text(&list[i])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func portRefText(p *model.PortRef) string { return portTexts([]model.PortRef{*p})[0] }

func (h *hygiene) mergeGroup(p *model.Policy, part string, group []int) {
	first := &p.Rules[group[0]]
	merged := *first
	merged.From, merged.To, merged.On = slices.Clone(first.From), slices.Clone(first.To), slices.Clone(first.On)
	names := []string{string(model.NamedRule(p.Name, first.Name))}
	var others []model.Position
	for _, i := range group[1:] {
		r := &p.Rules[i]
		names = append(names, string(model.NamedRule(p.Name, r.Name)))
		others = append(others, r.Pos)
		switch part {
		case "from":
			merged.From = append(merged.From, r.From...)
		case "to":
			merged.To = append(merged.To, r.To...)
		default:
			merged.On = append(merged.On, r.On...)
		}
	}
	merged.From, merged.To = mergePeers(merged.From), mergePeers(merged.To)
	merged.On = distinctPorts(merged.On)
	what := map[string]string{"from": "sources", "to": "destinations", "on": "ports"}[part]
	value := map[string]string{"from": peersText(merged.From), "to": peersText(merged.To), "on": brackets(portTexts(merged.On))}[part]
	f := h.add(first.Pos, Notice, CodeMergeable, fmt.Sprintf("make one rule of them, with %s: %s", part, value),
		"the rules %s differ in their %s only", both(names), what).also(others...)
	f.Edit = &Edit{Replace: ruleText(&merged), Remove: true}
}

// mergePeers joins workload selectors that ask the same of all keys but one, for which each lists values. What is there
// twice is left out.
func mergePeers(list []model.Peer) []model.Peer {
	var out []model.Peer
next:
	for _, p := range list {
		for i := range out {
			if peerText(&out[i]) == peerText(&p) {
				continue next
			}
			if s, ok := mergeSelectors(&out[i], &p); ok {
				out[i].Workloads = s
				continue next
			}
		}
		out = append(out, p)
	}
	return out
}

func mergeSelectors(a, b *model.Peer) (model.Selector, bool) {
	x, y := a.Workloads.Requirements, b.Workloads.Requirements
	if a.Kind != model.PeerWorkloads || b.Kind != model.PeerWorkloads || len(x) != len(y) || !sameProcess(a.Process, b.Process) {
		return model.Selector{}, false
	}
	at := -1
	for i := range x {
		same := x[i].Key == y[i].Key && x[i].Op == y[i].Op && slices.Equal(x[i].Values, y[i].Values)
		switch {
		case same:
		case at < 0 && x[i].Key == y[i].Key && x[i].Op == model.OpIn && y[i].Op == model.OpIn:
			at = i
		default:
			return model.Selector{}, false
		}
	}
	if at < 0 {
		return a.Workloads, true
	}
	for i := range x { // a second condition on the key would have to hold for both
		if i != at && x[i].Key == x[at].Key {
			return model.Selector{}, false
		}
	}
	out := model.Selector{Requirements: slices.Clone(x)}
	values := append(slices.Clone(x[at].Values), y[at].Values...)
	slices.Sort(values)
	out.Requirements[at].Values = slices.Compact(values)
	return out, true
}

func sameProcess(a, b *model.Process) bool { return a == b || a != nil && b != nil && *a == *b }

func distinctPorts(list []model.PortRef) []model.PortRef {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(list), func(p model.PortRef) bool {
		text := portRefText(&p)
		twice := seen[text]
		seen[text] = true
		return twice
	})
}

// ruleText returns a rule in flow style.
func ruleText(r *model.Rule) string {
	parts := []string{
		"name: " + flow(r.Name),
		r.Action.String() + ": " + braces([]string{"from: " + peersText(r.From), "to: " + peersText(r.To), "on: " + brackets(portTexts(r.On))}),
	}
	if !r.Expires.IsZero() {
		parts = append(parts, "expires: "+r.Expires.UTC().Format(time.RFC3339Nano))
	}
	return braces(parts)
}

// peersText returns a list of peers in flow style.
func peersText(list []model.Peer) string {
	parts := make([]string, len(list))
	for i := range list {
		p := &list[i]
		if parts[i] = peerText(p); p.Kind == model.PeerWorkloads && p.Process == nil {
			parts[i] = selectorText(&p.Workloads)
		}
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return brackets(parts)
}

// selectorText returns a selector as it may stand anywhere.
func selectorText(s *model.Selector) string {
	text := s.String()
	if strings.ContainsAny(text, ", (") {
		return quoted(text)
	}
	return flow(text)
}
