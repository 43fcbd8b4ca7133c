package importer

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
	"bulkhead/internal/kube"
)

var worldCount = flag.Uint64("worlds", 0, "how many worlds to generate; 0 is 300, or 80 with -short")

func howMany() uint64 {
	switch {
	case *worldCount > 0:
		return *worldCount
	case testing.Short():
		return 80
	}
	return 300
}

// object is a manifest as the tests write it.
type object = map[string]any

// tPod, tNode and tCluster are a cluster as the oracles see it.
type tPod struct {
	namespace, name, node, account string
	labels                         map[string]string
	host                           bool
	ip                             string
	ports                          map[string]int // "TCP/http"
}

type tNode struct {
	name, ip string
	labels   map[string]string
}

type tCluster struct {
	namespaces map[string]map[string]string
	pods       []*tPod
	nodes      []*tNode
	outside    []string // addresses that nobody in the cluster has
}

// end is one end of a connection.
type end struct {
	pod    *tPod
	node   *tNode
	addr   netip.Addr
	domain string // by which it was found
}

func (e end) name() string {
	switch {
	case e.pod != nil:
		return e.pod.namespace + "/" + e.pod.name
	case e.node != nil:
		return e.node.name
	}
	return e.addr.String()
}

// plain reports whether it is a pod that policies are for.
func (e end) plain() bool { return e.pod != nil && !e.pod.host }

// onNode returns the node whose network it is on; "" if it is on none.
func (e end) onNode() string {
	switch {
	case e.node != nil:
		return e.node.name
	case e.pod != nil && e.pod.host:
		return e.pod.node
	}
	return ""
}

// conn is a connection. The port of ICMP is its type.
type conn struct {
	from, to end
	proto    string // TCP, UDP, SCTP, ICMP, ICMPv6
	port     int
}

func (c conn) flow() *model.Flow {
	proto, err := model.ParseProto(c.proto)
	if err != nil {
		panic(err)
	}
	f := &model.Flow{Proto: proto, Port: uint16(c.port), ToDomain: c.to.domain}
	if proto.IsICMP() {
		f.Port = uint16(c.port) << 8
	}
	for i, e := range []end{c.from, c.to} {
		x := model.End{Addr: e.addr}
		if e.pod != nil || e.node != nil {
			x = model.End{Workload: e.name()}
		}
		if i == 0 {
			f.From = x
		} else {
			f.To = x
		}
	}
	return f
}

// always: a pod and itself, and a pod and its node, can talk whatever policy says.
func (c conn) always() bool {
	if c.from.name() == c.to.name() {
		return true
	}
	for _, x := range [][2]end{{c.from, c.to}, {c.to, c.from}} {
		if x[0].plain() && x[1].onNode() != "" && x[1].onNode() == x[0].pod.node {
			return true
		}
	}
	return false
}

func (c *tCluster) manifests() []object {
	var out []object
	for _, name := range []string{"x", "y"} {
		out = append(out, object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": name, "labels": c.namespaces[name]}})
	}
	for _, n := range c.nodes {
		out = append(out, object{"apiVersion": "v1", "kind": "Node", "metadata": object{"name": n.name, "labels": n.labels},
			"status": object{"addresses": []object{{"type": "InternalIP", "address": n.ip}}}})
	}
	for _, p := range c.pods {
		var ports []object
		for _, name := range []string{"TCP/http", "UDP/http", "TCP/web"} {
			if number, ok := p.ports[name]; ok {
				ports = append(ports, object{"name": name[4:], "protocol": name[:3], "containerPort": number})
			}
		}
		out = append(out, object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": p.name, "namespace": p.namespace, "labels": p.labels},
			"spec":   object{"nodeName": p.node, "hostNetwork": p.host, "containers": []object{{"name": "main", "ports": ports}}},
			"status": object{"podIP": p.ip}})
	}
	return out
}

func (c *tCluster) ends() []end {
	var out []end
	for _, p := range c.pods {
		out = append(out, end{pod: p, addr: netip.MustParseAddr(p.ip)})
	}
	for _, n := range c.nodes {
		out = append(out, end{node: n, addr: netip.MustParseAddr(n.ip)})
	}
	for i, a := range c.outside {
		e := end{addr: netip.MustParseAddr(a)}
		out = append(out, e)
		if i < 2 {
			e.domain = []string{"a.example.com", "b.c.example.com"}[i]
			out = append(out, e)
		}
	}
	return out
}

// gen makes what is random.
type gen struct{ *rand.Rand }

