package policy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// document reads one document of any kind.
func (r *reader) document(n *yaml.Node) {
	var kind model.Kind
	var metadata, spec *yaml.Node
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a document of comments
	}
	r.mapping(n, "the document",
		field{"apiVersion", "write apiVersion: " + model.APIVersion, func(v *yaml.Node) {
			if s, ok := r.text(v, "apiVersion"); ok && s != model.APIVersion {
				r.fail(v, "unknown apiVersion %q; write %s", s, model.APIVersion)
			}
		}},
		field{"kind", "write what it is: " + alternatives(kindNames()), func(v *yaml.Node) {
			if i, ok := r.choice(v, "kind", kindNames()); ok {
				kind = model.Kinds[i]
			}
		}},
		field{"metadata", "write metadata: {name: …}", func(v *yaml.Node) { metadata = v }},
		field{"spec", "write what it says under spec:", func(v *yaml.Node) { spec = v }},
	)
	if kind == "" {
		return
	}
	meta := model.Meta{Pos: r.pos(n)}
	if metadata != nil {
		meta = r.meta(metadata, kind)
	}
	if spec == nil { // reported already, but the document does declare its name
		r = &reader{file: r.file, chunk: r.chunk, docs: r.docs}
		spec = &yaml.Node{Kind: yaml.MappingNode}
	}
	r.spec(kind, meta, spec)
}

func kindNames() []string {
	names := make([]string, len(model.Kinds))
	for i, k := range model.Kinds {
		names[i] = string(k)
	}
	return names
}

// spec reads the spec of a document and keeps the document if it has a name.
func (r *reader) spec(kind model.Kind, meta model.Meta, n *yaml.Node) {
	d := r.docs
	switch kind {
	case model.KindService:
		keep(&d.Services, r.service(meta, n), meta)
	case model.KindNetwork:
		keep(&d.Networks, r.network(meta, n), meta)
	case model.KindWorkload:
		keep(&d.Workloads, r.workload(meta, n), meta)
	case model.KindSegment:
		keep(&d.Segments, r.segment(meta, n), meta)
	case model.KindPolicy:
		keep(&d.Policies, r.policy(meta, n), meta)
	case model.KindGuardrail:
		keep(&d.Guardrails, r.guardrail(meta, n), meta)
	case model.KindExpectation:
		keep(&d.Expectations, r.expectation(meta, n), meta)
	}
}

func keep[T any](list *[]T, doc T, meta model.Meta) {
	if meta.Name != "" {
		*list = append(*list, doc)
	}
}

// Limits of metadata, in bytes.
const (
	maxName  = 253
	maxOwner = 253
	maxNote  = 16 << 10
)

func (r *reader) meta(n *yaml.Node, kind model.Kind) model.Meta {
	m := model.Meta{Pos: r.pos(n)}
	r.mapping(n, "metadata",
		field{"name", "every document has a name", func(v *yaml.Node) {
			m.Pos = r.pos(v)
			if s, ok := r.free(v, "name"); ok {
				if why := checkName(kind, s); why != "" {
					r.fail(v, "%s", why)
				} else {
					m.Name = s
				}
			}
		}},
		field{"labels", "", func(v *yaml.Node) {
			if kind != model.KindWorkload {
				r.fail(v, "labels stand on a Workload only; a %s is found by its name", kind)
				return
			}
			m.Labels = r.labels(v)
		}},
		field{"owner", "", func(v *yaml.Node) { m.Owner, _ = r.filled(v, "owner", maxOwner) }},
		field{"note", "", func(v *yaml.Node) { m.Note, _ = r.filled(v, "note", maxNote) }},
	)
	return m
}

