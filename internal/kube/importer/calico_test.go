package importer

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bulkhead/internal/core/policy"
)

// The policies of Calico as the oracle reads them.
type (
	// kSelector is a selector: its text, and what it means for labels.
	kSelector struct {
		text string
		is   func(labels map[string]string) bool
	}
	kTier struct {
		name  string
		order float64
		pass  bool
	}
	kPolicy struct {
		name, namespace string // namespace "" for a GlobalNetworkPolicy
		tier            string
		order           float64 // infinite: not said
		selector        *kSelector
		spaces          *kSelector // namespaceSelector
		account         bool       // serviceAccountSelector: those of the account robot
		types           []string   // nil: not said
		rules           [2][]kRule // ingress, egress
		kubernetes      bool       // a NetworkPolicy of Kubernetes
	}
	kRule struct {
		action              string
		version             int
		proto, notProto     string
		icmp, notICMP       int // type; -1: not said
		source, destination kEntity
		http                bool
	}
	kEntity struct {
		selector, notSelector, spaces *kSelector
		account                       bool
		services                      bool
		nets, notNets                 []string
		ports, notPorts               []string
	}
	kSet struct {
		namespace, name string
		labels          map[string]string
		nets            []string
	}
)

func (e *kEntity) object() object {
	o := object{}
	for name, s := range map[string]*kSelector{"selector": e.selector, "notSelector": e.notSelector, "namespaceSelector": e.spaces} {
		if s != nil {
			o[name] = s.text
		}
	}
	for name, list := range map[string][]string{"nets": e.nets, "notNets": e.notNets} {
		if list != nil {
			o[name] = list
		}
	}
	for name, list := range map[string][]string{"ports": e.ports, "notPorts": e.notPorts} {
		var ports []any
		for _, p := range list {
			if n, err := strconv.Atoi(p); err == nil {
				ports = append(ports, n)
			} else {
				ports = append(ports, p)
			}
		}
		if ports != nil {
			o[name] = ports
		}
	}
	if e.account {
		o["serviceAccounts"] = object{"names": []string{"robot"}}
	}
	if e.services {
		o["services"] = object{"name": "svc", "namespace": "x"}
	}
	return o
}

func (r *kRule) object() object {
	o := object{"action": r.action}
	if r.version != 0 {
		o["ipVersion"] = r.version
	}
	if r.proto != "" {
		o["protocol"] = r.proto
	}
	if r.notProto != "" {
		o["notProtocol"] = r.notProto
	}
	if r.icmp >= 0 {
		o["icmp"] = object{"type": r.icmp}
	}
	if r.notICMP >= 0 {
		o["notICMP"] = object{"type": r.notICMP}
	}
	if x := r.source.object(); len(x) > 0 {
		o["source"] = x
	}
	if x := r.destination.object(); len(x) > 0 {
		o["destination"] = x
	}
	if r.http {
		o["http"] = object{"methods": []string{"GET"}}
	}
	return o
}

func (p *kPolicy) object() object {
	spec := object{}
	if p.selector != nil {
		spec["selector"] = p.selector.text
	}
	if p.spaces != nil {
		spec["namespaceSelector"] = p.spaces.text
	}
	if p.account {
		spec["serviceAccountSelector"] = "robot == 'yes'"
	}
	if p.tier != "default" {
		spec["tier"] = p.tier
	}
	if !math.IsInf(p.order, 1) {
		spec["order"] = p.order
	}
	if p.types != nil {
		spec["types"] = p.types
	}
	for d, name := range []string{"ingress", "egress"} {
		var list []object
		for i := range p.rules[d] {
			list = append(list, p.rules[d][i].object())
		}
		if list != nil {
			spec[name] = list
		}
	}
	o := object{"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": object{"name": p.tier + "." + p.name, "namespace": p.namespace}, "spec": spec}
	if p.namespace == "" {
		o["kind"], o["metadata"] = "GlobalNetworkPolicy", object{"name": p.tier + "." + p.name}
	}
	return o
}

