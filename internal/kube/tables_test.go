package kube

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	coreoracle "bulkhead/internal/core/oracle"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
)

// A corpus file is a cluster and scenarios on it:
//
//	-- cluster.yaml --      manifests that every scenario has
//	-- others --            addresses that nobody in the cluster has
//	-- NAME.yaml --         the policies of a scenario
//	-- NAME.table --        who may talk to whom there
//
// A line of a table says all that there is to say of one port of one end; patterns are those of path.Match:
//
//	tcp/80 to x/a: y/* z/b          exactly these may reach x/a
//	tcp/80,tcp/81 to x/a x/b: none  nobody may reach either at these ports
//	udp/53 from x/a: * -z/*         x/a may reach everybody but z
//
// A pod's traffic with itself is never listed. Every pair of every port that a table names is held against the table,
// the evaluator, the oracle of the core, and the oracle of this package.
type scenario struct {
	name      string
	manifests string
	table     []string
	others    []string
}

func readScenarios(t *testing.T, file string) []scenario {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	var names []string
	for _, f := range txtar.Parse(data).Files {
		parts[f.Name] = string(f.Data)
		if name, ok := strings.CutSuffix(f.Name, ".table"); ok {
			names = append(names, name)
		}
	}
	used := 0
	var out []scenario
	for _, name := range names {
		s := scenario{name: name, manifests: parts["cluster.yaml"], others: strings.Fields(parts["others"])}
		if own, ok := parts[name+".yaml"]; ok {
			s.manifests += "---\n" + own
			used++
		}
		for line := range strings.Lines(parts[name+".table"]) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				s.table = append(s.table, line)
			}
		}
		if len(s.table) == 0 {
			t.Errorf("%s: %s says nothing", file, name)
		}
		out = append(out, s)
	}
	for name := range parts {
		own, isYAML := strings.CutSuffix(name, ".yaml")
		if isYAML && own != "cluster" && parts[own+".table"] == "" {
			t.Errorf("%s: %s has no table", file, name)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s holds no scenario", file)
	}
	return out
}

// world is a scenario in every form in which it is judged.
type world struct {
	oracle  *oracle
	docs    *model.Documents
	inv     *model.Inventory
	judge   *verdict.Evaluator
	parties map[string]party
	names   []string // of parties, sorted
}

func newWorld(t *testing.T, manifests string, others []string) *world {
	t.Helper()
	objects, err := decode([]byte(manifests))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{oracle: &oracle{objects}}
	w.parties = w.oracle.parties()
	for _, a := range others {
		w.parties[a] = external(a)
	}
	w.names = slices.Sorted(maps.Keys(w.parties))
	if w.docs, _, err = Load([]policy.File{{Name: "manifests.yaml", Data: []byte(manifests)}}); err != nil {
		t.Fatal(err)
	}
	if w.inv, err = inventory.Build(w.docs, nil, nil); err != nil {
		t.Fatal(err)
	}
	compiled, err := compile.Compile(w.docs, w.inv, compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.judge = verdict.New(compiled)
	return w
}

// flow returns the connection as package verdict takes it.
func (w *world) flow(from, to string, ports model.PortRange) *model.Flow {
	end := func(name string) model.End {
		e := model.End{Workload: name}
		if x := w.parties[name]; x.pod == nil && x.node == nil {
			e.Addr = netip.MustParseAddr(name)
		}
		return e
	}
	return &model.Flow{From: end(from), To: end(to), Proto: ports.Proto, Port: ports.Lo}
}

// allows returns the verdict after holding all judges against each other.
func (w *world) allows(t *testing.T, from, to string, ports model.PortRange) bool {
	t.Helper()
	want := w.oracle.allows(packet{from: w.parties[from], to: w.parties[to], proto: strings.ToUpper(ports.Proto.String()), port: int(ports.Lo)})
	f := w.flow(from, to, ports)
	got, err := w.judge.Judge(f)
	if err != nil {
		t.Fatalf("%s -> %s %s: %v", from, to, ports, err)
	}
	if (got.Verdict == model.Allow) != want || got.Verdict == model.WouldDeny {
		t.Errorf("%s -> %s %s: the evaluator says %s (egress %s by %s, ingress %s by %s), Kubernetes allows it: %v",
			from, to, ports, got.Verdict, got.Egress.Verdict, got.Egress.Rule, got.Ingress.Verdict, got.Ingress.Rule, want)
	}
	slow, err := coreoracle.Judge(w.docs, w.inv, compile.Options{}, f)
	if err != nil || slow != got {
		t.Errorf("%s -> %s %s: the evaluator says %v, the oracle of the core %v, %v", from, to, ports, got, slow, err)
	}
	return want
}

func TestTables(t *testing.T) {
	var files []string
	for _, dir := range []string{"pitfalls", "tables"} {
		more, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	if len(files) == 0 {
		t.Fatal("no tables")
	}
	for _, file := range files {
		for _, s := range readScenarios(t, file) {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar")+"/"+s.name, func(t *testing.T) {
				w := newWorld(t, s.manifests, s.others)
				for _, line := range s.table {
					w.checkLine(t, line)
				}
			})
		}
	}
}

