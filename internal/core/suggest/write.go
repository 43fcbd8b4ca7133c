package suggest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// writer turns drafts into documents and evidence.
type writer struct {
	r        *records
	labels   *labelling
	g        *grouping
	options  *Options
	docs     *model.Documents
	services map[model.PortRange]string // single ports that a Service document names
	policies map[string]int             // names in use
	out      *Proposal
}

func write(r *records, labels *labelling, g *grouping, rules []draft, o *Options) *Proposal {
	w := &writer{
		r: r, labels: labels, g: g, options: o, docs: &model.Documents{Networks: g.networks},
		services: map[model.PortRange]string{}, policies: map[string]int{},
		out: &Proposal{Labels: labels.proposals, Abstained: labels.abstained},
	}
	w.out.Documents = w.docs
	if w.out.Labels == nil {
		w.out.Labels = []LabelProposal{}
	}
	for _, list := range [][]string{{"essential", "quarantine", "segment"}, names(o.Documents.Policies, func(p *model.Policy) string { return p.Name })} {
		for _, n := range list {
			w.policies[n] = 1
		}
	}
	w.nameServices(rules)
	w.writePolicies(rules)
	w.writeSegments()
	w.writeWorkloads()
	w.sort()
	return w.out
}

func names[T any](list []T, name func(*T) string) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = name(&list[i])
	}
	return out
}

// nameServices finds or makes a Service for each well-known port that a rule names.
func (w *writer) nameServices(rules []draft) {
	taken := map[string]bool{}
	for i := range w.options.Documents.Services {
		s := &w.options.Documents.Services[i]
		taken[s.Name] = true
		if len(s.Ports) == 1 && s.Ports[0].Single() && w.services[s.Ports[0]] == "" {
			w.services[s.Ports[0]] = s.Name
		}
	}
	for i := range rules {
		for _, p := range rules[i].ports {
			k := portTable[p]
			if k.service == "" || w.services[p] != "" || taken[k.service] {
				continue
			}
			w.services[p] = k.service
			w.docs.Services = append(w.docs.Services, model.Service{Meta: model.Meta{Name: k.service}, Ports: []model.PortRange{p}})
		}
	}
}

func (w *writer) on(ports []model.PortRange) (refs []model.PortRef, text []string) {
	for _, p := range ports {
		ref := model.PortRef{Range: p}
		if name := w.services[p]; name != "" {
			ref = model.PortRef{Service: name}
			text = append(text, name)
		} else {
			text = append(text, p.String())
		}
		refs = append(refs, ref)
	}
	return refs, text
}

// book says in which policy a rule stands: that of the destination's app and env, or, towards addresses, a policy for
// what the source's app calls outside.
type book struct{ app, env string }

func bookOf(d *draft) book {
	switch {
	case d.to.app != "":
		return book{slug(d.to.app), slug(d.to.env)}
	case d.to.peer.Kind == model.PeerWorkloads:
		return book{d.to.name, slug(d.to.env)}
	case d.from.app != "":
		return book{slug(d.from.app) + "-outbound", slug(d.from.env)}
	}
	return book{d.from.name + "-outbound", slug(d.from.env)}
}

func (w *writer) writePolicies(rules []draft) {
	books := map[book][]*draft{}
	envs := map[string]map[string]bool{}
	for i := range rules {
		b := bookOf(&rules[i])
		books[b] = append(books[b], &rules[i])
		if envs[b.app] == nil {
			envs[b.app] = map[string]bool{}
		}
		envs[b.app][b.env] = true
	}
	order := slices.SortedFunc(maps.Keys(books), func(a, b book) int {
		if c := strings.Compare(a.app, b.app); c != 0 {
			return c
		}
		return strings.Compare(a.env, b.env)
	})
	for _, b := range order {
		name := b.app
		if len(envs[b.app]) > 1 && b.env != "" {
			name += "-" + b.env
		}
		if w.policies[name] > 0 {
			name += "-learnt"
		}
		w.writePolicy(uniqueName(w.policies, name), books[b])
	}
}

func (w *writer) writePolicy(name string, rules []*draft) {
	slices.SortStableFunc(rules, func(a, b *draft) int {
		if c := strings.Compare(ruleName(a), ruleName(b)); c != 0 {
			return c
		}
		if c := strings.Compare(a.from.key, b.from.key); c != 0 {
			return c
		}
		return strings.Compare(a.to.key, b.to.key)
	})
	p := model.Policy{Meta: model.Meta{Name: name}}
	used := map[string]int{}
	var notes []string
	flows, connections := 0, uint64(0)
	first, last := time.Time{}, time.Time{}
	for _, d := range rules {
		on, text := w.on(d.ports)
		rule := model.Rule{
			Name: uniqueName(used, ruleName(d)), Action: model.ActionAllow,
			From: []model.Peer{d.from.peer}, To: []model.Peer{d.to.peer}, On: on,
		}
		p.Rules = append(p.Rules, rule)
		e := w.evidence(d, model.NamedRule(name, rule.Name), text)
		w.out.Rules = append(w.out.Rules, e)
		notes = append(notes, note(rule.Name, &e))
		flows += e.Flows
		connections += e.Connections
		first, last = earlier(first, e.First), later(last, e.Last)
	}
	p.Note = fmt.Sprintf("Learnt from %s and %s%s.\n%s", count(flows, "flow"), count(connections, "connection"),
		between(first, last), strings.Join(notes, "\n"))
	w.docs.Policies = append(w.docs.Policies, p)
}

