package kube

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// review looks at all manifests together for what is allowed and likely not meant.
func (r *reader) review() {
	r.reviewIgnored()
	r.reviewPriorities()
	r.reviewSubjects()
	r.reviewServices()
}

// reviewIgnored tells of kinds that say nothing here; those that decide about traffic all the same are a warning.
func (r *reader) reviewIgnored() {
	for _, x := range r.ignored {
		what := x.kind.name
		if what == "" {
			what = "object without a kind"
		}
		if x.count > 1 {
			what = fmt.Sprintf("%s (%d of them)", what, x.count)
		}
		if fix, ok := otherPolicies[x.kind.group]; ok && strings.Contains(x.kind.name, "Policy") {
			r.note(x.pos, policy.Warning, fix, "%s of %s is not judged here and may decide about traffic too", what, x.kind.apiVersion())
			continue
		}
		r.note(x.pos, policy.Notice, "it says nothing of who may talk to whom", "%s of %s was left out", what, x.kind.apiVersion())
	}
}

// reviewPriorities tells of policies of one tier with one priority: Kubernetes leaves open which is asked first.
func (r *reader) reviewPriorities() {
	type place struct {
		tier     model.Tier
		priority int
	}
	first := map[place]*model.OneSided{}
	byName := slices.Clone(r.policies)
	slices.SortFunc(byName, func(a, b model.OneSided) int { return compare(a.Name, b.Name) })
	for i := range byName {
		p := &byName[i]
		if p.Tier == model.TierNamespace || r.ordered[p.Name] {
			continue
		}
		at := place{p.Tier, p.Priority}
		if before := first[at]; before != nil {
			r.note(p.Pos, policy.Warning, "give each policy a priority of its own",
				"%s and %s both have the priority %d in the %s tier; Kubernetes leaves open which is asked first, here it is the former",
				before.Name, p.Name, p.Priority, p.Tier)
			continue
		}
		first[at] = p
	}
}

// reviewSubjects tells of policies that select no pod, or pods to which Kubernetes does not apply them. It is silent
// where no pods are given.
func (r *reader) reviewSubjects() {
	if len(r.pods)+len(r.controllers) == 0 {
		return
	}
	for i := range r.policies {
		p := &r.policies[i]
		selects, host := false, ""
		for k := range r.workloads {
			w := &r.workloads[k]
			if p.Subject.Matches(w.Labels) {
				selects = true
			} else if host == "" && w.Labels[model.PodLabel] == model.HostPodValue && p.Subject.Matches(w.Labels.With(model.Labels{model.PodLabel: model.PodValue})) {
				host = w.Name
			}
		}
		if !selects && host == "" {
			r.note(p.Pos, policy.Notice, "mend the selector, or label the pods", "%s selects no pod that is given", p.Name)
		}
		if host != "" && p.Tier == model.TierNamespace {
			r.note(p.Pos, policy.Notice, "write native rules for the node, or give the pod a network of its own",
				"%s selects %s, which uses its node's network: no policy of Kubernetes applies to it", p.Name, host)
		}
	}
}

// reviewServices tells of Services that lead to a port which none of the pods they select has: policy, which sees the
// port of the pod, is then about another port than the Service.
func (r *reader) reviewServices() {
	var all []*pod
	for _, p := range r.pods {
		if !p.over {
			all = append(all, p)
		}
	}
	for _, c := range r.controllers {
		all = append(all, c.template)
	}
	for _, s := range r.services {
		var selected []*pod
		declared := false
		for _, p := range all {
			if p.namespace == s.namespace && selects(s.selector, p.labels) {
				selected = append(selected, p)
				declared = declared || len(p.ports) > 0
			}
		}
		if len(selected) == 0 {
			continue
		}
		for i := range s.targets {
			t := &s.targets[i]
			// A pod may listen on ports that it does not declare; names have to be declared.
			if has(selected, t) || t.name == "" && !declared {
				continue
			}
			r.note(t.pos, policy.Notice, "write the targetPort that the pods have",
				"the Service %s/%s leads to port %s, which no pod that it selects declares", s.namespace, s.name, t)
		}
	}
}

func selects(selector, labels model.Labels) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func has(pods []*pod, t *target) bool {
	for _, p := range pods {
		for _, x := range p.ports {
			if x.proto == t.proto && (t.name != "" && x.name == t.name || t.name == "" && x.port == t.port) {
				return true
			}
		}
	}
	return false
}
