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
	CodeDuplicate     Code = "duplicate"         // says the same as another
	CodeShadowed      Code = "shadowed"          // an allow rule that deny rules leave nothing of
	CodeRedundant     Code = "redundant"         // one that is wider, or several together, say it already
	CodeContradictory Code = "contradictory"     // says the opposite of another
	CodeMergeable     Code = "mergeable"         // could be one with others
	CodeNeverMatches  Code = "never-matches"     // selects nobody of the inventory
	CodeTooBroad      Code = "too-broad"         // opens more than anybody can mean
	CodeBroaderThan   Code = "broader-than-used" // opens more than recorded flows use
	CodeNotUsed       Code = "not-used"          // no recorded flow needs it
	CodeExpired       Code = "expired"           // no longer in force
	CodeUnused        Code = "unused"            // nothing names it
	CodeIgnored       Code = "ignored"           // has no effect as it stands
	CodeLookalike     Code = "lookalike"         // reads as a name but is a selector
	CodeNoOwner       Code = "no-owner"          // nobody answers for it
)

// Finding is something that is allowed but looks wrong, and what to do about it.
type Finding struct {
	Pos      model.Position `json:"pos"`
	Severity Severity       `json:"severity"`
	Code     Code           `json:"code"`
	Msg      string         `json:"msg"`
	Fix      string         `json:"fix"` // in words
	// Also are the places of the others that it is about, such as the rule that makes this one pointless.
	Also []model.Position `json:"also,omitempty"`
	// Edit is the fix where it is as simple as that.
	Edit *Edit `json:"edit,omitempty"`
}

// Edit is a change of what stands at the position of a finding: the rule, the element of a list or the value of a field.
type Edit struct {
	// Replace is YAML in flow style to write in its place; "" to remove it.
	Replace string `json:"replace,omitempty"`
	// Remove says that what stands there goes; with Replace, that what stands at the Also positions goes.
	Remove bool `json:"remove,omitempty"`
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
	h := newHygiene(docs, now)
	h.expired()
	h.overlapping()
	h.repeated()
	h.contradictory()
	h.mergeable()
	h.broad()
	h.unused()
	h.ignored()
	h.unowned()
	h.lookalikes(inv)
	if inv != nil && len(inv.Instances) > 0 {
		h.unmatched(inv)
	}
	slices.SortStableFunc(h.findings, func(a, b Finding) int { return a.Pos.Compare(b.Pos) })
	return h.findings
}

type hygiene struct {
	docs     *model.Documents
	now      time.Time
	networks map[string]*model.Network
	services map[string]*model.Service
	findings []Finding

	boxes     []*box
	pointless map[model.RuleID]bool // rules that a finding says to remove
}

func newHygiene(docs *model.Documents, now time.Time) *hygiene {
	h := &hygiene{
		docs: docs, now: now, networks: map[string]*model.Network{}, services: map[string]*model.Service{},
		pointless: map[model.RuleID]bool{},
	}
	for i := range docs.Networks {
		h.networks[docs.Networks[i].Name] = &docs.Networks[i]
	}
	for i := range docs.Services {
		h.services[docs.Services[i].Name] = &docs.Services[i]
	}
	return h
}

// add reports a finding and returns it, so that positions and an edit can be added before the next one.
func (h *hygiene) add(pos model.Position, s Severity, code Code, fix, format string, args ...any) *Finding {
	h.findings = append(h.findings, Finding{Pos: pos, Severity: s, Code: code, Msg: fmt.Sprintf(format, args...), Fix: fix})
	return &h.findings[len(h.findings)-1]
}

// also adds the places of others, as far as they are known.
func (f *Finding) also(places ...model.Position) *Finding {
	for _, p := range places {
		if p != (model.Position{}) {
			f.Also = append(f.Also, p)
		}
	}
	return f
}

func (f *Finding) remove()             { f.Edit = &Edit{Remove: true} }
func (f *Finding) replace(text string) { f.Edit = &Edit{Replace: text} }

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
					"the rule %s expired on %s and is not in force", model.NamedRule(p.Name, r.Name), r.Expires.UTC().Format(time.RFC3339)).remove()
			}
		}
	}
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
					h.add(list[i].Pos, Notice, CodeRedundant, "remove it", "%s adds nothing beside %s", peerText(&list[i]), peerText(&list[j])).also(list[j].Pos).remove()
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
					h.add(list[i].Pos, Notice, CodeRedundant, "remove it", "%s adds nothing beside %s", texts[0], texts[1]).also(list[j].Pos).remove()
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

// unowned finds policies for which nobody answers: whoever wants to change or remove a rule has nobody to ask.
func (h *hygiene) unowned() {
	for i := range h.docs.Policies {
		if p := &h.docs.Policies[i]; p.Owner == "" {
			h.add(p.Pos, Notice, CodeNoOwner, "write owner: under metadata", "nobody answers for the policy %q", p.Name)
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
			var is, fix, text string
			switch {
			case h.networks[word] != nil:
				text = "{network: " + flow(word) + "}"
				is, fix = "Network", "write "+text
			case workloads.has[word]:
				is, fix = "Workload", "give the workload a label and select that"
			case segments.has[word]:
				is, fix = "Segment", "write the segment's selector"
			default:
				continue
			}
			f := h.add(p.Pos, Warning, CodeLookalike, fix, "%q selects the workloads that have a label named %s, but %s is the name of a %s", word, word, word, is)
			if text != "" {
				f.replace(text)
			}
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