// kubernetesObject writes a NetworkPolicy of Kubernetes, whose selectors are of app alone.
func (p *kPolicy) kubernetesObject() object {
	labels := func(s *kSelector) object {
		return object{"matchLabels": object{"app": strings.Trim(strings.TrimPrefix(s.text, "app == "), "'")}}
	}
	var list []object
	for _, r := range p.rules[0] {
		x := object{}
		if r.source.selector != nil {
			x["from"] = []object{{"podSelector": labels(r.source.selector)}}
		} else if r.source.nets != nil {
			x["from"] = []object{{"ipBlock": object{"cidr": r.source.nets[0]}}}
		}
		if r.proto != "" {
			n, err := strconv.Atoi(r.destination.ports[0])
			if err != nil {
				panic(err)
			}
			x["ports"] = []object{{"protocol": r.proto, "port": n}}
		}
		list = append(list, x)
	}
	return object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": object{"name": p.name, "namespace": p.namespace},
		"spec": object{"podSelector": labels(p.selector), "policyTypes": []string{"Ingress"}, "ingress": list}}
}

// kGen makes policies of Calico; odd ones have elements too that cannot be said.
type kGen struct {
	*gen
	odd bool
}

func (g *kGen) selector(depth int) *kSelector {
	if depth > 0 && g.chance(35) {
		a, b := g.selector(depth-1), g.selector(depth-1)
		switch g.IntN(3) {
		case 0:
			return &kSelector{"(" + a.text + ") && " + b.text, func(l map[string]string) bool { return a.is(l) && b.is(l) }}
		case 1:
			return &kSelector{"(" + a.text + " || " + b.text + ")", func(l map[string]string) bool { return a.is(l) || b.is(l) }}
		}
		return &kSelector{"!(" + a.text + ")", func(l map[string]string) bool { return !a.is(l) }}
	}
	key := pick(g.gen, "app", "tier", "app", "tier", "projectcalico.org/namespace", "none")
	v := pick(g.gen, "a", "b", "c")
	if key == "projectcalico.org/namespace" {
		v = pick(g.gen, "x", "y")
	}
	n := g.IntN(7)
	if g.odd && g.chance(25) {
		n = 7 + g.IntN(4)
	}
	get := func(f func(v string, ok bool) bool) func(map[string]string) bool {
		return func(l map[string]string) bool { v, ok := l[key]; return f(v, ok) }
	}
	switch n {
	case 0:
		return &kSelector{key + " != \"" + v + `"`, get(func(x string, ok bool) bool { return !ok || x != v })}
	case 1:
		return &kSelector{"has(" + key + ")", get(func(_ string, ok bool) bool { return ok })}
	case 2:
		return &kSelector{"!has(" + key + ")", get(func(_ string, ok bool) bool { return !ok })}
	case 3:
		return &kSelector{key + " in { '" + v + "','b' }", get(func(x string, ok bool) bool { return ok && (x == v || x == "b") })}
	case 4:
		return &kSelector{key + " not in {'" + v + "', \"b\"}", get(func(x string, ok bool) bool { return !ok || x != v && x != "b" })}
	case 5:
		return &kSelector{"all()", func(map[string]string) bool { return true }}
	case 7:
		return &kSelector{key + " contains '" + v + "'", get(func(x string, ok bool) bool { return ok && strings.Contains(x, v) })}
	case 8:
		return &kSelector{key + " starts with '" + v + "'", get(func(x string, ok bool) bool { return ok && strings.HasPrefix(x, v) })}
	case 9:
		return &kSelector{"!(" + key + " ends with '" + v + "')", get(func(x string, ok bool) bool { return !ok || !strings.HasSuffix(x, v) })}
	case 10:
		key, v = "projectcalico.org/serviceaccount", "robot"
		return &kSelector{key + " == 'robot'", get(func(x string, ok bool) bool { return ok && x == v })}
	}
	return &kSelector{key + " == '" + v + "'", get(func(x string, ok bool) bool { return ok && x == v })}
}

func (g *kGen) spaces() *kSelector {
	v := pick(g.gen, "x", "y")
	name := func(l map[string]string) bool { return l["projectcalico.org/name"] == v }
	switch g.IntN(4) {
	case 0:
		return &kSelector{"projectcalico.org/name == '" + v + "'", name}
	case 1:
		return &kSelector{"kubernetes.io/metadata.name in {'" + v + "'}", name}
	case 2:
		return &kSelector{"all()", nil}
	}
	return &kSelector{"app != 'a'", func(l map[string]string) bool { return l["app"] != "a" }}
}

