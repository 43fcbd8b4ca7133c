// Package importer turns the policies of other systems into one-sided policies: Calico's and Cilium's, which judge each
// end of a connection by its own policies alone, as Kubernetes does.
//
// An import never widens. Under the assumptions of docs/import.md, every communication that its output allows is
// allowed by its input. What cannot be said is left out of what allows, and widened in what denies, and each time a
// Diagnostic names the place, the field, what it means and what to do. The package does no I/O; its functions may be
// called from several goroutines at once.
package importer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/kube"
)

// Severity says what a diagnostic means for the output.
type Severity uint8

// The severities.
const (
	Note     Severity = iota // the output means the same; there is something to know
	Narrower                 // the output denies something that the input allows
	Refused                  // the output cannot hold what the input denies
)

// String returns note, narrower or refused.
func (s Severity) String() string { return [...]string{"note", "narrower", "refused"}[s] }

// Diagnostic is an element of the input that the output does not simply repeat.
type Diagnostic struct {
	Pos      model.Position
	Severity Severity
	Object   string // such as "CiliumNetworkPolicy shop/web"
	Field    string // path of the element within the object
	Msg      string // what it means
	Fix      string // what to do next
}

// String returns the diagnostic in one line, place first.
func (d *Diagnostic) String() string {
	return fmt.Sprintf("%s: %s: %s: %s: %s; %s", d.Pos, d.Severity, d.Object, d.Field, d.Msg, d.Fix)
}

// Result is what an import makes of its input.
type Result struct {
	Policies    []model.OneSided // sorted by tier, priority and name
	Diagnostics []Diagnostic     // sorted by position
	Objects     int              // how many of the input say something here
	origins     map[string]string
}

// Worst returns the greatest severity among the diagnostics.
func (r *Result) Worst() Severity {
	worst := Note
	for i := range r.Diagnostics {
		worst = max(worst, r.Diagnostics[i].Severity)
	}
	return worst
}

// Manifests returns the policies as manifests that -f reads, each with its origin above it.
func (r *Result) Manifests() ([]byte, error) {
	return kube.Marshal(r.Policies, func(p *model.OneSided) string { return r.origins[p.Name] })
}

func (r *Result) sort() {
	slices.SortStableFunc(r.Policies, func(a, b model.OneSided) int {
		return cmp.Or(cmp.Compare(a.Tier, b.Tier), cmp.Compare(a.Priority, b.Priority), strings.Compare(a.Name, b.Name))
	})
	slices.SortStableFunc(r.Diagnostics, func(a, b Diagnostic) int {
		return cmp.Or(a.Pos.Compare(b.Pos), strings.Compare(a.Field, b.Field), strings.Compare(a.Msg, b.Msg))
	})
	r.Diagnostics = slices.Compact(r.Diagnostics)
}

// source is the object that is being read, with the reader that it stands in.
type source struct {
	*policy.Reader
	out             *Result
	kind            string
	namespace, name string // namespace "" for what is cluster-wide
	pos             model.Position
}

func (s *source) object() string {
	if s.namespace == "" {
		return s.kind + " " + s.name
	}
	return s.kind + " " + s.namespace + "/" + s.name
}

func (s *source) say(sev Severity, n *yaml.Node, field, fix, format string, args ...any) {
	s.sayAt(sev, s.Pos(n), field, fix, format, args...)
}

func (s *source) sayAt(sev Severity, pos model.Position, field, fix, format string, args ...any) {
	s.out.Diagnostics = append(s.out.Diagnostics, Diagnostic{
		Pos: pos, Severity: sev, Object: s.object(), Field: field, Msg: fmt.Sprintf(format, args...), Fix: fix,
	})
}

// add keeps a policy that came from the object, unless it says nothing.
func (s *source) add(p model.OneSided) {
	if len(p.Rules) == 0 && !p.Isolates[model.Ingress] && !p.Isolates[model.Egress] {
		return
	}
	p.Pos = s.pos
	s.out.Policies = append(s.out.Policies, p)
	s.out.origins[p.Name] = fmt.Sprintf("%s (%s)", s.object(), s.pos)
}

// metadata reads what names the object. Labels are returned for the kinds that are selected by them.
func (s *source) metadata(n *yaml.Node, namespaced bool) (labels model.Labels, ok bool) {
	meta := child(n, "metadata")
	if meta == nil || child(meta, "name") == nil {
		s.Fail(n, "the %s has no name; write metadata: {name: …}", s.kind)
		return nil, false
	}
	if s.name, ok = s.Text(child(meta, "name"), "name"); !ok {
		return nil, false
	}
	s.pos = s.Pos(child(meta, "name"))
	if !nameLike.MatchString(s.name) {
		s.Fail(child(meta, "name"), "name %q: use lower-case letters, digits, '-' and '.'", s.name)
		return nil, false
	}
	if namespaced {
		s.namespace = "default"
		if ns := child(meta, "namespace"); ns != nil {
			if s.namespace, ok = s.Text(ns, "namespace"); !ok || !nameLike.MatchString(s.namespace) {
				s.Fail(ns, "namespace %q: use lower-case letters, digits and '-'", s.namespace)
				return nil, false
			}
		}
	}
	labels = model.Labels{}
	if l := child(meta, "labels"); l != nil && s.IsMapping(l, "labels") {
		s.Pairs(l, func(key string, _, v *yaml.Node) {
			if isNull(v) {
				labels[key] = ""
			} else if value, isText := s.Text(v, "the label "+key); isText {
				labels[key] = value
			}
		})
	}
	return labels, true
}
