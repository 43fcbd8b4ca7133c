// Package plan says what a change would do before it is made: which communications it opens and closes, which recorded
// flows it would break, whether guardrails and expectations hold afterwards, and whether hosts can hold what they are given.
package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/diff"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/prove"
	"bulkhead/internal/core/verdict"
)

// Options say what a plan is about beside the two worlds.
type Options struct {
	BaseRevision uint64 // revision that before was compiled from
	// MaxFlows bounds how many changed flows are listed; the counts are always whole. 0 means 1000.
	MaxFlows int
	// Targets says what the hosts can hold; without it the plan does not ask whether they can.
	Targets budget.Targets
}

// DefaultMaxFlows is how many changed flows a plan lists.
const DefaultMaxFlows = 1000

// Plan is what a change does. Its JSON is a contract: fields are added, never renamed.
type Plan struct {
	BaseRevision uint64               `json:"base_revision"`
	Documents    Documents            `json:"documents"`
	Segments     []SegmentMode        `json:"segment_modes"`
	Opened       []diff.Communication `json:"opened"`
	Closed       []diff.Communication `json:"closed"`
	WouldClose   []diff.Communication `json:"would_close"`
	WouldOpen    []diff.Communication `json:"would_open"`
	Flows        Flows                `json:"flows"`
	// Broken counts the recorded flows that passed before and would be denied: Flows.Broken.
	Broken       int               `json:"broken"`
	Guardrails   []prove.Guardrail `json:"guardrails"`
	Expectations []prove.Case      `json:"expectations"`
	// Budget is what hosts could not hold afterwards, or while the change comes into force. Their agents would refuse it.
	Budget   []budget.Problem `json:"budget,omitempty"`
	Warnings []string         `json:"warnings"`
	// OK says that guardrails and expectations hold, and that nothing in Budget blocks. A plan that is not ok is refused by
	// apply. Flows that break are for a person to decide about and do not count.
	OK bool `json:"ok"`
}

// Documents are the documents that differ, each list sorted.
type Documents struct {
	Added   []Document `json:"added"`
	Changed []Document `json:"changed"`
	Removed []Document `json:"removed"`
}

// Document names a document.
type Document struct {
	Kind model.Kind `json:"kind"`
	Name string     `json:"name"`
}

// SegmentMode is a segment whose mode changes. From or To is "" for a segment that is added or removed.
type SegmentMode struct {
	Segment   string `json:"segment"`
	From      string `json:"from"`
	To        string `json:"to"`
	Workloads int    `json:"workloads"` // managed members afterwards, or before if it is removed
}

// Flows sums up what becomes of the recorded flows.
type Flows struct {
	Judged     int    `json:"judged"`
	Broken     int    `json:"broken"`      // passed, and would be denied
	Restored   int    `json:"restored"`    // were denied, and would pass
	WouldBreak int    `json:"would_break"` // were allowed, and would be recorded as would-deny
	Cleared    int    `json:"cleared"`     // were would-deny, and would be allowed
	Unknown    int    `json:"unknown"`     // name a workload or an address that cannot be judged
	Changed    []Flow `json:"changed"`     // the broken first, then by how recent and how frequent
	Omitted    int    `json:"omitted"`     // changed flows that are not listed
}

// Flow is a recorded flow whose verdict changes.
type Flow struct {
	From        string       `json:"from"`
	To          string       `json:"to"`
	On          string       `json:"on"`
	FromProcess string       `json:"from_process,omitempty"`
	ToProcess   string       `json:"to_process,omitempty"`
	ToDomain    string       `json:"to_domain,omitempty"` // the host name by which the source found To
	Before      diff.Verdict `json:"before"`
	After       diff.Verdict `json:"after"`
	// DecidedBy is the rule that decides afterwards: that of the stricter end.
	DecidedBy   model.RuleID `json:"decided_by"`
	Connections uint64       `json:"connections"`
	LastSeen    time.Time    `json:"last_seen,omitzero"`
}

// Make plans the change from one world to the other. flows are recorded flows to judge in both; those of one source,
// destination and port are reported as one. The error says that the worlds cannot be compared.
func Make(before, after *compile.World, flows []model.RecordedFlow, o Options) (*Plan, error) {
	if before == nil || after == nil {
		return nil, fmt.Errorf("a plan needs the world before and after the change")
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = DefaultMaxFlows
	}
	d := diff.Between(before, after)
	p := &Plan{
		BaseRevision: o.BaseRevision,
		Documents:    compareDocuments(before.Documents(), after.Documents()),
		Segments:     compareModes(before, after),
		Opened:       d.Opened, Closed: d.Closed, WouldClose: d.WouldClose, WouldOpen: d.WouldOpen,
		Flows:        judgeFlows(verdict.New(before), verdict.New(after), flows, o.MaxFlows),
		Guardrails:   prove.Guardrails(after),
		Expectations: prove.Expectations(after),
		OK:           true,
	}
	if o.Targets != nil {
		p.Budget = budget.Check(before, after, o.Targets)
	}
	p.Broken = p.Flows.Broken
	if p.Guardrails == nil {
		p.Guardrails = []prove.Guardrail{}
	}
	if p.Expectations == nil {
		p.Expectations = []prove.Case{}
	}
	for i := range p.Guardrails {
		p.OK = p.OK && p.Guardrails[i].Holds
	}
	for i := range p.Expectations {
		p.OK = p.OK && p.Expectations[i].Pass
	}
	for i := range p.Budget {
		p.OK = p.OK && !p.Budget[i].Blocks()
	}
	p.Warnings = warnings(p, after, len(flows))
	return p, nil
}

