package importer

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// fuzzImport: whatever the bytes, the answer is the same twice, every error has a place, and the output is read as it was
// meant.
func fuzzImport(f *testing.F, system string) {
	files, err := filepath.Glob(filepath.Join("testdata", system, "*.txtar"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range txtar.Parse(data).Files {
			if filepath.Ext(part.Name) == ".yaml" {
				f.Add(part.Data)
			}
		}
	}
	read := imports[system]
	f.Fuzz(func(t *testing.T, data []byte) {
		input := []policy.File{{Name: "f", Data: data}}
		result, err := read(input)
		again, errAgain := read(input)
		if !reflect.DeepEqual(result, again) || !reflect.DeepEqual(err, errAgain) {
			t.Fatal("two readings differ")
		}
		if err != nil {
			for _, e := range err.(policy.Errors) {
				if e.Pos.Line == 0 && len(err.(policy.Errors)) < 1000 {
					t.Errorf("an error without a place: %s", e.Msg)
				}
			}
			return
		}
		for i := range result.Diagnostics {
			if d := &result.Diagnostics[i]; d.Pos.Line == 0 || d.Field == "" || d.Msg == "" || d.Fix == "" {
				t.Errorf("a diagnostic that lacks something: %s", d)
			}
		}
		checkRead(t, result)
	})
}

func FuzzCilium(f *testing.F) { fuzzImport(f, "cilium") }

func FuzzCalico(f *testing.F) { fuzzImport(f, "calico") }

// FuzzSelector: a selector that is read means one thing, and what it becomes is on the safe side of it.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{"", "all()", "a == 'b' && !has(c) || !(d in {'e', \"f\"})", "a starts with 'b'", "projectcalico.org/namespace not in {'x'}", "global()"} {
		f.Add(s, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		e, err := parseExpr(text)
		if err != nil {
			return
		}
		if model.CheckLabelKey(key) != nil || model.CheckLabelValue(value) != nil {
			return
		}
		if own, fixed, known := podKey(key); own != key || fixed != "" || !known {
			return
		}
		labels := model.Labels{key: value, namespaceKey: "x"}
		truth := e.holds(false, func(k string) (string, bool, bool) {
			own, fixed, known := podKey(k)
			if fixed != "" || !known {
				return fixed, true, known
			}
			v, ok := labels[own]
			return v, ok, true
		})
		for _, negated := range []bool{false, true} {
			is, atLeast, atMost := truth, false, false
			if negated {
				is = -is
			}
			for over, into := range map[bool]*bool{true: &atLeast, false: &atMost} {
				for _, a := range e.alternatives(negated, over) {
					s := model.NewSelector(a...)
					*into = *into || s.Matches(labels)
				}
			}
			if is == yes && !atLeast || is == no && atMost {
				t.Errorf("%q (negated: %v) of %v is %d; at least %v, at most %v", text, negated, labels, is, atLeast, atMost)
			}
		}
	})
}
