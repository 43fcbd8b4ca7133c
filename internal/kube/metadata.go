package kube

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// metadata is what matters of an object's metadata.
type metadata struct {
	name, namespace string
	labels          model.Labels
	owners          []owner
	pos             model.Position // of the name
}

// owner is an object that another one belongs to, in the same namespace.
type owner struct{ kind, name string }

// defaultNamespace is where kubectl puts what names no namespace.
const defaultNamespace = "default"

// Labels that the API server gives every namespace.
const namespaceName = "kubernetes.io/metadata.name"

var (
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	dnsLabel  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
)

// metadata reads the metadata of an object and keeps that the object is there: two of one kind and name are an error.
// It returns nil if the object has no name that could be used.
func (r *reader) metadata(kind string, namespaced bool, n *yaml.Node) *metadata {
	meta := child(n, "metadata")
	if meta == nil {
		r.Fail(n, "metadata is missing in the %s; write metadata: {name: …}", kind)
		return nil
	}
	if !r.IsMapping(meta, "metadata") {
		return nil
	}
	name := child(meta, "name")
	if name == nil {
		r.Fail(meta, "name is missing in metadata; a %s is judged under its name", kind)
		return nil
	}
	m := &metadata{pos: r.Pos(name)}
	var ok bool
	if m.name, ok = r.Text(name, "name"); !ok {
		return nil
	}
	if len(m.name) > 253 || !subdomain.MatchString(m.name) {
		r.Fail(name, "name %q: use up to 253 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit", m.name)
		return nil
	}
	key := kind + " " + m.name
	if namespaced {
		m.namespace = defaultNamespace
		if ns := child(meta, "namespace"); ns != nil {
			if m.namespace, ok = r.namespaceOf(ns); !ok {
				return nil
			}
		}
		key = kind + " " + m.namespace + "/" + m.name
	}
	if before, ok := r.seen[key]; ok {
		r.Fail(name, "the %s is there already, at %s; remove one", key, before)
		return nil
	}
	r.seen[key] = m.pos
	m.labels = r.labels(child(meta, "labels"))
	if owners := child(meta, "ownerReferences"); owners != nil {
		r.Each(owners, "ownerReferences", true, func(o *yaml.Node) {
			kind, _ := scalar(child(o, "kind"))
			name, _ := scalar(child(o, "name"))
			m.owners = append(m.owners, owner{kind, name})
		})
	}
	return m
}

func (r *reader) namespaceOf(n *yaml.Node) (string, bool) {
	s, ok := r.Text(n, "namespace")
	if !ok {
		return "", false
	}
	if len(s) > 63 || !dnsLabel.MatchString(s) {
		r.Fail(n, "namespace %q: use up to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit", s)
		return "", false
	}
	return s, true
}

// labels reads labels; nil if there are none.
func (r *reader) labels(n *yaml.Node) model.Labels {
	if n == nil || !r.IsMapping(n, "labels") {
		return nil
	}
	labels := model.Labels{}
	r.Pairs(n, func(key string, k, v *yaml.Node) {
		if isNull(v) {
			labels[key] = ""
			return
		}
		value, ok := r.Text(v, "the label "+key)
		if !ok || !r.labelKey(k, key) {
			return
		}
		if err := model.CheckLabelValue(value); err != nil {
			r.Fail(v, "%v", err)
			return
		}
		labels[key] = value
	})
	return labels
}

// labelKey checks the key of a label of an object, or of a selector. Those that the system sets are nobody else's: whoever
// may label a pod must not be able to put it into quarantine or take it out.
func (r *reader) labelKey(n *yaml.Node, key string) bool {
	if err := model.CheckLabelKey(key); err != nil {
		r.Fail(n, "%v", err)
		return false
	}
	if strings.HasPrefix(key, model.SystemLabelPrefix) {
		r.Fail(n, "labels under %s are set by the system only; use another key than %q", model.SystemLabelPrefix, key)
		return false
	}
	return true
}

// metadataFields are the fields that an object's metadata may have.
var metadataFields = []string{
	"name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields",
	"ownerReferences", "finalizers", "generateName", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds",
}

// strict reads an object of a policy kind: its fields are known, and so are those of its metadata. It returns the
// metadata, nil if there is none that could be used, and the spec, nil if there is none.
func (r *reader) strict(kind string, namespaced bool, n *yaml.Node) (*metadata, *yaml.Node) {
	var spec *yaml.Node
	r.fields(n, "the "+kind,
		policy.Field{Name: "apiVersion", Read: ignore},
		policy.Field{Name: "kind", Read: ignore},
		policy.Field{Name: "metadata", Read: func(v *yaml.Node) {
			known := make([]policy.Field, len(metadataFields))
			for i, name := range metadataFields {
				known[i] = policy.Field{Name: name, Read: ignore}
				if name == "namespace" && !namespaced {
					known[i].Read = func(v *yaml.Node) {
						r.Fail(v, "a %s is for the whole cluster and has no namespace; remove this line", kind)
					}
				}
			}
			r.fields(v, "metadata", known...)
		}},
		policy.Field{Name: "spec", Read: func(v *yaml.Node) { spec = v }},
		policy.Field{Name: "status", Read: ignore},
	)
	return r.metadata(kind, namespaced, n), spec
}

func ignore(*yaml.Node) {}

// fields reads the fields of a mapping. A field with nothing in it is not there, as to the API server.
func (r *reader) fields(n *yaml.Node, what string, fields ...policy.Field) bool {
	if n.Kind != yaml.MappingNode {
		return r.IsMapping(n, what)
	}
	there := *n
	there.Content = make([]*yaml.Node, 0, len(n.Content))
	for i := 0; i+1 < len(n.Content); i += 2 {
		known := false
		for _, f := range fields {
			known = known || f.Name == n.Content[i].Value
		}
		if known && isNull(n.Content[i+1]) {
			continue
		}
		there.Content = append(there.Content, n.Content[i], n.Content[i+1])
	}
	return r.Mapping(&there, what, fields...)
}
