package importer

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// exprOp is the operator of an expression of Calico's selector language
// (docs.tigera.io/calico/latest/reference/resources/networkpolicy, "Selectors").
type exprOp uint8

const (
	exprTrue    exprOp = iota // all()
	exprGlobal                // global(): what is in no namespace
	exprUnknown               // nobody here can tell
	exprIn                    // ==, in
	exprNotIn                 // !=, not in: also where the label is missing
	exprHas
	exprContains
	exprStarts
	exprEnds
	exprNot
	exprAnd
	exprOr
)

// expr is an expression. Of the comparisons, key and values count; of the others, args.
type expr struct {
	op     exprOp
	key    string
	values []string
	args   []*expr
}

// truth is true, false or not known.
type truth int8

const (
	no truth = iota - 1
	perhaps
	yes
)

func both(list ...*expr) *expr {
	list = slices.DeleteFunc(list, func(e *expr) bool { return e == nil })
	if len(list) == 1 {
		return list[0]
	}
	return &expr{op: exprAnd, args: list}
}

func notExpr(e *expr) *expr { return &expr{op: exprNot, args: []*expr{e}} }

// holds evaluates the expression where get gives the value of a label, or says that it is not known.
func (e *expr) holds(global bool, get func(key string) (value string, there, known bool)) truth {
	is := func(b bool) truth {
		if b {
			return yes
		}
		return no
	}
	switch e.op {
	case exprTrue:
		return yes
	case exprGlobal:
		return is(global)
	case exprUnknown:
		return perhaps
	case exprNot:
		return -e.args[0].holds(global, get)
	case exprAnd, exprOr:
		out := yes
		if e.op == exprOr {
			out = no
		}
		for _, a := range e.args {
			if h := a.holds(global, get); e.op == exprAnd {
				out = min(out, h)
			} else {
				out = max(out, h)
			}
		}
		return out
	}
	v, there, known := get(e.key)
	if !known {
		return perhaps
	}
	switch e.op {
	case exprIn:
		return is(there && slices.Contains(e.values, v))
	case exprNotIn:
		return is(!there || !slices.Contains(e.values, v))
	case exprHas:
		return is(there)
	case exprContains:
		return is(there && strings.Contains(v, e.values[0]))
	case exprStarts:
		return is(there && strings.HasPrefix(v, e.values[0]))
	case exprEnds:
		return is(there && strings.HasSuffix(v, e.values[0]))
	}
	return perhaps
}

// alternatives are conjunctions of requirements of which one has to be met. There is always one for everybody: an empty
// conjunction, and none for nobody.
type alternatives [][]model.Requirement

// maxAlternatives is how many conjunctions a selector may need. Beyond, nobody knows whom it means.
const maxAlternatives = 64

// alternatives returns which pods meet the expression, or, negated, do not: at least those if over, else at most those.
func (e *expr) alternatives(negated, over bool) alternatives {
	out, ok := e.disjunction(negated, over)
	switch {
	case ok:
		return out
	case over:
		return alternatives{nil}
	}
	return nil
}

func (e *expr) disjunction(negated, over bool) (alternatives, bool) {
	constant := func(b bool) (alternatives, bool) {
		if b {
			return alternatives{nil}, true
		}
		return nil, true
	}
	one := func(r model.Requirement) (alternatives, bool) {
		if negated {
			r = not(r)
		}
		return alternatives{{r}}, true
	}
	switch e.op {
	case exprTrue:
		return constant(!negated)
	case exprGlobal: // every pod is in a namespace
		return constant(negated)
	case exprNot:
		return e.args[0].disjunction(!negated, over)
	case exprAnd, exprOr:
		if (e.op == exprOr) != negated {
			return union(e.args, negated, over)
		}
		return product(e.args, negated, over)
	}
	key, fixed, known := podKey(e.key)
	if fixed != "" { // the same of every pod
		h := e.holds(false, func(string) (string, bool, bool) { return fixed, true, true })
		return constant((h == yes) != negated)
	}
	if !known || e.op != exprIn && e.op != exprNotIn && e.op != exprHas {
		return constant(over)
	}
	if model.CheckSelectorKey(key) != nil { // no pod can have it
		return constant((e.op == exprNotIn) != negated)
	}
	switch e.op {
	case exprHas:
		return one(model.Requirement{Key: key, Op: model.OpExists})
	default:
		values := slices.DeleteFunc(slices.Clone(e.values), func(v string) bool { return model.CheckLabelValue(v) != nil })
		if len(values) == 0 { // no pod has any of them
			return constant((e.op == exprNotIn) != negated)
		}
		r := is(key, values...)
		if e.op == exprNotIn {
			r = not(r)
		}
		return one(r)
	}
}

