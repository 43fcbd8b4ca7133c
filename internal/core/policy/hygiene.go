package policy

import (
	"encoding"
	"fmt"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// Severity says how likely a finding is a mistake.
type Severity uint8

// The severities.
const (
	Notice  Severity = iota // could be simpler or narrower
	Warning                 // likely not what was meant
)

// String returns notice or warning.
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "notice"
}

// MarshalText writes the severity as String does.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *Severity) UnmarshalText(text []byte) error {
	for _, x := range []Severity{Notice, Warning} {
		if x.String() == string(text) {
			*s = x
			return nil
		}
	}
	return fmt.Errorf("severity %q: use notice or warning", text)
}

var _ interface {
	encoding.TextMarshaler
	encoding.TextUnmarshaler
} = (*Severity)(nil)

// Code names a kind of finding; it is stable.
type Code string

// The kinds of finding.
const (
	CodeDuplicate    Code = "duplicate"     // says the same as another
	CodeShadowed     Code = "shadowed"      // an allow rule that deny rules leave nothing of
	CodeRedundant    Code = "redundant"     // another, wider one says it already
	CodeNeverMatches Code = "never-matches" // selects nobody of the inventory
	CodeTooBroad     Code = "too-broad"     // opens more than anybody can mean
	CodeExpired      Code = "expired"       // no longer in force
	CodeUnused       Code = "unused"        // nothing names it
	CodeIgnored      Code = "ignored"       // has no effect as it stands
	CodeLookalike    Code = "lookalike"     // reads as a name but is a selector
)

// Finding is something that is allowed but looks wrong, and what to do about it.
type Finding struct {
	Pos      model.Position `json:"pos"`
	Severity Severity       `json:"severity"`
	Code     Code           `json:"code"`
	Msg      string         `json:"msg"`
	Fix      string         `json:"fix"`
}

// String returns "file:line:column: severity: message; fix (code)".
func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s; %s (%s)", f.Severity, f.Msg, f.Fix, f.Code)
	if f.Pos == (model.Position{}) {
		return s
	}
	return f.Pos.String() + ": " + s
}

// Hygiene finds what is allowed but looks wrong in documents that passed Parse. With an inventory it also finds what
// matches nobody; without one, nil or empty, it leaves that out. Rules that have expired at now count as absent. The findings
// are sorted by position.
func Hygiene(docs *model.Documents, inv *model.Inventory, now time.Time) []Finding {
	h := &hygiene{docs: docs, now: now, networks: map[string]*model.Network{}, services: map[string]*model.Service{}}
	for i := range docs.Networks {
		h.networks[docs.Networks[i].Name] = &docs.Networks[i]
	}
	for i := range docs.Services {
		h.services[docs.Services[i].Name] = &docs.Services[i]
	}
	h.expired()
	h.overlapping()
	h.repeated()
	h.broad()
	h.unused()
	h.ignored()
	h.lookalikes(inv)
	if inv != nil && len(inv.Instances) > 0 {
		h.unmatched(inv)
	}
	slices.SortStableFunc(h.findings, func(a, b Finding) int { return comparePositions(a.Pos, b.Pos) })
	return h.findings
}

type hygiene struct {
	docs     *model.Documents
	now      time.Time
	networks map[string]*model.Network
	services map[string]*model.Service
	findings []Finding
}

func (h *hygiene) add(pos model.Position, s Severity, code Code, fix, format string, args ...any) {
	h.findings = append(h.findings, Finding{Pos: pos, Severity: s, Code: code, Msg: fmt.Sprintf(format, args...), Fix: fix})
}

// alive reports whether the rule is in force.
func (h *hygiene) alive(r *model.Rule) bool { return r.Expires.IsZero() || h.now.Before(r.Expires) }

// rules calls f for every rule in force.
func (h *hygiene) rules(f func(id model.RuleID, r *model.Rule)) {
	for i := range h.docs.Policies {
		p := &h.docs.Policies[i]
		for j := range p.Rules {
			if h.alive(&p.Rules[j]) {
				f(model.NamedRule(p.Name, p.Rules[j].Name), &p.Rules[j])
			}
		}
	}
}

func (h *hygiene) expired() {
	for i := range h.docs.Policies {
		p := &h.docs.Policies[i]
		for j := range p.Rules {
			if r := &p.Rules[j]; !h.alive(r) {
				h.add(r.Pos, Warning, CodeExpired, "remove it, or give it a later expires",
					"the rule %s expired on %s and is not in force", model.NamedRule(p.Name, r.Name), r.Expires.UTC().Format(time.RFC3339))
			}
		}
	}
}