func (g *kGen) peer(r *kRule, e *kEntity, namespaced bool) {
	switch n := g.IntN(10); {
	case n < 2:
	case n < 5:
		e.selector = g.selector(2)
		if g.chance(40) {
			e.spaces = g.spaces()
		} else if g.chance(20) {
			e.notSelector = g.selector(1)
		}
	case n < 6:
		e.spaces = g.spaces()
		if !g.odd && e.spaces.text == "global()" {
			e.spaces = nil
		}
	case n < 8:
		e.nets = pick(g.gen, []string{"10.1.0.0/16"}, []string{"8.8.8.8", "10.2.0.0/16"}, []string{"0.0.0.0/0", "::/0"}, []string{"192.168.0.0/24"})
		if g.chance(40) {
			e.notNets = pick(g.gen, []string{"10.1.0.0/30"}, []string{"10.0.0.0/8"}, []string{"8.8.8.0/24", "fd00::/8"})
		}
	case n < 9:
		e.notNets = pick(g.gen, []string{"10.1.0.0/16"}, []string{"8.8.8.8/32", "192.168.0.1/32"})
	default:
		if namespaced || g.odd {
			e.notSelector = g.selector(1)
		}
	}
	if g.odd && g.chance(15) {
		e.account = true
	}
	if g.odd && g.chance(10) {
		e.nets = []string{"10.0.0.0/8"}
	}
	if g.odd && g.chance(5) {
		e.services = true
	}
	if (e.selector == nil && e.spaces == nil && e.notSelector == nil || g.odd) && g.chance(15) {
		r.version = pick(g.gen, 4, 6)
	}
}

func (g *kGen) rule(egress, namespaced bool) kRule {
	r := kRule{action: pick(g.gen, "Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log"), icmp: -1, notICMP: -1}
	peer, own := &r.source, &r.destination
	if egress {
		peer, own = own, peer
	}
	g.peer(&r, peer, namespaced)
	if g.chance(15) {
		own.selector = g.selector(1)
	}
	switch {
	case g.chance(50):
		r.proto = pick(g.gen, "TCP", "TCP", "UDP", "SCTP")
		for range g.IntN(3) {
			p := pick(g.gen, "80", "81", "79:85", "443", "1:65535")
			if g.chance(25) && (!egress || peer.nets == nil && peer.notNets == nil && r.version == 0 || g.odd) {
				p = pick(g.gen, "http", "web", "nobody")
			}
			r.destination.ports = append(r.destination.ports, p)
		}
		named := slices.ContainsFunc(r.destination.ports, func(p string) bool { return p[0] > '9' })
		if g.chance(15) && (!named || g.odd) {
			r.destination.notPorts = []string{pick(g.gen, "80", "70:90")}
		}
	case g.chance(20):
		r.proto = pick(g.gen, "ICMP", "ICMPv6")
		switch g.IntN(3) {
		case 0:
			r.icmp = map[string]int{"ICMP": 8, "ICMPv6": 128}[r.proto]
		case 1:
			r.notICMP = map[string]int{"ICMP": 8, "ICMPv6": 128}[r.proto]
		}
	case g.odd && g.chance(15):
		r.notProto = pick(g.gen, "TCP", "UDP")
	}
	if g.odd && g.chance(8) && r.action == "Allow" {
		r.http = true
	}
	if g.odd && g.chance(5) && in(r.proto, "TCP", "UDP") {
		r.source.ports = []string{"1024:65535"}
	}
	return r
}

func (g *kGen) policy(i int, tiers []kTier) kPolicy {
	p := kPolicy{name: fmt.Sprint("p", i), namespace: pick(g.gen, "x", "y", "", ""), tier: pick(g.gen, tiers...).name, order: math.Inf(1)}
	if g.chance(70) {
		p.order = float64(g.IntN(4)) * 0.5
	}
	if g.chance(75) {
		p.selector = g.selector(2)
	}
	if p.namespace == "" && g.chance(30) {
		p.spaces = g.spaces()
	}
	p.account = g.odd && g.chance(10)
	p.types = pick(g.gen, nil, nil, []string{"Ingress"}, []string{"Egress"}, []string{"Ingress", "Egress"})
	for d := range 2 {
		for range g.IntN(4) {
			p.rules[d] = append(p.rules[d], g.rule(d == 1, p.namespace != ""))
		}
	}
	return p
}

