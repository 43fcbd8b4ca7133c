package kube

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// selector reads a label selector. Its keys get the prefix, by which a pod carries the labels of its namespace.
func (r *reader) selector(n *yaml.Node, what, prefix string) []model.Requirement {
	var out []model.Requirement
	r.fields(n, what,
		policy.Field{Name: "matchLabels", Read: func(v *yaml.Node) {
			if !r.IsMapping(v, "matchLabels") {
				return
			}
			r.Pairs(v, func(key string, k, v *yaml.Node) {
				if !r.labelKey(k, key) {
					return
				}
				if value, ok := r.labelValue(v); ok {
					out = append(out, model.Requirement{Key: prefix + key, Op: model.OpIn, Values: []string{value}})
				}
			})
		}},
		policy.Field{Name: "matchExpressions", Read: func(v *yaml.Node) {
			r.Each(v, "matchExpressions", true, func(v *yaml.Node) {
				if q, ok := r.expression(v); ok {
					q.Key = prefix + q.Key
					out = append(out, q)
				}
			})
		}},
	)
	return out
}

func (r *reader) labelValue(n *yaml.Node) (string, bool) {
	if isNull(n) {
		return "", true
	}
	value, ok := r.Text(n, "a label value")
	if !ok {
		return "", false
	}
	if err := model.CheckLabelValue(value); err != nil {
		r.Fail(n, "%v", err)
		return "", false
	}
	return value, true
}

// operators of match expressions, in the order of model.Op.
var operators = []string{"In", "NotIn", "Exists", "DoesNotExist"}

func (r *reader) expression(n *yaml.Node) (model.Requirement, bool) {
	var (
		q      model.Requirement
		ok     = true
		hasOp  bool
		values *yaml.Node
	)
	known := r.fields(n, "the match expression",
		policy.Field{Name: "key", Required: "name the label, such as key: app", Read: func(v *yaml.Node) {
			key, is := r.Text(v, "key")
			ok = is && r.labelKey(v, key) && ok
			q.Key = key
		}},
		policy.Field{Name: "operator", Required: "write operator: In, NotIn, Exists or DoesNotExist", Read: func(v *yaml.Node) {
			var i int
			i, hasOp = r.Choice(v, "operator", operators)
			q.Op = model.Op(i)
		}},
		policy.Field{Name: "values", Read: func(v *yaml.Node) {
			values = v
			r.Each(v, "values", true, func(v *yaml.Node) {
				if value, is := r.labelValue(v); is {
					q.Values = append(q.Values, value)
				} else {
					ok = false
				}
			})
		}},
	)
	if !known || !hasOp || !ok || q.Key == "" {
		return q, false
	}
	switch wants := q.Op == model.OpIn || q.Op == model.OpNotIn; {
	case wants && (values == nil || len(values.Content) == 0):
		r.Fail(n, "operator %s needs values; list at least one", operators[q.Op])
		return q, false
	case !wants && values != nil && len(values.Content) > 0:
		r.Fail(values, "operator %s takes no values; remove them, or use In or NotIn", operators[q.Op])
		return q, false
	}
	slices.Sort(q.Values)
	q.Values = slices.Compact(q.Values)
	return q, true
}

// Requirements that the selectors of every policy carry.
var (
	// isPod leaves out everything that is no pod, and pods that use their node's network: Kubernetes applies no policy
	// to those, and no selector of pods means them.
	isPod  = model.Requirement{Key: model.PodLabel, Op: model.OpIn, Values: []string{model.PodValue}}
	isNode = model.Requirement{Key: model.NodeLabel, Op: model.OpIn, Values: []string{model.NodeValue}}
)

// inNamespace is met by the pods of a namespace.
func inNamespace(name string) model.Requirement {
	return model.Requirement{Key: model.NamespaceLabelPrefix + namespaceName, Op: model.OpIn, Values: []string{name}}
}

// podsWhere selects pods, without those that use their node's network.
func podsWhere(requirements ...[]model.Requirement) model.Selector {
	return model.NewSelector(append(slices.Concat(requirements...), isPod)...)
}