func (r *reader) labels(n *yaml.Node) model.Labels {
	if !r.isMapping(n, "labels") {
		return nil
	}
	var labels model.Labels
	r.pairs(n, func(key string, k, v *yaml.Node) {
		if k.Tag != "!!str" {
			r.fail(k, "a label key must be text, not %s; write %q in quotes", kindOf(k), key)
			return
		}
		if strings.HasPrefix(key, model.NamespaceLabelPrefix) {
			r.fail(k, "the label %q is a namespace's, and stands in selectors only; label the Namespace in its manifest", key)
			return
		}
		if err := model.CheckLabelKey(key); err != nil {
			r.fail(k, "%v", err)
			return
		}
		if strings.HasPrefix(key, model.SystemLabelPrefix) {
			r.fail(k, "the label %q is set by the system only; remove it (selectors may use it)", key)
			return
		}
		value, ok := r.free(v, "the label "+key)
		if !ok {
			return
		}
		if err := model.CheckLabelValue(value); err != nil {
			r.fail(v, "label %s: %v", key, err)
			return
		}
		if labels == nil {
			labels = model.Labels{}
		}
		labels[key] = value
	})
	return labels
}

func (r *reader) service(meta model.Meta, n *yaml.Node) model.Service {
	s := model.Service{Meta: meta}
	r.mapping(n, "the Service's spec",
		field{"ports", "list what it serves, such as ports: [tcp/5432]", func(v *yaml.Node) {
			r.listOrOne(v, "ports", false, func(v *yaml.Node) {
				text, ok := r.portText(v)
				if !ok {
					return
				}
				if p, err := model.ParsePortRange(text); err != nil {
					r.fail(v, "%s", explainPort(text, err))
				} else {
					s.Ports = append(s.Ports, p)
				}
			})
		}},
	)
	return s
}

func (r *reader) workload(meta model.Meta, n *yaml.Node) model.Workload {
	w := model.Workload{Meta: meta, Managed: true}
	var managed, unit *yaml.Node
	r.mapping(n, "the Workload's spec",
		field{"addresses", "", func(v *yaml.Node) {
			at := map[netip.Addr]*yaml.Node{}
			r.each(v, "addresses", true, func(v *yaml.Node) {
				a, ok := r.address(v)
				if !ok {
					return
				}
				if before, ok := at[a]; ok {
					r.fail(v, "the address %s is there twice, first at %s; remove one", a, r.pos(before))
					return
				}
				at[a] = v
				w.Addresses = append(w.Addresses, a)
			})
		}},
		field{"managed", "", func(v *yaml.Node) {
			managed = v
			if b, ok := r.boolean(v, "managed"); ok {
				w.Managed = b
			}
		}},
		field{"unit", "", func(v *yaml.Node) {
			unit = v
			w.Unit = r.unit(v)
		}},
	)
	if unit != nil && !w.Managed {
		r.fail(managed, "a unit is enforced by the agent of its host, so it cannot be managed: false; remove that line")
	}
	return w
}

func (r *reader) unit(n *yaml.Node) *model.Unit {
	u := &model.Unit{}
	r.mapping(n, "unit",
		field{"host", "name the Workload that it runs on", func(v *yaml.Node) {
			if s, ok := r.filled(v, "host", maxName); ok {
				if why := checkName(model.KindWorkload, s); why != "" {
					r.fail(v, "%s", why)
				} else {
					u.Host = s
				}
			}
		}},
		field{"name", "name the unit, such as postgresql.service", func(v *yaml.Node) {
			if s, ok := r.filled(v, "name", maxName); ok {
				if strings.ContainsAny(s, " \t\n") {
					r.fail(v, "the unit's name %q has a space in it; a unit is named as in postgresql.service", s)
				} else {
					u.Name = s
				}
			}
		}},
	)
	if u.Host == "" || u.Name == "" {
		return nil // reported; a half of a unit would be taken for a host of its own
	}
	return u
}