// Changes reports whether the change does anything: to documents, or to what is allowed.
func (p *Plan) Changes() bool {
	return len(p.Documents.Added)+len(p.Documents.Changed)+len(p.Documents.Removed) > 0 ||
		len(p.Opened)+len(p.Closed)+len(p.WouldClose)+len(p.WouldOpen) > 0
}

// compareDocuments compares what documents say, not where they stand in files.
func compareDocuments(before, after *model.Documents) Documents {
	was, is := texts(before), texts(after)
	out := Documents{Added: []Document{}, Changed: []Document{}, Removed: []Document{}}
	for d, text := range is {
		switch old, ok := was[d]; {
		case !ok:
			out.Added = append(out.Added, d)
		case old != text:
			out.Changed = append(out.Changed, d)
		}
	}
	for d := range was {
		if _, ok := is[d]; !ok {
			out.Removed = append(out.Removed, d)
		}
	}
	for _, list := range [][]Document{out.Added, out.Changed, out.Removed} {
		slices.SortFunc(list, func(a, b Document) int {
			return cmp.Or(
				cmp.Compare(slices.Index(model.Kinds, a.Kind), slices.Index(model.Kinds, b.Kind)),
				strings.Compare(a.Name, b.Name),
			)
		})
	}
	return out
}

// texts returns the canonical text of each document.
func texts(docs *model.Documents) map[Document]string {
	out := map[Document]string{}
	add := func(kind model.Kind, name string, one *model.Documents) {
		out[Document{kind, name}] = string(policy.Marshal(one))
	}
	for i := range docs.Services {
		add(model.KindService, docs.Services[i].Name, &model.Documents{Services: docs.Services[i : i+1]})
	}
	for i := range docs.Networks {
		add(model.KindNetwork, docs.Networks[i].Name, &model.Documents{Networks: docs.Networks[i : i+1]})
	}
	for i := range docs.Workloads {
		add(model.KindWorkload, docs.Workloads[i].Name, &model.Documents{Workloads: docs.Workloads[i : i+1]})
	}
	for i := range docs.Segments {
		add(model.KindSegment, docs.Segments[i].Name, &model.Documents{Segments: docs.Segments[i : i+1]})
	}
	for i := range docs.Policies {
		add(model.KindPolicy, docs.Policies[i].Name, &model.Documents{Policies: docs.Policies[i : i+1]})
	}
	for i := range docs.Guardrails {
		add(model.KindGuardrail, docs.Guardrails[i].Name, &model.Documents{Guardrails: docs.Guardrails[i : i+1]})
	}
	for i := range docs.Expectations {
		add(model.KindExpectation, docs.Expectations[i].Name, &model.Documents{Expectations: docs.Expectations[i : i+1]})
	}
	return out
}

// compareModes lists segments that are added or removed, or whose mode changes.
func compareModes(before, after *compile.World) []SegmentMode {
	byName := map[string]*SegmentMode{}
	get := func(name string) *SegmentMode {
		if byName[name] == nil {
			byName[name] = &SegmentMode{Segment: name}
		}
		return byName[name]
	}
	for i := range before.Documents().Segments {
		s := &before.Documents().Segments[i]
		m := get(s.Name)
		m.From, m.Workloads = s.Mode.String(), members(before, s)
	}
	for i := range after.Documents().Segments {
		s := &after.Documents().Segments[i]
		m := get(s.Name)
		m.To, m.Workloads = s.Mode.String(), members(after, s)
	}
	out := []SegmentMode{}
	for _, m := range byName {
		if m.From != m.To {
			out = append(out, *m)
		}
	}
	slices.SortFunc(out, func(a, b SegmentMode) int { return strings.Compare(a.Segment, b.Segment) })
	return out
}

func members(w *compile.World, s *model.Segment) int {
	n := 0
	for i := range w.Inventory().Instances {
		if in := &w.Inventory().Instances[i]; in.Managed && s.Selector.Matches(in.Labels) {
			n++
		}
	}
	return n
}

// warnings are sentences about what is right by the rules and may still surprise.
func warnings(p *Plan, after *compile.World, flows int) []string {
	out := []string{}
	if flows == 0 && len(p.Closed)+len(p.WouldClose) > 0 {
		out = append(out, "no recorded flows were given, so this plan cannot say what would break")
	}
	if p.Flows.Unknown > 0 {
		out = append(out, fmt.Sprintf("left out %s: an end is no known workload, or an address that several workloads share", plural(p.Flows.Unknown, "recorded flow")))
	}
	for i := range p.Guardrails {
		if g := &p.Guardrails[i]; g.Holds && !g.Enforced {
			out = append(out, fmt.Sprintf("guardrail %s holds by policy and is not enforced yet: %s", g.Name, notEnforced(g)))
		}
	}
	for _, m := range p.Segments {
		if m.To != "" && m.Workloads == 0 {
			out = append(out, fmt.Sprintf("segment %s has no managed workload", m.Segment))
		}
	}
	if at, ok := after.NextExpiry(); ok {
		if in := at.Sub(after.Options().Now); !after.Options().Now.IsZero() && in < 7*24*time.Hour {
			out = append(out, fmt.Sprintf("a rule expires at %s", at.UTC().Format("2006-01-02 15:04 MST")))
		}
	}
	return out
}

func notEnforced(g *prove.Guardrail) string {
	if g.NotEnforced == nil {
		return g.Undecided
	}
	return g.NotEnforced.Ends() + " would be denied only"
}
