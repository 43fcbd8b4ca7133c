package verdict

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// Explanation is a verdict with everything that led to it, at both ends. It is made for people and for JSON.
type Explanation struct {
	From    string         `json:"from"`
	To      string         `json:"to"`
	On      string         `json:"on"` // "tcp/5432"
	Verdict string         `json:"verdict"`
	Egress  EndExplanation `json:"egress"`
	Ingress EndExplanation `json:"ingress"`
}

// EndExplanation is how one end decides.
type EndExplanation struct {
	Direction string       `json:"direction"`
	Verdict   string       `json:"verdict"`
	Rule      model.RuleID `json:"rule"`
	Why       string       `json:"why"` // one sentence
	Subject   Party        `json:"subject"`
	Peer      Party        `json:"peer"`
	Segments  []Segment    `json:"segments"`
	// Candidates are the workloads that the other end may be, if this end cannot tell; the most permissive verdict
	// counts, and Steps are those of the one that has it.
	Candidates []Candidate `json:"candidates,omitempty"`
	// Steps are what was asked, in order, up to what decided; after it come rules that apply too but were not asked.
	Steps []Step `json:"steps"`
	// Unrelated counts the rules that mean neither end and so are not among Steps.
	Unrelated int `json:"unrelated"`
}

// Party is one end as policy sees it.
type Party struct {
	Workload   string       `json:"workload,omitempty"`
	Address    string       `json:"address,omitempty"`
	Host       string       `json:"host,omitempty"`
	Unit       string       `json:"unit,omitempty"`
	Managed    bool         `json:"managed"`
	Labels     model.Labels `json:"labels"`
	Networks   []string     `json:"networks"`
	Identity   string       `json:"identity"`
	Quarantine string       `json:"quarantine,omitempty"`
}

// Segment is a segment of the subject.
type Segment struct {
	Name     string   `json:"name"`
	Mode     string   `json:"mode"`
	Closes   bool     `json:"closes"` // denies by default in this direction
	Services []string `json:"services,omitempty"`
}

// Candidate is a workload that the other end may be.
type Candidate struct {
	Workload string       `json:"workload"`
	Labels   model.Labels `json:"labels"`
	Verdict  string       `json:"verdict"`
	Rule     model.RuleID `json:"rule"`
	Counts   bool         `json:"counts"` // this one's verdict stands for all
}

// Outcome says what became of a step.
type Outcome string

// The outcomes.
const (
	Decided    Outcome = "decided"
	Passed     Outcome = "passed" // it applies and leaves the rest of its tier out
	NoMatch    Outcome = "no match"
	NotReached Outcome = "not reached" // it would apply, but something before it decided
)

// Step is one thing that was asked.
type Step struct {
	Rule    model.RuleID `json:"rule"`
	Action  string       `json:"action"` // allow, deny or pass
	From    string       `json:"from,omitempty"`
	To      string       `json:"to,omitempty"`
	On      []string     `json:"on,omitempty"`
	Process string       `json:"process,omitempty"` // constraint on the process at this end
	At      string       `json:"at,omitempty"`      // file:line:column
	Outcome Outcome      `json:"outcome"`
	Misses  []string     `json:"misses,omitempty"` // what does not match: from, to, ports, process, expired
	Why     string       `json:"why"`
}

// Explain judges the flow as Judge does and says why. The errors are those of Judge.
func (e *Evaluator) Explain(f *model.Flow) (*Explanation, error) {
	var c connection
	if err := e.resolve(f, &c); err != nil {
		return nil, err
	}
	x := explainer{e: e, c: &c}
	out := &Explanation{
		From: x.name(&c.from),
		To:   x.name(&c.to),
		On:   model.PortRange{Proto: c.flow.Proto, Lo: c.flow.Port, Hi: c.flow.Port}.String(),
	}
	var egress, ingress model.EndVerdict
	out.Egress, egress = x.end(model.Egress)
	out.Ingress, ingress = x.end(model.Ingress)
	out.Verdict = model.Join(egress, ingress).Verdict.String()
	return out, nil
}