func union(args []*expr, negated, over bool) (alternatives, bool) {
	var out alternatives
	for _, a := range args {
		more, ok := a.disjunction(negated, over)
		if out = append(out, more...); !ok || len(out) > maxAlternatives {
			return nil, false
		}
	}
	return out.tidy(), true
}

func product(args []*expr, negated, over bool) (alternatives, bool) {
	out := alternatives{nil}
	for _, a := range args {
		more, ok := a.disjunction(negated, over)
		if !ok || len(out)*len(more) > maxAlternatives {
			return nil, false
		}
		out = out.and(more)
	}
	return out, true
}

// and returns the alternatives that meet one of both.
func (a alternatives) and(b alternatives) alternatives {
	var out alternatives
	for _, x := range a {
		for _, y := range b {
			out = append(out, slices.Concat(x, y))
		}
	}
	return out.tidy()
}

// tidy leaves out what nobody can meet and what is there twice.
func (a alternatives) tidy() alternatives {
	var out alternatives
	seen := map[string]bool{}
	for _, x := range a {
		s := model.NewSelector(slices.Clone(x)...)
		if key := s.String(); !seen[key] && s.Contradiction() == "" {
			seen[key] = true
			out = append(out, s.Requirements)
		}
	}
	return out
}

// Labels that Calico gives a pod, beside its own (libcalico-go/lib/backend/k8s/conversion).
const (
	calicoNamespace    = "projectcalico.org/namespace"
	calicoAccount      = "projectcalico.org/serviceaccount"
	calicoOrchestrator = "projectcalico.org/orchestrator"
	calicoName         = "projectcalico.org/name" // of a namespace
	namespacePrefix    = "pcns."
	accountPrefix      = "pcsa."
)

// podKey returns the key under which a pod has the label here, or the value that it has at every pod.
func podKey(key string) (own, fixed string, known bool) {
	switch {
	case key == calicoNamespace || key == namespacePrefix+calicoName:
		return namespaceKey, "", true
	case key == calicoOrchestrator:
		return "", "k8s", true
	case key == calicoAccount || strings.HasPrefix(key, accountPrefix):
		return "", "", false
	case strings.HasPrefix(key, namespacePrefix):
		return model.NamespaceLabelPrefix + strings.TrimPrefix(key, namespacePrefix), "", true
	case strings.HasPrefix(key, model.SystemLabelPrefix):
		return "", "", false // of ours: no label of Calico's
	}
	return key, "", true
}

// inNamespaces turns a selector of namespaces into one of what is in them.
func (e *expr) inNamespaces() *expr {
	switch e.op {
	case exprTrue:
		return &expr{op: exprHas, key: calicoNamespace}
	case exprNot, exprAnd, exprOr:
		out := &expr{op: e.op}
		for _, a := range e.args {
			out.args = append(out.args, a.inNamespaces())
		}
		return out
	case exprGlobal, exprUnknown:
		return e
	}
	out := *e
	out.key = namespacePrefix + e.key
	return &out
}

// compares reports whether the expression asks for a label.
func (e *expr) compares() bool { return e.key != "" || slices.ContainsFunc(e.args, (*expr).compares) }

// strange returns what of the expression nobody here can tell, in words; "" if there is nothing.
func (e *expr) strange() string {
	for _, a := range e.args {
		if s := a.strange(); s != "" {
			return s
		}
	}
	switch e.op {
	case exprContains, exprStarts, exprEnds:
		return fmt.Sprintf("a comparison with parts of the value of %s", strings.TrimPrefix(e.key, namespacePrefix))
	case exprIn, exprNotIn, exprHas:
		if _, fixed, known := podKey(e.key); fixed == "" && !known {
			return "the label " + e.key
		}
	case exprUnknown:
		return "a service account"
	}
	return ""
}
