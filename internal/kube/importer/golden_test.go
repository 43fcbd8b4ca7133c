package importer

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/kube"
)

var update = flag.Bool("update", false, "write the cases as they are now")

var imports = map[string]func([]policy.File) (*Result, error){"calico": Calico, "cilium": Cilium}

// TestCases reads testdata/SYSTEM/*.txtar: NAME.yaml and NAME.want, which is every diagnostic, or error, and what the
// policies became. docs/import.md names every case, and no other.
func TestCases(t *testing.T) {
	page, err := os.ReadFile("../../../docs/import.md")
	if err != nil {
		t.Fatal(err)
	}
	for system, read := range imports {
		files, err := filepath.Glob(filepath.Join("testdata", system, "*.txtar"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no cases: %v", err)
		}
		cases := map[string]bool{}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			archive := txtar.Parse(data)
			for i := 0; i < len(archive.Files); i++ {
				name, ok := strings.CutSuffix(archive.Files[i].Name, ".yaml")
				if !ok {
					t.Fatalf("%s: want NAME.yaml, not %s", file, archive.Files[i].Name)
				}
				cases[name] = true
				got := told(t, read, archive.Files[i].Data)
				i++
				if i == len(archive.Files) || archive.Files[i].Name != name+".want" {
					if !*update {
						t.Fatalf("%s: %s.want is missing", file, name)
					}
					archive.Files = append(archive.Files[:i:i], append([]txtar.File{{Name: name + ".want"}}, archive.Files[i:]...)...)
				}
				if *update {
					archive.Files[i].Data = []byte(got)
				} else if want := string(archive.Files[i].Data); got != want {
					t.Errorf("%s/%s: got\n%swant\n%s", system, name, got, want)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, section, _ := strings.Cut(string(page), "\n## "+strings.ToUpper(system[:1])+system[1:]+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		listed := map[string]bool{}
		for _, m := range regexp.MustCompile("`#([-a-z0-9]+)`").FindAllStringSubmatch(section, -1) {
			listed[m[1]] = true
			if !cases[m[1]] {
				t.Errorf("docs/import.md names the case %s of %s, which is not there", m[1], system)
			}
		}
		for name := range cases {
			if !listed[name] {
				t.Errorf("the case %s of %s is not in docs/import.md", name, system)
			}
		}
	}
}

// told returns what an import says of a file. What it writes must be read as it was meant.
func told(t *testing.T, read func([]policy.File) (*Result, error), data []byte) string {
	t.Helper()
	result, err := read([]policy.File{{Name: "f", Data: data}})
	if err != nil {
		return strings.ReplaceAll(err.Error()+"\n", "f:", "")
	}
	var b strings.Builder
	for i := range result.Diagnostics {
		b.WriteString(strings.TrimPrefix(result.Diagnostics[i].String(), "f:") + "\n")
	}
	for i := range result.Policies {
		b.WriteString(drawn(&result.Policies[i]))
	}
	checkRead(t, result)
	return b.String()
}

// checkRead fails unless the manifests of a result say what the result does.
func checkRead(t *testing.T, result *Result) {
	t.Helper()
	text, err := result.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	docs, _, err := kube.Load([]policy.File{{Name: "out", Data: text}})
	if err != nil {
		t.Fatalf("the output cannot be read: %v\n%s", err, text)
	}
	want := map[string]string{}
	for i := range result.Policies {
		p := &result.Policies[i]
		if want[p.Name] != "" {
			t.Errorf("two policies are named %s", p.Name)
		}
		want[p.Name] = drawn(p)
	}
	got := map[string]string{}
	for i := range docs.OneSided {
		got[docs.OneSided[i].Name] = drawn(&docs.OneSided[i])
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read\n%v\nwant\n%v", got, want)
	}
}

// drawn writes a policy in few lines.
func drawn(p *model.OneSided) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", p.Name, p.Tier)
	if p.Tier != model.TierNamespace {
		fmt.Fprintf(&b, " %d", p.Priority)
	}
	fmt.Fprintf(&b, " {%s}", p.Subject)
	for _, d := range model.Directions {
		if p.Isolates[d] {
			fmt.Fprintf(&b, " isolates %s", d)
		}
	}
	b.WriteString("\n")
	for i := range p.Rules {
		r := &p.Rules[i]
		fmt.Fprintf(&b, "  %s: %s %s", r.Name, r.Action, r.Direction)
		for k := range r.Peers {
			x := &r.Peers[k]
			switch x.Kind {
			case model.PeerWorkloads:
				fmt.Fprintf(&b, " {%s}", x.Workloads)
			case model.PeerCIDR:
				fmt.Fprintf(&b, " %s", x.CIDR)
				for _, e := range x.Except {
					fmt.Fprintf(&b, "-%s", e)
				}
			case model.PeerDomain:
				fmt.Fprintf(&b, " %s", x.Domain)
			default:
				b.WriteString(" any")
			}
		}
		b.WriteString(" on")
		for _, x := range r.Ports {
			fmt.Fprintf(&b, " %s", x)
		}
		for _, x := range r.Named {
			fmt.Fprintf(&b, " %s/%s", x.Proto, x.Name)
		}
		b.WriteString("\n")
	}
	return b.String()
}