func newGen(seed uint64) *gen { return &gen{rand.New(rand.NewPCG(seed, 11))} }

func (g *gen) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *gen, from ...T) T { return from[g.IntN(len(from))] }

func (g *gen) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if g.chance(75) {
			out[k] = pick(g, "a", "b", "c")
		}
	}
	return out
}

func (g *gen) cluster() *tCluster {
	c := &tCluster{
		namespaces: map[string]map[string]string{"x": g.labels(), "y": g.labels()},
		outside:    []string{"8.8.8.8", "10.1.0.200", "10.2.0.77", "2001:db8::1"},
	}
	for i := range 2 {
		c.nodes = append(c.nodes, &tNode{name: fmt.Sprint("n", i), ip: fmt.Sprint("192.168.0.", i+1), labels: g.labels()})
	}
	for i := range 6 {
		n := g.IntN(2)
		p := &tPod{namespace: pick(g, "x", "y"), name: fmt.Sprint("p", i), node: c.nodes[n].name, labels: g.labels(),
			account: pick(g, "default", "robot"), ip: fmt.Sprintf("10.%d.0.%d", 1+g.IntN(2), i+1), ports: map[string]int{}}
		for _, name := range []string{"TCP/http", "UDP/http", "TCP/web"} {
			if g.chance(50) {
				p.ports[name] = pick(g, 80, 81)
			}
		}
		if g.chance(20) {
			p.ip = fmt.Sprintf("fd00::%d", i+1)
		}
		if p.host = g.chance(12); p.host {
			p.ip = c.nodes[n].ip
		}
		c.pods = append(c.pods, p)
	}
	return c
}

func (g *gen) conn(from, to end) conn {
	c := conn{from: from, to: to, proto: pick(g, "TCP", "TCP", "TCP", "UDP", "SCTP", "ICMP", "ICMPv6"), port: pick(g, 79, 80, 80, 81, 90, 443)}
	if strings.HasPrefix(c.proto, "ICMP") { // each is of one family of addresses
		c.proto, c.port = "ICMP", pick(g, 8, 13)
		if to.addr.Is6() {
			c.proto, c.port = "ICMPv6", pick(g, 128, 144)
		}
	}
	return c
}

// documents writes objects as one file.
func documents(objects ...object) policy.File {
	var b bytes.Buffer
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			panic(err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	return policy.File{Name: "input.yaml", Data: b.Bytes()}
}

// judgeOf compiles the cluster with what an import wrote, as manifests.
func judgeOf(t testing.TB, cluster policy.File, imported []byte) *verdict.Evaluator {
	t.Helper()
	docs, _, err := kube.Load([]policy.File{cluster, {Name: "imported.yaml", Data: imported}})
	if err != nil {
		t.Fatalf("the output cannot be read: %v\n%s", err, imported)
	}
	inv, err := inventory.Build(docs, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	world, err := compile.Compile(docs, inv, compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return verdict.New(world)
}

// compareWith holds an import against an oracle over all pairs of ends of a cluster. Where exact is false, the import
// may deny more than the oracle. It returns how many connections the oracle allows and denies, and how many are denied by
// the import alone.
func compareWith(t *testing.T, g *gen, c *tCluster, judge *verdict.Evaluator, allows func(conn) bool, exact bool) (allowed, denied, narrower int) {
	t.Helper()
	ends := c.ends()
	for _, from := range ends {
		for _, to := range ends {
			if from.domain != "" || from.pod == nil && to.pod == nil || from.addr.Is4() != to.addr.Is4() {
				continue
			}
			for range 2 {
				x := g.conn(from, to)
				want := x.always() || allows(x)
				v, err := judge.Judge(x.flow())
				if err != nil {
					t.Fatalf("%s -> %s %s/%d: %v", from.name(), to.name(), x.proto, x.port, err)
				}
				got := v.Verdict == model.Allow
				if got && !want || got != want && exact {
					t.Errorf("%s -> %s (%s) %s/%d: the import says %s (egress %s by %s, ingress %s by %s), the oracle allows it: %v",
						from.name(), to.name(), to.domain, x.proto, x.port, v.Verdict, v.Egress.Verdict, v.Egress.Rule, v.Ingress.Verdict, v.Ingress.Rule, want)
				}
				switch {
				case want && !got:
					narrower++
				case want:
					allowed++
				default:
					denied++
				}
			}
		}
	}
	return allowed, denied, narrower
}

// contains is slices.Contains with the arguments of a question.
func in[T comparable](x T, list ...T) bool { return slices.Contains(list, x) }