// overlapping finds rules that another rule, or a segment open among its members, makes pointless.
func (h *hygiene) overlapping() {
	var boxes []*box
	var needs []uint64
	h.rules(func(id model.RuleID, r *model.Rule) {
		b := h.box(id, r)
		boxes = append(boxes, b)
		needs = append(needs, b.needs)
	})
	for i, a := range boxes {
		var shadow, twin, wider *box // the first of each
		for j, b := range boxes {
			if needs[j]&^a.has != 0 || i == j || shadow != nil {
				continue
			}
			same := a.rule.Action == b.rule.Action
			if same && twin != nil || !same && a.rule.Action == model.ActionDeny || !b.covers(a) {
				continue
			}
			switch {
			case !same:
				shadow = b
			case !a.covers(b):
				if wider == nil {
					wider = b
				}
			case j < i:
				twin = b
			}
		}
		h.overlap(a, shadow, twin, wider)
	}
}

// overlap reports the weightiest reason why a rule is pointless.
func (h *hygiene) overlap(a, shadow, twin, wider *box) {
	switch {
	case shadow != nil:
		h.add(a.rule.Pos, Warning, CodeShadowed, fmt.Sprintf("remove it, or narrow %s", shadow.id),
			"the rule %s never allows anything: %s%s denies all of it, and deny comes first", a.id, shadow.id, at(shadow.rule.Pos))
	case twin != nil:
		h.add(a.rule.Pos, Warning, CodeDuplicate, "remove one of them",
			"the rule %s says the same as %s%s", a.id, twin.id, at(twin.rule.Pos))
	case wider != nil && a.rule.Action == model.ActionAllow:
		h.add(a.rule.Pos, Notice, CodeRedundant, fmt.Sprintf("remove it, or narrow %s", wider.id),
			"the rule %s adds nothing: %s%s allows all of it already", a.id, wider.id, at(wider.rule.Pos))
	case wider != nil:
		h.add(a.rule.Pos, Notice, CodeRedundant, fmt.Sprintf("remove it, or narrow %s", wider.id),
			"the rule %s adds nothing: %s%s denies all of it already", a.id, wider.id, at(wider.rule.Pos))
	default:
		if s := h.ring(a); s != nil {
			h.add(a.rule.Pos, Notice, CodeRedundant, "remove it, or set members: deny in the segment",
				"the rule %s adds nothing: members of segment %q%s may talk to each other on everything", a.id, s.Name, at(s.Pos))
		}
	}
}

// ring returns a segment that is open among its members and holds both ends of an allow rule.
func (h *hygiene) ring(a *box) *model.Segment {
	if a.rule.Action != model.ActionAllow {
		return nil
	}
	for i := range h.docs.Segments {
		s := &h.docs.Segments[i]
		if !s.MembersOpen {
			continue
		}
		members := []peerSet{workloadSet(&s.Selector)}
		if coverPeers(members, a.from) && coverPeers(members, a.to) {
			return s
		}
	}
	return nil
}

func at(pos model.Position) string {
	if pos == (model.Position{}) {
		return ""
	}
	return " at " + pos.String()
}

// repeated finds, within one list of peers or ports, an element that another one holds already.
func (h *hygiene) repeated() {
	peers := func(list []model.Peer) {
		sets := h.peerSets(list)
		for i := range sets {
			for j := range sets {
				if i != j && sets[j].covers(&sets[i]) && (j < i || !sets[i].covers(&sets[j])) {
					h.add(list[i].Pos, Notice, CodeRedundant, "remove it", "%s adds nothing beside %s", peerText(&list[i]), peerText(&list[j]))
					break
				}
			}
		}
	}
	ports := func(list []model.PortRef) {
		for i := range list {
			own := h.portSet(list[i : i+1])
			for j := range list {
				other := h.portSet(list[j : j+1])
				if i != j && other.covers(own) && (j < i || !own.covers(other)) {
					texts := portTexts([]model.PortRef{list[i], list[j]})
					h.add(list[i].Pos, Notice, CodeRedundant, "remove it", "%s adds nothing beside %s", texts[0], texts[1])
					break
				}
			}
		}
	}
	h.rules(func(_ model.RuleID, r *model.Rule) {
		peers(r.From)
		peers(r.To)
		ports(r.On)
	})
	for i := range h.docs.Guardrails {
		g := &h.docs.Guardrails[i]
		peers(g.From)
		peers(g.To)
		ports(g.On)
	}
	for i := range h.docs.Segments {
		ports(h.docs.Segments[i].Services)
	}
	for i := range h.docs.Services {
		s := &h.docs.Services[i]
		for j := range s.Ports {
			for k := range s.Ports {
				inner, outer := s.Ports[j], s.Ports[k]
				same := inner == outer
				if j != k && (same && k < j || !same && holdsRange(outer, inner)) {
					h.add(s.Pos, Notice, CodeRedundant, "remove it", "in Service %q, %s adds nothing beside %s", s.Name, inner, outer)
					break
				}
			}
		}
	}
}

