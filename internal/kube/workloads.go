package kube

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// finish turns what was read into workloads, and looks at all of it together.
func (r *reader) finish() {
	if len(r.Problems()) > 0 {
		return // names and labels may be missing
	}
	for _, n := range r.nodes {
		labels := n.labels.With(model.Labels{model.NodeLabel: model.NodeValue})
		for k, v := range n.labels {
			labels[model.NodeLabelPrefix+k] = v
		}
		r.workloads = append(r.workloads, model.Workload{
			Meta:      model.Meta{Name: n.name, Labels: labels, Pos: n.pos},
			Addresses: n.addresses, Managed: true, Node: n.name,
		})
	}
	covered := r.owned()
	templates := map[string][]*controller{}
	for _, c := range r.controllers {
		if !covered[c] {
			key := c.namespace + "/" + c.name
			templates[key] = append(templates[key], c)
		}
	}
	taken := map[string]bool{}
	for _, p := range r.pods {
		if !p.over {
			name := p.namespace + "/" + p.name
			taken[name] = true
			r.workloads = append(r.workloads, r.workload(name, p))
		}
	}
	for key, list := range templates {
		for _, c := range list {
			name := key
			if len(list) > 1 || taken[key] {
				name = c.namespace + "/" + strings.ToLower(c.kind) + "/" + c.name
				r.note(c.pos, policy.Notice, fmt.Sprintf("%q is another controller or pod", key), "the pods of the %s are judged as %q", c.kind, name)
			}
			r.workloads = append(r.workloads, r.workload(name, c.template))
		}
	}
	slices.SortFunc(r.workloads, func(a, b model.Workload) int { return compare(a.Name, b.Name) })
	for i := range r.workloads {
		if err := policy.CheckWorkloadName(r.workloads[i].Name); err != nil {
			r.FailAt(r.workloads[i].Pos, "%v", err)
		}
	}
	r.review()
}

// workload returns the workload that a pod, or the template of one, is.
func (r *reader) workload(name string, p *pod) model.Workload {
	labels := p.labels.With(nil)
	for k, v := range r.namespaces[p.namespace] {
		labels[model.NamespaceLabelPrefix+k] = v
	}
	labels[model.NamespaceLabelPrefix+namespaceName] = p.namespace
	w := model.Workload{Meta: model.Meta{Name: name, Labels: labels, Pos: p.pos}, Addresses: p.addresses, Managed: true, Node: p.node}
	labels[model.PodLabel] = model.PodValue
	if p.hostNetwork {
		labels[model.PodLabel] = model.HostPodValue
		if p.node != "" { // what shares the node's addresses is a part of it
			w.Unit = &model.Unit{Host: p.node, Name: "pod:" + name}
		}
	}
	for _, x := range p.ports {
		if x.name != "" {
			n := model.NamedPort{Proto: x.proto, Name: x.name}
			number, _ := p.named(x.proto, x.name)
			labels[n.PortLabel()] = strconv.Itoa(int(number))
		}
	}
	return w
}

// owned returns the controllers that have no workload of their own: those that belong to another one which is there,
// and those of which a pod is there that is not over. The pods are judged in their place.
func (r *reader) owned() map[*controller]bool {
	byName := map[string]*controller{}
	for _, c := range r.controllers {
		byName[c.kind+" "+c.namespace+"/"+c.name] = c
	}
	covered := map[*controller]bool{}
	for _, c := range r.controllers {
		for _, up := range above(byName, c.metadata) {
			covered[c] = covered[c] || up != c
		}
	}
	for _, p := range r.pods {
		if p.over {
			continue
		}
		for _, up := range above(byName, p.metadata) {
			covered[up] = true
		}
	}
	return covered
}

// above returns the controllers to which the owners of an object lead, over as many steps as there are.
func above(byName map[string]*controller, m *metadata) []*controller {
	var out []*controller
	next := []*metadata{m}
	for len(next) > 0 {
		m := next[0]
		next = next[1:]
		for _, o := range m.owners {
			for _, c := range []*controller{byName[o.kind+" "+m.namespace+"/"+o.name], maker(byName, m, o)} {
				if c != nil && !slices.Contains(out, c) {
					out = append(out, c)
					next = append(next, c.metadata)
				}
			}
		}
	}
	return out
}

// podTemplateHash is the label by which a Deployment tells the pods of its ReplicaSets apart.
const podTemplateHash = "pod-template-hash"

var scheduled = regexp.MustCompile(`^(.+)-[0-9]+$`)

// maker returns the controller that made the owner, if its name tells: kubectl get pods,deployments prints no
// ReplicaSets.
func maker(byName map[string]*controller, m *metadata, o owner) *controller {
	switch o.kind {
	case "ReplicaSet":
		if name, ok := strings.CutSuffix(o.name, "-"+m.labels[podTemplateHash]); ok && m.labels[podTemplateHash] != "" {
			return byName["Deployment "+m.namespace+"/"+name]
		}
	case "Job":
		if match := scheduled.FindStringSubmatch(o.name); match != nil {
			return byName["CronJob "+m.namespace+"/"+match[1]]
		}
	}
	return nil
}

// findings returns what was noticed, sorted by position.
func (r *reader) findings() []policy.Finding {
	slices.SortStableFunc(r.notes, func(a, b policy.Finding) int {
		return cmp.Or(comparePositions(a.Pos, b.Pos), compare(a.Msg, b.Msg))
	})
	return r.notes
}