// kubernetesPolicy makes a NetworkPolicy of Kubernetes, which has its place in the default tier.
func (g *kGen) kubernetesPolicy() kPolicy {
	app := func() *kSelector {
		v := pick(g.gen, "a", "b", "c")
		return &kSelector{"app == '" + v + "'", func(l map[string]string) bool { return l["app"] == v }}
	}
	p := kPolicy{name: "kube", namespace: pick(g.gen, "x", "y"), tier: "default", order: 1000, selector: app(), types: []string{"Ingress"}, kubernetes: true}
	for range 1 + g.IntN(2) {
		r := kRule{action: "Allow", icmp: -1, notICMP: -1}
		switch g.IntN(3) {
		case 0:
			r.source.selector = app()
		case 1:
			r.source.nets = []string{"10.1.0.0/16"}
		}
		if g.chance(50) {
			r.proto, r.destination.ports = "TCP", []string{"80"}
		}
		p.rules[0] = append(p.rules[0], r)
	}
	return p
}

func (g *kGen) world() (*kOracle, []object) {
	o := &kOracle{tCluster: g.cluster(), service: []string{"x/p0", "y/p1", "10.1.0.200"}, robots: g.chance(50), evaluate: g.chance(50)}
	o.tiers = []kTier{{"default", 1_000_000, false}}
	var objects []object
	for i := range g.IntN(3) {
		t := kTier{fmt.Sprint("t", i), float64(100 - 10*i), g.chance(30)}
		if g.chance(20) {
			t.order = 2_000_000 + float64(i)
		}
		spec := object{"order": t.order}
		if t.pass {
			spec["defaultAction"] = "Pass"
		}
		o.tiers = append(o.tiers, t)
		objects = append(objects, object{"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": object{"name": t.name}, "spec": spec})
	}
	for i := range pick(g.gen, 0, 0, 1, 2) {
		s := kSet{name: fmt.Sprint("s", i), labels: g.labels(), nets: pick(g.gen, []string{"8.8.8.8"}, []string{"10.2.0.0/16"}, []string{"10.1.0.0/28", "2001:db8::/32"})}
		kind, meta := "GlobalNetworkSet", object{"name": s.name, "labels": s.labels}
		if g.chance(30) && g.odd {
			s.namespace = pick(g.gen, "x", "y")
			kind, meta["namespace"] = "NetworkSet", s.namespace
		}
		o.sets = append(o.sets, s)
		objects = append(objects, object{"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": meta, "spec": object{"nets": s.nets}})
	}
	for i := range 1 + g.IntN(5) {
		o.policies = append(o.policies, g.policy(i, o.tiers))
		objects = append(objects, o.policies[i].object())
	}
	if g.chance(25) {
		p := g.kubernetesPolicy()
		o.policies = append(o.policies, p)
		objects = append(objects, p.kubernetesObject())
	}
	return o, objects
}

// TestCalicoGenerated holds the import against the oracle, through the manifests that it writes. Where it says that it is
// narrower it may be; else both are equal.
func TestCalicoGenerated(t *testing.T) {
	worlds := howMany()
	var allowed, denied, narrower [2]int
	exact, exactTiers := 0, 0
	for seed := range worlds {
		for k, odd := range []bool{false, true} {
			g := &kGen{newGen(seed + 1000), odd}
			o, objects := g.world()
			input := documents(objects...)
			t.Run(fmt.Sprintf("seed %d odd %v", seed, odd), func(t *testing.T) {
				result, err := Calico([]policy.File{input})
				if err != nil {
					t.Fatalf("%v\n%s", err, input.Data)
				}
				same := result.Worst() == Note
				if same {
					exact++
					if len(o.tiers) > 1 {
						exactTiers++
					}
				} else if !odd && len(o.tiers) == 1 && len(o.sets) == 0 {
					t.Errorf("%v\n%s", result.Diagnostics, input.Data)
				}
				imported, err := result.Manifests()
				if err != nil {
					t.Fatal(err)
				}
				judge := judgeOf(t, documents(o.manifests()...), imported)
				a, d, n := compareWith(t, g.gen, o.tCluster, judge, o.allows, same)
				allowed[k], denied[k], narrower[k] = allowed[k]+a, denied[k]+d, narrower[k]+n
				if t.Failed() {
					t.Logf("%s\n%s\n%s", documents(o.manifests()...).Data, input.Data, imported)
				}
			})
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d of %d imports are exact, %d with several tiers; plain: %d allowed, %d denied, %d by the import alone; odd: %d allowed, %d denied, %d by the import alone",
		exact, 2*worlds, exactTiers, allowed[0], denied[0], narrower[0], allowed[1], denied[1], narrower[1])
	if n := int(worlds); exact < n/2 || exactTiers < n/6 || allowed[0] < 20*n || denied[0] < 20*n || allowed[1] < 10*n || narrower[1] < n {
		t.Error("the worlds say too little")
	}
}