// unused finds services and networks that nothing names.
func (h *hygiene) unused() {
	services, networks := map[string]bool{}, map[string]bool{}
	peers := func(list []model.Peer) {
		for i := range list {
			networks[list[i].Network] = true
		}
	}
	ports := func(list []model.PortRef) {
		for i := range list {
			services[list[i].Service] = true
		}
	}
	for i := range h.docs.Segments {
		ports(h.docs.Segments[i].Services)
	}
	for i := range h.docs.Policies {
		for _, r := range h.docs.Policies[i].Rules {
			peers(r.From)
			peers(r.To)
			ports(r.On)
		}
	}
	for i := range h.docs.Guardrails {
		g := &h.docs.Guardrails[i]
		peers(g.From)
		peers(g.To)
		ports(g.On)
	}
	for i := range h.docs.Services {
		if s := &h.docs.Services[i]; !services[s.Name] {
			h.add(s.Pos, Notice, CodeUnused, "remove it, or name it in a rule", "no rule, guardrail or segment names the Service %q", s.Name)
		}
	}
	for i := range h.docs.Networks {
		if n := &h.docs.Networks[i]; !networks[n.Name] && n.Purpose == model.PurposeNone {
			h.add(n.Pos, Notice, CodeUnused, "remove it, name it in a rule, or give it a purpose", "no rule or guardrail names the Network %q", n.Name)
		}
	}
}

// ignored finds what has no effect as it stands.
func (h *hygiene) ignored() {
	for i := range h.docs.Segments {
		s := &h.docs.Segments[i]
		if s.Mode != model.ModeSelective && len(s.Services) > 0 {
			h.add(s.Services[0].Pos, Notice, CodeIgnored, "remove them, or set mode: selective",
				"the services of segment %q have no effect in mode %s", s.Name, s.Mode)
		}
	}
	for i := range h.docs.Policies {
		if p := &h.docs.Policies[i]; len(p.Rules) == 0 {
			h.add(p.Pos, Notice, CodeIgnored, "add rules, or remove it", "the policy %q has no rules", p.Name)
		}
	}
}

// lookalikes finds selectors of one bare word that is the name of a document: "corp-vpn" selects the workloads that
// have a label of that key, not the Network.
func (h *hygiene) lookalikes(inv *model.Inventory) {
	keys := map[string]bool{}
	for i := range h.docs.Workloads {
		for k := range h.docs.Workloads[i].Labels {
			keys[k] = true
		}
	}
	if inv != nil {
		for i := range inv.Instances {
			for k := range inv.Instances[i].Labels {
				keys[k] = true
			}
		}
	}
	workloads := newNames(h.docs.Workloads, workloadName)
	segments := newNames(h.docs.Segments, segmentName)
	look := func(list []model.Peer) {
		for i := range list {
			p := &list[i]
			r := p.Workloads.Requirements
			if p.Kind != model.PeerWorkloads || len(r) != 1 || r[0].Op != model.OpExists || keys[r[0].Key] {
				continue
			}
			word := r[0].Key
			var is, fix string
			switch {
			case h.networks[word] != nil:
				is, fix = "Network", "write {network: "+word+"}"
			case workloads.has[word]:
				is, fix = "Workload", "give the workload a label and select that"
			case segments.has[word]:
				is, fix = "Segment", "write the segment's selector"
			default:
				continue
			}
			h.add(p.Pos, Warning, CodeLookalike, fix, "%q selects the workloads that have a label named %s, but %s is the name of a %s", word, word, word, is)
		}
	}
	h.rules(func(_ model.RuleID, r *model.Rule) {
		look(r.From)
		look(r.To)
	})
	for i := range h.docs.Guardrails {
		look(h.docs.Guardrails[i].From)
		look(h.docs.Guardrails[i].To)
	}
}

// words joins what a peer list names, for a message.
func words(list []model.Peer) string {
	parts := make([]string, len(list))
	for i := range list {
		if parts[i] = peerText(&list[i]); list[i].Kind == model.PeerWorkloads && list[i].Process == nil {
			parts[i] = fmt.Sprintf("%q", list[i].Workloads.String())
		}
	}
	return strings.Join(parts, ", ")
}
