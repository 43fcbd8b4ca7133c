package prove

import (
	"fmt"
	"net/netip"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
)

// Case is what one case of an expectation came to.
type Case struct {
	Expectation string       `json:"expectation"`
	At          string       `json:"at,omitempty"` // place of the case
	From        string       `json:"from"`
	To          string       `json:"to"`
	On          string       `json:"on"`
	Expect      string       `json:"expect"`
	Got         string       `json:"got,omitempty"`
	EgressRule  model.RuleID `json:"egress_rule,omitempty"`
	IngressRule model.RuleID `json:"ingress_rule,omitempty"`
	Error       string       `json:"error,omitempty"` // why it cannot be judged
	Pass        bool         `json:"pass"`
}

// String returns the case in one sentence.
func (c *Case) String() string {
	text := fmt.Sprintf("%s to %s on %s: expected %s", c.From, c.To, c.On, c.Expect)
	switch {
	case c.Error != "":
		return text + ", but it cannot be judged: " + c.Error
	case c.Pass:
		return text
	}
	return fmt.Sprintf("%s, got %s (%s at the source, %s at the destination)", text, c.Got, c.EgressRule, c.IngressRule)
}

// Expectations judges every case of every expectation of the world's documents, in their order.
func Expectations(w *compile.World) []Case {
	e := verdict.New(w)
	var out []Case
	docs := w.Documents()
	for i := range docs.Expectations {
		for k := range docs.Expectations[i].Cases {
			out = append(out, judge(e, docs.Expectations[i].Name, &docs.Expectations[i].Cases[k]))
		}
	}
	return out
}

func judge(e *verdict.Evaluator, name string, c *model.ExpectationCase) Case {
	out := Case{
		Expectation: name, At: c.Pos.String(), From: c.From, To: c.To, On: c.On.String(), Expect: c.Expect.String(),
	}
	v, err := e.Judge(&model.Flow{From: endOf(c.From), To: endOf(c.To), Proto: c.On.Proto, Port: c.On.Lo})
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.Got, out.EgressRule, out.IngressRule = v.Verdict.String(), v.Egress.Rule, v.Ingress.Rule
	out.Pass = v.Verdict == c.Expect
	return out
}

// endOf reads a workload's name or an address, as documents give them.
func endOf(s string) model.End {
	end := model.End{Workload: s}
	if a, err := netip.ParseAddr(s); err == nil {
		end.Addr = a
	}
	return end
}
