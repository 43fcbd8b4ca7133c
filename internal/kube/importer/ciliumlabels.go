package importer

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// Keys under which Cilium gives an endpoint labels of its own (pkg/k8s/apis/cilium.io/const.go).
const (
	ciliumNamespace       = "io.kubernetes.pod.namespace"
	ciliumNamespaceLabels = "io.cilium.k8s.namespace.labels."
	ciliumCluster         = "io.cilium.k8s.policy.cluster"
	ciliumAccount         = "io.cilium.k8s.policy.serviceaccount"
)

// notIdentity are the labels of pods that Cilium leaves out of identities unless it is told otherwise: no selector ever
// meets them (pkg/labelsfilter/filter.go, defaultLabelPrefixCfg).
var notIdentity = regexp.MustCompile(`^(io\.kubernetes|kubernetes\.io|statefulset\.kubernetes\.io/pod-name|apps\.kubernetes\.io/pod-index|` +
	`batch\.kubernetes\.io/job-completion-index|batch\.kubernetes\.io/controller-uid|controller-uid|.*beta\.kubernetes\.io|k8s\.io|` +
	`pod-template-generation|pod-template-hash|controller-revision-hash|annotation|etcd_node)`)

// ciliumSelected is what a selector of Cilium's means.
type ciliumSelected struct {
	atLeast, atMost []model.Requirement // everybody who is selected meets the former; who meets the latter is selected
	exact           bool                // both are the same
	unknown         bool                // nothing is known of who is selected: there is no atMost
	keys            []string            // without the prefix of their source
	reserved        []string            // keys of the source reserved: entities
}

func (c *ciliumSelected) has(match func(string) bool) bool { return slices.ContainsFunc(c.keys, match) }

// sourceOf splits a key of Cilium's into the source of the label and the key of it. A key without a source means the
// label of any (pkg/labels.GetCiliumKeyFrom).
func sourceOf(key string) (source, rest string) {
	if s, rest, ok := strings.Cut(key, ":"); ok {
		return s, rest
	}
	return "any", key
}

// ciliumSelector reads a label selector whose keys may name the source of a label. Labels of pods are found as they are,
// those of nodes under prefix.
func (c *ciliumRule) ciliumSelector(n *yaml.Node, path, prefix string) (out ciliumSelected, ok bool) {
	out.exact, ok = true, true
	add := func(n *yaml.Node, path, key string, r model.Requirement) {
		source, rest := sourceOf(key)
		if source == "reserved" {
			out.reserved = append(out.reserved, rest)
			return
		}
		out.keys = append(out.keys, rest)
		r.Key = prefix + rest
		switch {
		case source != "any" && source != "k8s":
			out.exact, out.unknown = false, true
			c.say(Narrower, n, path, "select by a label of Kubernetes", "labels of the source %q are known to Cilium only", source)
			return
		case prefix != "":
		case rest == ciliumNamespace:
			r.Key = namespaceKey
		case strings.HasPrefix(rest, ciliumNamespaceLabels):
			r.Key = model.NamespaceLabelPrefix + strings.TrimPrefix(rest, ciliumNamespaceLabels)
		case rest == ciliumCluster || rest == ciliumAccount:
			out.exact, out.unknown = false, true
			c.say(Narrower, n, path, "select by labels of the pods", "%s is no label that a manifest gives a pod", rest)
			return
		case notIdentity.MatchString(rest) && !strings.HasPrefix(rest, "app.kubernetes.io"):
			// To Cilium the label is missing, if it is set up as usual.
			out.exact = false
			c.say(Narrower, n, path, "select by another label, or add it to the labels option of Cilium and write the policy by hand",
				"Cilium leaves the label %s out of identities unless it is told otherwise", rest)
			if r.Op == model.OpIn || r.Op == model.OpExists {
				out.unknown = true
				out.atLeast = append(out.atLeast, r)
			} else {
				out.atMost = append(out.atMost, r)
			}
			return
		}
		if err := model.CheckSelectorKey(r.Key); err != nil {
			c.Fail(n, "%s: %v", path, err)
			ok = false
			return
		}
		if strings.HasPrefix(r.Key, model.SystemLabelPrefix) {
			c.Fail(n, "%s: labels under %s are set by the system only; use another key than %q", path, model.SystemLabelPrefix, r.Key)
			ok = false
			return
		}
		out.atLeast, out.atMost = append(out.atLeast, r), append(out.atMost, r)
	}
	value := func(n *yaml.Node, path string) (string, bool) {
		if isNull(n) {
			return "", true
		}
		v, is := c.Text(n, path)
		if !is {
			return "", false
		}
		if err := model.CheckLabelValue(v); err != nil {
			c.Fail(n, "%s: %v", path, err)
			return "", false
		}
		return v, true
	}
	known := c.fields(n, path,
		field("matchLabels", func(v *yaml.Node) {
			if !c.IsMapping(v, path+".matchLabels") {
				ok = false
				return
			}
			c.Pairs(v, func(key string, k, v *yaml.Node) {
				text, is := value(v, path+".matchLabels."+key)
				if !is {
					ok = false
					return
				}
				add(k, path+".matchLabels."+key, key, model.Requirement{Op: model.OpIn, Values: []string{text}})
			})
		}),
		field("matchExpressions", func(v *yaml.Node) {
			c.each(v, path+".matchExpressions", func(v *yaml.Node, path string) {
				var r model.Requirement
				key, op := "", -1
				all := c.fields(v, path,
					field("key", func(v *yaml.Node) { key, _ = c.Text(v, path+".key") }),
					field("operator", func(v *yaml.Node) {
						if i, is := c.Choice(v, "operator", []string{"In", "NotIn", "Exists", "DoesNotExist"}); is {
							op = i
						}
					}),
					field("values", func(v *yaml.Node) {
						c.each(v, path+".values", func(v *yaml.Node, path string) {
							if text, is := value(v, path); is {
								r.Values = append(r.Values, text)
							} else {
								ok = false
							}
						})
					}),
				)
				wants := op == int(model.OpIn) || op == int(model.OpNotIn)
				if !all || key == "" || op < 0 || wants != (len(r.Values) > 0) {
					if all && ok {
						c.Fail(v, "%s: an expression has a key, an operator, and values exactly if that is In or NotIn", path)
					}
					ok = false
					return
				}
				r.Op = model.Op(op)
				slices.Sort(r.Values)
				r.Values = slices.Compact(r.Values)
				add(v, path, key, r)
			})
		}),
	)
	return out, ok && known
}