type explainer struct {
	e *Evaluator
	c *connection
}

func (x *explainer) name(p *party) string {
	if p.seat != nil {
		return x.workload(p).Name
	}
	return p.addr().String()
}

// workload returns the workload of an end, nil if nobody owns its address.
func (x *explainer) workload(p *party) *compile.Workload {
	if p.seat == nil {
		return nil
	}
	return x.e.world.Of(p.seat)
}

// candidate is something that the other end may be, as far as this end can tell.
type candidate struct {
	workload *compile.Workload // nil: nobody owns the address
	id       model.IdentityID
	identity model.Identity
}

func (x *explainer) end(d model.Direction) (EndExplanation, model.EndVerdict) {
	self, other := &x.c.to, &x.c.from
	if d == model.Egress {
		self, other = other, self
	}
	out := EndExplanation{
		Direction: d.String(),
		Subject:   x.party(self),
		Peer:      x.party(other),
		Segments:  x.segments(self, d),
		Steps:     []Step{},
	}
	v, known := x.known(d, self, &out)
	if !known {
		v = x.candidates(d, self, other, &out)
	}
	out.Verdict, out.Rule = v.Verdict.String(), v.Rule
	for _, s := range out.Steps {
		if s.Outcome == Decided {
			out.Why = s.Why
		}
	}
	return out, v
}

func (x *explainer) party(p *party) Party {
	number, id := x.identity(p)
	out := Party{Labels: model.Labels{}, Networks: append([]string{}, id.Networks...), Identity: number.String()}
	if a := x.e.address(p); a.IsValid() {
		out.Address = a.String()
	}
	w := x.workload(p)
	if w == nil {
		return out
	}
	out.Workload, out.Host, out.Unit, out.Managed = w.Name, w.Host, w.Unit, w.Managed
	out.Labels = out.Labels.With(w.Labels)
	if w.Quarantine.Level != model.QuarantineNone {
		out.Quarantine = w.Quarantine.Level.String()
	}
	return out
}

// identity returns exactly what an end is.
func (x *explainer) identity(p *party) (model.IdentityID, model.Identity) {
	var index int32
	if p.seat != nil {
		index = p.seat.Exact
	} else {
		index = x.e.world.UnownedByName(p.addr(), x.domain(p))
	}
	id := x.e.world.IdentityID(index)
	return id, x.e.world.Identity(id)[0]
}

// domain returns the host name by which an end was found, if it is the destination.
func (x *explainer) domain(p *party) string {
	if p == &x.c.to {
		return x.c.flow.ToDomain
	}
	return ""
}

func (x *explainer) segments(p *party, d model.Direction) []Segment {
	out := []Segment{}
	if p.seat == nil {
		return out
	}
	for _, s := range x.e.world.Segments(x.workload(p)) {
		seg := Segment{Name: s.Name, Mode: s.Mode.String(), Closes: s.Closes(d)}
		if s.Mode == model.ModeSelective {
			for _, r := range x.servicePorts(s) {
				seg.Services = append(seg.Services, r.String())
			}
		}
		out = append(out, seg)
	}
	return out
}

// servicePorts returns the ports of a selective segment.
func (x *explainer) servicePorts(s *model.Segment) []model.PortRange {
	var out []model.PortRange
	for _, ref := range s.Services {
		if ref.Service == "" {
			out = append(out, ref.Range)
			continue
		}
		for i := range x.e.world.Documents().Services {
			if svc := &x.e.world.Documents().Services[i]; svc.Name == ref.Service {
				out = append(out, svc.Ports...)
			}
		}
	}
	return out
}

