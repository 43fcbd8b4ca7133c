package cli

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
)

// benchWorld is a made-up enterprise to measure with: applications of four roles in three environments, each app
// allowed what its roles need of each other and of the apps that it uses. Everything follows from the sizes and the
// seed, so two runs measure the same.
type benchWorld struct {
	workloads, rules, flows int
	rng                     *rand.Rand
}

var (
	benchRoles = []string{"web", "api", "db", "cache"}
	benchEnvs  = []string{"prod", "stage", "dev"}
	benchPorts = map[string]int{"web": 443, "api": 8443, "db": 5432, "cache": 6379}
)

// perApp is how many workloads one app has in one environment.
const perApp = 10

func newBenchWorld(workloads, rules, flows int) *benchWorld {
	return &benchWorld{workloads, rules, flows, rand.New(rand.NewPCG(1, 2))}
}

func (b *benchWorld) apps() int { return max(1, (b.workloads+perApp-1)/perApp) }

// place returns what workload number i is.
func (b *benchWorld) place(i int) (app int, role, env string) {
	app = i / perApp
	return app, benchRoles[i%perApp%len(benchRoles)], benchEnvs[app%len(benchEnvs)]
}

func benchName(i int) string { return fmt.Sprintf("w-%05d", i) }

func benchAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// writeDocuments writes the documents as YAML.
func (b *benchWorld) writeDocuments(w io.Writer) error {
	out := bufio.NewWriter(w)
	for i := range b.workloads {
		app, role, env := b.place(i)
		fmt.Fprintf(out, "apiVersion: bulkhead/v1\nkind: Workload\nmetadata: {name: %s, labels: {app: app-%d, role: %s, env: %s}}\nspec: {addresses: [%s]}\n---\n",
			benchName(i), app, role, env, benchAddress(i))
	}
	for _, env := range benchEnvs {
		mode := map[string]string{"prod": "enforce", "stage": "selective", "dev": "observe"}[env]
		services := ""
		if mode == "selective" {
			services = ", services: [tcp/5432, tcp/6379]"
		}
		fmt.Fprintf(out, "apiVersion: bulkhead/v1\nkind: Segment\nmetadata: {name: %s}\nspec: {selector: env=%s, mode: %s%s}\n---\n", env, env, mode, services)
	}
	fmt.Fprint(out, "apiVersion: bulkhead/v1\nkind: Network\nmetadata: {name: office}\nspec: {cidrs: [192.168.0.0/16]}\n")
	for i := range b.rules {
		b.writeRule(out, i)
	}
	return out.Flush()
}

// writeRule writes rule number i, and the head of a policy where one begins. The first rules of an app join its own
// roles, further ones let it use other apps.
func (b *benchWorld) writeRule(w io.Writer, i int) {
	apps := b.apps()
	app, n := i%apps, i/apps
	fmt.Fprintf(w, "---\napiVersion: bulkhead/v1\nkind: Policy\nmetadata: {name: p-%05d}\nspec:\n  rules:\n", i)
	env := benchEnvs[app%len(benchEnvs)]
	rule := func(action, from, to, port string) {
		fmt.Fprintf(w, "    - {name: r, %s: {from: %s, to: %s, on: [%s]}}\n", action, from, to, port)
	}
	own := func(role string) string { return fmt.Sprintf("%q", fmt.Sprintf("app=app-%d,role=%s", app, role)) }
	switch n {
	case 0:
		rule("allow", own("web"), own("api"), "tcp/8443")
	case 1:
		rule("allow", own("api"), own("db"), "tcp/5432")
	case 2:
		rule("allow", own("api"), own("cache"), "tcp/6379")
	case 3:
		rule("allow", "{network: office}", own("web"), "tcp/443")
	case 4:
		rule("deny", `"env=dev"`, fmt.Sprintf("%q", fmt.Sprintf("app=app-%d,env=%s", app, env)), "tcp/22")
	default:
		other := (app + len(benchEnvs)*(n-4)) % apps // of the same environment
		rule("allow", own("api"), fmt.Sprintf("%q", fmt.Sprintf("app=app-%d,role=api", other)), "tcp/8443")
	}
}

// writeFlows writes the flows as JSON lines: half of them what the rules are for, the rest across apps, to odd ports
// and from outside, by name and by address.
func (b *benchWorld) writeFlows(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	for range b.flows {
		b.writeFlow(out)
	}
	return out.Flush()
}

func (b *benchWorld) writeFlow(w io.Writer) {
	from := b.rng.IntN(b.workloads)
	to := b.rng.IntN(b.workloads)
	if b.rng.IntN(2) == 0 {
		first := from / perApp * perApp
		to = first + b.rng.IntN(min(perApp, b.workloads-first))
	}
	_, role, _ := b.place(to)
	port := benchPorts[role]
	if b.rng.IntN(10) == 0 {
		port = 1 + b.rng.IntN(65535)
	}
	source, destination := benchName(from), benchName(to)
	switch b.rng.IntN(10) {
	case 0, 1, 2:
		source, destination = benchAddress(from).String(), benchAddress(to).String()
	case 3:
		source = fmt.Sprintf("192.168.%d.%d", b.rng.IntN(256), b.rng.IntN(256))
	}
	switch b.rng.IntN(20) {
	case 0:
		fmt.Fprintf(w, "{\"from\": %q, \"to\": %q, \"proto\": \"icmp\", \"icmp_type\": 8, \"icmp_code\": 0}\n", source, destination)
	case 1:
		fmt.Fprintf(w, "{\"from\": %q, \"to\": %q, \"proto\": \"udp\", \"port\": %d}\n", source, destination, port)
	default:
		fmt.Fprintf(w, "{\"from\": %q, \"to\": %q, \"proto\": \"tcp\", \"port\": %d}\n", source, destination, port)
	}
}