// subject reads whom the rule is for.
func (c *ciliumRule) subject(n *yaml.Node, path string) {
	if c.host {
		s, ok := c.ciliumSelector(n, path+".nodeSelector", model.NodeLabelPrefix)
		c.take(n, path+".nodeSelector", s, ok, isNode)
		return
	}
	path += ".endpointSelector"
	s, ok := c.ciliumSelector(n, path, "")
	more := []model.Requirement{isPod}
	if c.namespace != "" {
		// It is for pods of its own namespace only, whatever it says (pkg/k8s/apis/cilium.io/utils.ParseToCiliumRule).
		own := is(namespaceKey, c.namespace)
		for _, r := range s.atLeast {
			if r.Key == namespaceKey && r.Op == model.OpIn && !slices.Equal(r.Values, own.Values) {
				c.say(Note, n, path, "remove the namespace from the selector", "Cilium puts the policy's own namespace in place of %s", r.Values[0])
			}
		}
		replaced := func(r model.Requirement) bool {
			return r.Key == namespaceKey && r.Op == model.OpIn && len(r.Values) == 1
		}
		s.atLeast, s.atMost = slices.DeleteFunc(s.atLeast, replaced), slices.DeleteFunc(s.atMost, replaced)
		more = append(more, own)
	}
	c.take(n, path, s, ok, more...)
}

func (c *ciliumRule) take(n *yaml.Node, path string, s ciliumSelected, ok bool, more ...model.Requirement) {
	c.atLeast, c.atMost = append(s.atLeast, more...), append(s.atMost, more...)
	c.noAllow = s.unknown
	c.nobody = !ok
	if len(s.reserved) > 0 {
		c.nobody = true
		c.say(Note, n, path, "nothing is to be done", "endpoints that Cilium makes for itself (reserved:%s) are no pods; the rule was left out", s.reserved[0])
		return
	}
	if s.unknown && ok {
		c.say(Narrower, n, path, "select the pods by labels that their manifests have", "whom the rule is for is not exactly known: what it denies holds for all who may be meant, what it allows was left out")
	}
}