// known decides what does not depend on policy.
func (x *explainer) known(d model.Direction, self *party, out *EndExplanation) (model.EndVerdict, bool) {
	v := model.EndVerdict{Verdict: model.Allow}
	var why string
	if self.seat == nil || !self.seat.Managed {
		v.Rule = model.RuleUnmanaged
		why = "no workload has this address, so it has no say; the other end decides alone"
		if self.seat != nil {
			why = "nothing enforces at this workload (managed: false), so it has no say; the other end decides alone"
		}
	} else if v.Rule = x.e.essential(x.c, d); v.Rule != "" {
		why = whyEssential(v.Rule, x.c)
	} else {
		return v, false
	}
	out.Steps = append(out.Steps, Step{Rule: v.Rule, Action: "allow", Outcome: Decided, Why: why})
	return v, true
}

func whyEssential(rule model.RuleID, c *connection) string {
	switch rule {
	case model.RuleSameWorkload:
		return "both ends are one workload"
	case model.RuleController:
		return "an agent must always reach its controller"
	case model.RuleOwnNode:
		return "Kubernetes lets traffic between a pod and its own node through"
	}
	for i := range essential.Fixed {
		if f := &essential.Fixed[i]; f.Ports.Contains(c.flow.Proto, c.flow.Port) {
			return "always passes: " + f.Why
		}
	}
	return "always passes"
}

// candidates decides for everything the other end may be, and keeps the most permissive.
func (x *explainer) candidates(d model.Direction, self, other *party, out *EndExplanation) model.EndVerdict {
	all := x.mayBe(d, other)
	best := -1
	var verdict model.EndVerdict
	for i := range all {
		v, steps, unrelated := x.decide(d, self, &all[i])
		if best < 0 || v.Verdict > verdict.Verdict {
			best, verdict, out.Steps, out.Unrelated = i, v, steps, unrelated
		}
		if len(all) > 1 {
			w := all[i].workload
			out.Candidates = append(out.Candidates, Candidate{
				Workload: w.Name, Labels: w.Labels, Verdict: v.Verdict.String(), Rule: v.Rule,
			})
		}
	}
	if len(all) > 1 {
		out.Candidates[best].Counts = true
	}
	return verdict
}

// mayBe returns what the other end may be, ordered so that of equal verdicts the first one counts.
func (x *explainer) mayBe(d model.Direction, other *party) []candidate {
	if other.seat == nil || d == model.Egress || x.c.sameHost || other.seat.Seen == other.seat.Exact {
		id, identity := x.identity(other)
		return []candidate{{x.workload(other), id, identity}}
	}
	var out []candidate
	addr := x.e.address(other)
	for _, w := range x.e.world.Owners(addr) {
		at := w.At(addr)
		out = append(out, candidate{w, at.Identity, x.e.world.Identity(at.Identity)[0]})
	}
	slices.SortStableFunc(out, func(a, b candidate) int { return strings.Compare(a.identity.Key(), b.identity.Key()) })
	return out
}

// decide asks quarantine, rules and the default, one after the other.
func (x *explainer) decide(d model.Direction, self *party, other *candidate) (model.EndVerdict, []Step, int) {
	if v, s, ok := x.byPurpose(d, self, other); ok {
		return v, []Step{s}, 0
	}
	if v, s, ok := x.byQuarantine(d, self, other); ok {
		return v, []Step{s}, 0
	}
	var (
		verdict   model.EndVerdict
		steps     []Step
		unrelated int
		decided   bool
		_, me     = x.identity(self)
		segments  = x.e.world.Segments(x.workload(self))
		rules     = x.e.world.Rules(d)
		passed    = map[compile.Stage]bool{}
	)
	for i := range rules {
		r := &rules[i]
		s, related := x.ask(r, x.c.process(d), &me, &other.identity)
		switch {
		case !related:
			unrelated++
			continue
		case s.Outcome == NoMatch && decided:
			continue
		case s.Outcome == Decided && !decided && passed[r.Stage]:
			s.Outcome, s.Why = NotReached, "applies too, but a rule before it passed the rest of the tier over"
		case s.Outcome == Decided && !decided && r.Action == compile.Pass:
			passed[r.Stage] = true
			s.Outcome, s.Why = Passed, "matches: the rest of the tier is not asked"
		case s.Outcome == Decided && decided:
			s.Outcome, s.Why = NotReached, "applies too, but "+string(verdict.Rule)+" decided before it"
		case s.Outcome == Decided:
			decided = true
			verdict = model.EndVerdict{Verdict: model.Allow, Rule: r.ID}
			switch {
			case r.Action == compile.Deny && r.Stage == compile.StageIsolation:
				verdict.Verdict, s.Why = model.Deny, "no rule allows it, and a policy that selects the workload ("+s.At+") closes "+d.String()
			case r.Action == compile.Deny && r.Drops:
				verdict.Verdict = model.Deny
			case r.Action == compile.Deny:
				verdict.Verdict, s.Why = denial(segments)
			}
		}
		steps = append(steps, s)
	}
	if !decided {
		var s Step
		verdict, s = x.byDefault(d, segments)
		steps = append(steps, s)
	}
	return verdict, steps, unrelated
}

