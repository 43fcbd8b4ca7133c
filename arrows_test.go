package bulkhead_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// coreImports is what internal/core may import: the standard library less what has effects, and these.
var (
	coreLibraries = []string{"github.com/gaissmai/bart", "go.yaml.in/yaml/v3"}
	coreForbidden = []string{"os", "os/exec", "net", "net/http", "net/url", "database/sql", "log", "log/slog", "math/rand", "math/rand/v2", "syscall", "io/ioutil", "crypto/rand"}
)

// testSupport is for tests; the product does not import it.
var testSupport = []string{
	"bulkhead/internal/core/policytest",
	"bulkhead/internal/core/oracle/full",
	"bulkhead/internal/agent/agenttest",
	"bulkhead/internal/dataplane/dataplanetest",
	"bulkhead/internal/store/storetest",
	"bulkhead/internal/flowstore/flowstoretest",
	"bulkhead/internal/tinydisk",
}

// TestArrows holds the direction of imports (docs/architecture.md).
func TestArrows(t *testing.T) {
	for _, f := range sources(t, parser.ImportsOnly) {
		for _, spec := range f.syntax.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if why := forbidden(f.dir, path); why != "" && !f.test {
				t.Errorf("%s imports %q: %s", f.path, path, why)
			}
		}
	}
}

func forbidden(dir, path string) string {
	in := func(prefix string) bool { return dir == prefix || strings.HasPrefix(dir, prefix+"/") }
	ours := strings.HasPrefix(path, "bulkhead/")
	switch {
	case slices.Contains(testSupport, "bulkhead/"+dir):
		return ""
	case slices.Contains(testSupport, path):
		return "it is for tests only"
	case in("internal/core"):
		if ours && !strings.HasPrefix(path, "bulkhead/internal/core/") {
			return "core imports only core"
		}
		if slices.Contains(coreForbidden, path) {
			return "core has no I/O, no clock and no randomness"
		}
		if !ours && strings.Contains(path, ".") && !slices.Contains(coreLibraries, path) {
			return "core uses only " + strings.Join(coreLibraries, " and ")
		}
	case in("internal/agent") && strings.HasPrefix(path, "bulkhead/internal/controller"),
		in("internal/controller") && strings.HasPrefix(path, "bulkhead/internal/agent"):
		return "agent and controller meet only in api and wire"
	case in("internal/dataplane") && ours && !strings.HasPrefix(path, "bulkhead/internal/core/") && !strings.HasPrefix(path, "bulkhead/internal/dataplane"):
		return "a dataplane knows only core and its port"
	case (in("internal/store") || in("internal/flowstore")) && ours && !strings.HasPrefix(path, "bulkhead/internal/core/") && !strings.HasPrefix(path, "bulkhead/internal/store") && !strings.HasPrefix(path, "bulkhead/internal/flowstore") && !strings.HasPrefix(path, "bulkhead/internal/sqlite"):
		return "a store knows only core and its port"
	case in("internal") && (strings.HasPrefix(path, "bulkhead/cmd") || strings.HasPrefix(path, "bulkhead/lab")):
		return "internal packages do not know the programs or the lab"
	}
	return ""
}

// TestCoreReadsNoClock finds calls of time.Now and the like in core.
func TestCoreReadsNoClock(t *testing.T) {
	for _, f := range sources(t, 0) {
		if f.test || !strings.HasPrefix(f.dir, "internal/core") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine: core is pure", f.path)
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker"}, n.Sel.Name) {
					t.Errorf("%s calls time.%s: the clock is passed in", f.path, n.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestEveryPackageHasADoc asks for one package comment that says more than the name.
func TestEveryPackageHasADoc(t *testing.T) {
	docs := map[string]string{}
	for _, f := range sources(t, parser.ParseComments) {
		if f.test || ast.IsGenerated(f.syntax) {
			continue
		}
		docs[f.dir] += f.syntax.Doc.Text()
	}
	for dir, doc := range docs {
		if len(doc) < 40 {
			t.Errorf("%s has no package comment that says what lives there", dir)
		}
	}
}

type source struct {
	path, dir string
	test      bool
	syntax    *ast.File
}

func sources(t *testing.T, mode parser.Mode) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "out" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), path, nil, mode)
		if err != nil {
			return err
		}
		out = append(out, source{path: path, dir: filepath.ToSlash(filepath.Dir(path)), test: strings.HasSuffix(path, "_test.go"), syntax: syntax})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("found only %d Go files; run the test from the root of the repository", len(out))
	}
	return out
}
