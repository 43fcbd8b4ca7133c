package compile_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/compile/compiletest"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

var update = flag.Bool("update", false, "write what testdata should expect")

// TestCompiledForm compares what hosts are given with testdata/*.txtar, written with names instead of numbers. Each
// file "host NAME" of a case is the policy of that host.
func TestCompiledForm(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c, err := compiletest.ParseCase(data)
			if err != nil {
				t.Fatal(err)
			}
			w, err := compile.Compile(c.Docs, c.Inventory, c.Options)
			if err != nil {
				t.Fatal(err)
			}
			hosts := 0
			for i := range c.Archive.Files {
				f := &c.Archive.Files[i]
				host, ok := strings.CutPrefix(f.Name, "host ")
				if !ok {
					continue
				}
				hosts++
				p, ok := w.HostPolicy(host)
				if !ok {
					t.Fatalf("no policy for host %q", host)
				}
				if err := p.Check(); err != nil {
					t.Error(err)
				}
				if got := render(w, p); *update {
					f.Data = []byte(got)
				} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("host %s is given another policy (-want +got, -update writes it):\n%s", host, diff)
				}
			}
			if hosts == 0 {
				t.Error("the case expects nothing")
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(c.Archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// render writes a policy with names instead of numbers. Sets are numbered in the order in which subjects name them.
func render(w *compile.World, p *hostpolicy.Policy) string {
	var b strings.Builder
	var sets []hostpolicy.PolicySetID
	number := func(id hostpolicy.PolicySetID) string {
		if !slices.Contains(sets, id) {
			sets = append(sets, id)
		}
		return fmt.Sprintf("set-%d", slices.Index(sets, id)+1)
	}
	for _, s := range p.Subjects {
		fmt.Fprintf(&b, "subject %s", s.Workload)
		if s.Unit != "" {
			fmt.Fprintf(&b, " unit %s", s.Unit)
		}
		fmt.Fprintf(&b, ": %s, %s, isolated %s", identityName(w, s.Identity), number(s.Set), number(s.Isolation))
		if s.Quarantine != model.QuarantineNone {
			fmt.Fprintf(&b, ", quarantine %s", s.Quarantine)
		}
		if s.OnAgentLoss != model.LossKeep {
			fmt.Fprintf(&b, ", on agent loss %s", s.OnAgentLoss)
		}
		b.WriteByte('\n')
		for _, l := range s.Local {
			fmt.Fprintf(&b, "  at %s: %s, %s\n", l.Addr, identityName(w, l.Identity), number(l.Set))
		}
	}
	for i, id := range sets {
		set := p.Set(id)
		fmt.Fprintf(&b, "set-%d\n", i+1)
		for _, d := range model.Directions {
			t := set.Table(d)
			for k, f := range t.Funcs {
				who := []string{"everyone else"}
				if k > 0 {
					who = nil
					for _, r := range t.Peers {
						if int(r.Func) == k {
							who = append(who, identityName(w, r.Peer))
						}
					}
					slices.Sort(who)
				}
				fmt.Fprintf(&b, "  %s %s\n", d, strings.Join(who, " | "))
				for _, c := range f {
					for _, a := range c.When {
						fmt.Fprintf(&b, "    %s %s %s, for %s\n", c.Ports, a.Verdict, a.Rule, a.Process)
					}
					fmt.Fprintf(&b, "    %s %s %s\n", c.Ports, c.Verdict, c.Rule)
				}
			}
		}
	}
	for _, a := range p.Addresses {
		fmt.Fprintf(&b, "address %s: %s", a.Prefix, identityName(w, a.Identity))
		if a.Shared {
			b.WriteString(" (shared)")
		}
		b.WriteByte('\n')
	}
	for _, o := range p.Ports {
		fmt.Fprintf(&b, "port %s %s: %s\n", o.Addr, model.PortRange{Proto: o.Proto, Lo: o.Port, Hi: o.Port}, identityName(w, o.Identity))
	}
	for _, d := range p.Domains {
		fmt.Fprintf(&b, "name %s of %s: %s\n", d.Pattern, identityName(w, d.Base), identityName(w, d.Identity))
	}
	for _, c := range p.Controllers {
		fmt.Fprintf(&b, "controller %s\n", c)
	}
	return b.String()
}

func identityName(w *compile.World, id model.IdentityID) string {
	if id == 0 {
		return "nobody"
	}
	var parts []string
	for _, m := range w.Identity(id) {
		text := "addresses"
		if m.Owned {
			text = "[" + m.Labels.String() + "]"
		}
		if len(m.Networks) > 0 {
			text += " in " + strings.Join(m.Networks, "+")
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " or ")
}