func (w *world) checkLine(t *testing.T, line string) {
	t.Helper()
	head, tail, ok := strings.Cut(line, ":")
	words := strings.Fields(head)
	if !ok || len(words) < 3 || words[1] != "to" && words[1] != "from" {
		t.Fatalf("cannot read %q", line)
	}
	for _, port := range strings.Split(words[0], ",") {
		ports, err := model.ParsePortRange(port)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		for _, pattern := range words[2:] {
			for _, end := range w.matching(t, line, pattern) {
				want := w.listed(t, line, strings.Fields(tail))
				delete(want, end)
				got := map[string]bool{}
				for _, other := range w.names {
					from, to := other, end
					if words[1] == "from" {
						from, to = end, other
					}
					if from != to && w.allows(t, from, to, ports) {
						got[other] = true
					}
				}
				if !maps.Equal(got, want) {
					t.Errorf("%s\n  %s %s %s: %s", line, ports, words[1], end, difference(want, got))
				}
			}
		}
	}
}

func difference(want, got map[string]bool) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !got[name] {
			out = append(out, "not "+name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if !want[name] {
			out = append(out, "also "+name)
		}
	}
	return strings.Join(out, ", ")
}

func (w *world) matching(t *testing.T, line, pattern string) []string {
	t.Helper()
	var out []string
	for _, name := range w.names {
		ok, err := path.Match(pattern, name)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if ok || pattern == "*" {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%q: %s is nobody", line, pattern)
	}
	return out
}

func (w *world) listed(t *testing.T, line string, words []string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	if len(words) == 0 {
		t.Fatalf("%q lists nobody; write none", line)
	}
	for _, word := range words {
		pattern, leave := strings.CutPrefix(word, "-")
		if pattern == "none" {
			continue
		}
		for _, name := range w.matching(t, line, pattern) {
			if leave {
				delete(out, name)
			} else {
				out[name] = true
			}
		}
	}
	return out
}

// TestPitfalls holds the page and the cases together: every pitfall has a case of its name, every case is a pitfall.
func TestPitfalls(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		if name, ok := strings.CutPrefix(line, "### "); ok {
			if _, rest, ok := strings.Cut(name, "`"); ok {
				name, _, _ := strings.Cut(rest, "`")
				listed[name] = true
			}
		}
	}
	cases := map[string]bool{}
	files, err := filepath.Glob("testdata/pitfalls/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, f := range files {
		for _, s := range readScenarios(t, f) {
			if cases[s.name] {
				t.Errorf("two cases are named %s", s.name)
			}
			cases[s.name] = true
		}
	}
	for name := range listed {
		if !cases[name] {
			t.Errorf("docs/kubernetes.md lists the pitfall %s, which has no case", name)
		}
	}
	for name := range cases {
		if !listed[name] {
			t.Errorf("the case %s is not in docs/kubernetes.md", name)
		}
	}
}

// TestEnoughPolicies counts the NetworkPolicies of the tables.
func TestEnoughPolicies(t *testing.T) {
	files, err := filepath.Glob("testdata/tables/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		n += strings.Count(string(data), "kind: NetworkPolicy\n") + strings.Count(string(data), "kind: NetworkPolicy,")
	}
	if n < 100 {
		t.Error(fmt.Sprint("the tables have ", n, " NetworkPolicies, fewer than 100"))
	}
}