// byPurpose decides traffic with resolvers and time servers.
func (x *explainer) byPurpose(d model.Direction, self *party, other *candidate) (model.EndVerdict, Step, bool) {
	server := other.identity
	where := "towards"
	if d == model.Ingress {
		where = "at"
		_, server = x.identity(self)
	}
	for _, p := range []struct {
		purpose model.Purpose
		rule    model.RuleID
		applies bool
	}{
		{model.PurposeResolvers, model.RuleDNS, x.c.flow.Port == 53 && (x.c.flow.Proto == model.ProtoTCP || x.c.flow.Proto == model.ProtoUDP)},
		{model.PurposeTime, model.RuleTime, x.c.flow.Port == 123 && x.c.flow.Proto == model.ProtoUDP},
	} {
		if n := x.purposeNetwork(p.purpose, &server); p.applies && n != "" {
			v := model.EndVerdict{Verdict: model.Allow, Rule: p.rule}
			why := fmt.Sprintf("always passes %s network %s, whose purpose is %s", where, n, p.purpose)
			return v, Step{Rule: p.rule, Action: "allow", Outcome: Decided, Why: why}, true
		}
	}
	return model.EndVerdict{}, Step{}, false
}

// purposeNetwork returns a network of that purpose which the identity is in, or "".
func (x *explainer) purposeNetwork(p model.Purpose, id *model.Identity) string {
	networks := x.e.world.Documents().Networks
	for _, n := range id.Networks {
		if slices.ContainsFunc(networks, func(d model.Network) bool { return d.Name == n && d.Purpose == p }) {
			return n
		}
	}
	return ""
}

func (x *explainer) byQuarantine(d model.Direction, self *party, other *candidate) (model.EndVerdict, Step, bool) {
	q := &x.workload(self).Quarantine
	deny := func(rule model.RuleID, why string) (model.EndVerdict, Step, bool) {
		return model.EndVerdict{Rule: rule}, Step{Rule: rule, Action: "deny", Outcome: Decided, Why: why}, true
	}
	switch q.Level {
	case model.QuarantineIsolate:
		if n := x.purposeNetwork(model.PurposeForensic, &other.identity); n != "" {
			why := "the workload is isolated; network " + n + " is the forensic one and stays open"
			return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleForensic},
				Step{Rule: model.RuleForensic, Action: "allow", Outcome: Decided, Why: why}, true
		}
		return deny(model.RuleIsolate, "the workload is isolated: essentials and the forensic network only")
	case model.QuarantineRestrict:
		if other.workload != nil && !x.inUse(d, q, other) {
			return deny(model.RuleRestrict, "the workload is restricted, and this connection with another workload was not in use")
		}
	}
	return model.EndVerdict{}, Step{}, false
}

// inUse reports whether a restricted workload keeps the connection: one of its edges in use is with a workload that
// policy cannot tell from the other end.
func (x *explainer) inUse(d model.Direction, q *model.Quarantine, other *candidate) bool {
	for _, edge := range q.InUse {
		peer := x.e.world.Workload(edge.Peer)
		if peer == nil || edge.Direction != d || !edge.Ports.Contains(x.c.flow.Proto, x.c.flow.Port) {
			continue
		}
		for i := range peer.Points {
			if peer.Points[i].Identity == other.id {
				return true
			}
		}
	}
	return false
}