// ruleName says who calls whom.
func ruleName(d *draft) string {
	name := d.from.name + "-to-" + d.to.name
	switch {
	case d.from.name == callersOf+d.to.name:
		name = d.from.name
	case d.to.name == calledBy+d.from.name:
		name = d.from.name + "-calls-out"
	case d.from.env != d.to.env && d.from.env != "" && d.to.env != "" && d.from.name != slug(d.from.env):
		name = slug(d.from.env) + "-" + name
	}
	if d.dynamic {
		name += "-dynamic"
	}
	return name
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// writeSegments proposes one segment in mode observe for each app and env that no segment in force keeps yet.
func (w *writer) writeSegments() {
	type compartment struct{ app, env string }
	members := map[compartment][]partyID{}
	appUsed := false
	for _, id := range w.g.sortedWorkloads() {
		labels := w.labels.effective[id]
		appUsed = appUsed || labels[keyApp] != ""
		if !w.r.parties[id].managed() || w.segmented(labels) {
			continue
		}
		c := compartment{labels[keyApp], labels[keyEnv]}
		members[c] = append(members[c], id)
	}
	taken := map[string]int{}
	for _, n := range names(w.options.Documents.Segments, func(s *model.Segment) string { return s.Name }) {
		taken[n] = 1
	}
	order := slices.SortedFunc(maps.Keys(members), func(a, b compartment) int {
		if c := strings.Compare(a.app, b.app); c != 0 {
			return c
		}
		return strings.Compare(a.env, b.env)
	})
	for _, c := range order {
		labels := model.Labels{}
		parts := []string{}
		if c.app != "" {
			labels[keyApp] = c.app
			parts = append(parts, slug(c.app))
		} else {
			parts = append(parts, "other")
		}
		if c.env != "" {
			labels[keyEnv] = c.env
			parts = append(parts, slug(c.env))
		}
		exclude := []string{keyEnv}
		if appUsed {
			exclude = append(exclude, keyApp)
		}
		w.docs.Segments = append(w.docs.Segments, model.Segment{
			Meta: model.Meta{
				Name: uniqueName(taken, slug(strings.Join(parts, "-"))),
				Note: fmt.Sprintf("%s now. Set mode to enforce when its plan shows nothing that breaks.", count(len(members[c]), "workload")),
			},
			Selector:   w.g.selectorOf(labels, exclude),
			Mode:       model.ModeObserve,
			Directions: []model.Direction{model.Ingress, model.Egress},
		})
	}
}

func (w *writer) segmented(labels model.Labels) bool {
	for i := range w.options.Documents.Segments {
		if w.options.Documents.Segments[i].Selector.Matches(labels) {
			return true
		}
	}
	return false
}

// writeWorkloads adds the proposed labels to the documents of their workloads.
func (w *writer) writeWorkloads() {
	declared := map[string]*model.Workload{}
	for i := range w.options.Documents.Workloads {
		declared[w.options.Documents.Workloads[i].Name] = &w.options.Documents.Workloads[i]
	}
	why := map[string][]string{}
	for _, p := range w.out.Labels {
		why[p.Workload] = append(why[p.Workload], fmt.Sprintf("%s=%s (%.2f): %s.", p.Key, p.Value, p.Confidence, p.Why))
	}
	for _, id := range w.g.sortedWorkloads() {
		p := &w.r.parties[id]
		labels := w.labels.added[id]
		if scope, ok := w.g.scopes[id]; ok && p.instance.Labels[w.g.scopeKey] != scope {
			labels = labels.With(model.Labels{w.g.scopeKey: scope})
			why[p.name] = append(why[p.name], fmt.Sprintf("%s=%s: its own name, so that rules can mean it alone.", w.g.scopeKey, scope))
		}
		if len(labels) == 0 && !p.named {
			continue
		}
		doc := w.workload(p, declared[p.name])
		doc.Labels = doc.Labels.With(labels)
		if notes := strings.Join(why[p.name], "\n"); notes != "" {
			if doc.Note != "" {
				notes = doc.Note + "\n" + notes
			}
			doc.Note = notes
		}
		w.docs.Workloads = append(w.docs.Workloads, doc)
	}
}

// workload returns the document to which labels are added: the one in force, or one that says what the inventory says.
func (w *writer) workload(p *party, inForce *model.Workload) model.Workload {
	if inForce != nil {
		doc := *inForce
		doc.Pos = model.Position{}
		return doc
	}
	in := p.instance
	doc := model.Workload{Meta: model.Meta{Name: p.name}, Managed: in.Managed}
	if in.IsUnit() {
		doc.Unit = &model.Unit{Host: in.Host, Name: in.Unit}
		return doc
	}
	if p.named {
		doc.Addresses = slices.Clone(in.Addresses)
		doc.Note = "Named in recorded flows; nothing declares it yet."
	} else if in.Host == "" || !w.r.documentsGiven {
		doc.Addresses = slices.Clone(in.Addresses)
		doc.Labels = model.Labels{}
		for k, v := range in.Labels {
			if !strings.HasPrefix(k, model.SystemLabelPrefix) {
				doc.Labels[k] = v
			}
		}
	}
	return doc
}

func (w *writer) sort() {
	d := w.docs
	slices.SortFunc(d.Services, func(a, b model.Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Networks, func(a, b model.Network) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Workloads, func(a, b model.Workload) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Segments, func(a, b model.Segment) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Policies, func(a, b model.Policy) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(w.out.Rules, func(a, b RuleEvidence) int { return cmp.Compare(a.Rule, b.Rule) })
	slices.SortFunc(w.out.Labels, func(a, b LabelProposal) int {
		if c := strings.Compare(a.Workload, b.Workload); c != 0 {
			return c
		}
		return strings.Compare(a.Key, b.Key)
	})
}