func (r *reader) segment(meta model.Meta, n *yaml.Node) model.Segment {
	s := model.Segment{Meta: meta, Directions: slices.Clone(model.Directions[:]), Contain: model.Contain{Auto: containNever}}
	r.mapping(n, "the Segment's spec",
		field{"selector", `write which workloads it holds, such as selector: "app=payments,env=prod"`, func(v *yaml.Node) {
			s.Selector, _ = r.selector(v, "selector")
		}},
		field{"mode", "write mode: observe, selective or enforce", func(v *yaml.Node) {
			if i, ok := r.choice(v, "mode", modeNames); ok {
				s.Mode = model.Mode(i)
			} else {
				s.Mode = model.ModeObserve // reported; asks for no services
			}
		}},
		field{"services", "", func(v *yaml.Node) { s.Services = r.ports(v, "services", true) }},
		field{"directions", "", func(v *yaml.Node) { s.Directions = r.directions(v) }},
		field{"members", "", func(v *yaml.Node) {
			i, _ := r.choice(v, "members", memberNames)
			s.MembersOpen = i == 1
		}},
		field{"onAgentLoss", "", func(v *yaml.Node) {
			i, _ := r.choice(v, "onAgentLoss", lossNames)
			s.OnAgentLoss = model.OnAgentLoss(i)
		}},
		field{"contain", "", func(v *yaml.Node) { s.Contain = r.contain(v) }},
	)
	if s.Mode == model.ModeSelective && len(s.Services) == 0 {
		r.fail(n, "mode selective needs services: the ports on which default-deny holds, such as services: [tcp/5432]")
	}
	return s
}

// Names of enumerations, in the order of their values.
var (
	modeNames      = []string{model.ModeEnforce.String(), model.ModeSelective.String(), model.ModeObserve.String()}
	directionNames = []string{model.Ingress.String(), model.Egress.String()}
	memberNames    = []string{"deny", "allow"}
	lossNames      = []string{model.LossKeep.String(), model.LossOpen.String(), model.LossClosed.String()}
	levelNames     = []string{model.QuarantineWatch.String(), model.QuarantineRestrict.String(), model.QuarantineIsolate.String()}
	purposeNames   = []string{string(model.PurposeResolvers), string(model.PurposeTime), string(model.PurposeForensic)}
	viaNames       = []string{"direct", "any"}
	verdictNames   = []string{model.Deny.String(), model.WouldDeny.String(), model.Allow.String()}
	containNames   = []string{containNever, "propose", "act"}
)

const (
	containNever = "never"
	containTTL   = time.Hour // unless a segment says otherwise
	maxTTL       = 8760 * time.Hour
)

func (r *reader) directions(n *yaml.Node) []model.Direction {
	var has [2]*yaml.Node
	r.listOrOne(n, "directions", false, func(v *yaml.Node) {
		if i, ok := r.choice(v, "direction", directionNames); ok {
			if has[i] != nil {
				r.fail(v, "%s is there twice; remove one", directionNames[i])
			}
			has[i] = v
		}
	})
	var out []model.Direction
	for _, d := range model.Directions {
		if has[d] != nil {
			out = append(out, d)
		}
	}
	return out
}

func (r *reader) contain(n *yaml.Node) model.Contain {
	c := model.Contain{Auto: containNever, Level: model.QuarantineIsolate, TTL: containTTL}
	r.mapping(n, "contain",
		field{"auto", "write auto: never, propose or act", func(v *yaml.Node) {
			i, _ := r.choice(v, "auto", containNames)
			c.Auto = containNames[i]
		}},
		field{"level", "", func(v *yaml.Node) {
			i, _ := r.choice(v, "level", levelNames)
			c.Level = model.QuarantineWatch + model.QuarantineLevel(i)
		}},
		field{"ttl", "", func(v *yaml.Node) {
			s, ok := r.text(v, "ttl")
			if !ok {
				return
			}
			d, err := time.ParseDuration(s)
			if err != nil || d < time.Second || d > maxTTL {
				r.fail(v, "%q is no time from 1s to %s; write it as in 30m, 1h or 72h", clip(s), duration(maxTTL))
				return
			}
			c.TTL = d
		}},
	)
	if c.Auto == containNever {
		return model.Contain{Auto: containNever}
	}
	return c
}