// ask compares a rule with the flow. related is false if it means neither end.
func (x *explainer) ask(r *compile.Rule, process *model.Process, self, other *model.Identity) (s Step, related bool) {
	subject, peer := r.Subject.Matches(self), r.Peer.Matches(other)
	from, to := &r.Peer, &r.Subject
	fromMatches, toMatches := peer, subject
	if r.Direction == model.Egress {
		from, to = to, from
		fromMatches, toMatches = toMatches, fromMatches
	}
	s = Step{Rule: r.ID, Action: r.Action.String(), From: from.String(), To: to.String(), At: r.Pos.String(), Outcome: Decided, On: []string{}}
	for _, p := range r.Ports {
		s.On = append(s.On, p.String())
	}
	var why []string
	miss := func(what, because string) {
		s.Outcome = NoMatch
		s.Misses, why = append(s.Misses, what), append(why, because)
	}
	if r.Expired {
		miss("expired", "it expired at "+r.Expires.UTC().Format("2006-01-02 15:04:05Z"))
	}
	if !fromMatches {
		miss("from", "from is "+s.From)
	}
	if !toMatches {
		miss("to", "to is "+s.To)
	}
	if !r.Covers(x.c.flow.Proto, x.c.flow.Port) {
		miss("ports", "it is on "+strings.Join(s.On, ", "))
	}
	if r.SubjectProcess != nil {
		s.Process = r.SubjectProcess.String()
		if !r.SubjectProcess.Admits(process) {
			is := "is not known"
			if process != nil {
				is = "is " + process.String()
			}
			miss("process", "it is for "+s.Process+", and the process "+is)
		}
	}
	s.Why = strings.Join(why, "; ")
	if s.Outcome == Decided {
		s.Why = fmt.Sprintf("from, to and port match: %s", s.Action)
	}
	return s, subject || peer
}

// denial returns what a deny rule does, and why.
func denial(segments []*model.Segment) (model.Verdict, string) {
	for _, s := range segments {
		if s.Mode != model.ModeObserve {
			return model.Deny, fmt.Sprintf("from, to and port match: dropped, as segment %s is %s", s.Name, s.Mode)
		}
	}
	if len(segments) == 0 {
		return model.WouldDeny, "from, to and port match, but the workload is in no segment: recorded, not dropped"
	}
	return model.WouldDeny, "from, to and port match, but every segment of the workload only observes: recorded, not dropped"
}

// byDefault returns the default and the step that it is.
func (x *explainer) byDefault(d model.Direction, segments []*model.Segment) (model.EndVerdict, Step) {
	s := Step{Rule: model.RuleDefaultDeny, Action: "deny", Outcome: Decided}
	v := model.EndVerdict{Verdict: model.WouldDeny, Rule: model.RuleDefaultDeny}
	closing := ""
	for _, seg := range segments {
		if !seg.Closes(d) {
			continue
		}
		closing = seg.Name
		drops := seg.Mode == model.ModeEnforce
		if seg.Mode == model.ModeSelective {
			drops = slices.ContainsFunc(x.servicePorts(seg), func(r model.PortRange) bool { return r.Contains(x.c.flow.Proto, x.c.flow.Port) })
		}
		if drops {
			v.Verdict = model.Deny
			s.Why = fmt.Sprintf("no rule allows it, and segment %s (%s) drops what is not allowed", seg.Name, seg.Mode)
			return v, s
		}
	}
	if closing != "" {
		s.Why = fmt.Sprintf("no rule allows it; segment %s denies by default but does not drop here: recorded only", closing)
		return v, s
	}
	s.Rule, s.Action = model.RuleOpen, "allow"
	s.Why = fmt.Sprintf("no rule decides, and no segment closes %s of this workload", d)
	return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleOpen}, s
}
