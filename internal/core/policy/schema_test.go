package policy_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

// TestSchemaAcceptsWhatIsValid: every document of the corpus and of generated worlds that Parse accepts is valid.
func TestSchemaAcceptsWhatIsValid(t *testing.T) {
	s := readSchema(t)
	n := 0
	for _, data := range goodFiles(t) {
		for _, d := range yamlDocuments(t, data) {
			n++
			if why := s.check(d); why != "" {
				t.Errorf("%s\n%v", why, d)
			}
		}
	}
	t.Logf("%d documents", n)
	if n < 500 {
		t.Errorf("only %d documents", n)
	}
}

// TestSchemaKnowsTheFields puts a field that nobody knows into every mapping of valid documents. Parse refuses it and
// lists what it takes there; the schema must refuse it too, and list the same.
func TestSchemaKnowsTheFields(t *testing.T) {
	s := readSchema(t)
	places := map[string]bool{}
	for _, data := range goodFiles(t) {
		for _, chunk := range strings.Split("\n"+string(data), "\n---") {
			var root yaml.Node
			if yaml.Unmarshal([]byte(chunk), &root) != nil || len(root.Content) != 1 || root.Content[0].Kind != yaml.MappingNode {
				continue
			}
			eachMapping(root.Content[0], "", func(n *yaml.Node, path string) {
				if places[path] {
					return
				}
				places[path] = true
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: unknownField}, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: "x"})
				defer func() { n.Content = n.Content[:len(n.Content)-2] }()
				text, err := yaml.Marshal(&root)
				if err != nil {
					t.Fatal(err)
				}
				checkUnknown(t, s, path, text)
			})
		}
	}
	t.Logf("%d mappings: %v", len(places), slices.Sorted(maps(places)))
	if len(places) < 35 {
		t.Errorf("only %d kinds of mapping", len(places))
	}
}

const unknownField = "qqqqqqqqqqqq"

var takes = regexp.MustCompile(`unknown field "` + unknownField + `" in [^;]*; it takes (.*)`)

func checkUnknown(t *testing.T, s *jsonSchema, path string, text []byte) {
	t.Helper()
	d := yamlDocuments(t, text)[0]
	if strings.HasSuffix(path, ".labels") {
		return // any key may stand there
	}
	_, err := policy.Parse([]policy.File{{Name: "x", Data: text}})
	var known []string
	if err != nil {
		if m := takes.FindStringSubmatch(err.Error()); m != nil {
			known = strings.FieldsFunc(strings.ReplaceAll(m[1], " and ", ", "), func(r rune) bool { return r == ',' || r == ' ' })
		}
	}
	if known == nil {
		t.Errorf("at %s Parse does not refuse an unknown field: %v\n%s", path, err, text)
		return
	}
	if s.check(d) == "" {
		t.Errorf("at %s the schema takes an unknown field\n%s", path, text)
	}
	slices.Sort(known)
	if got := s.fieldsAt(path, d["kind"].(string)); !slices.Equal(got, known) {
		t.Errorf("at %s the schema takes %v, Parse takes %v", path, got, known)
	}
}

// TestSchemaRefuses holds the mistakes that an editor should underline.
func TestSchemaRefuses(t *testing.T) {
	s := readSchema(t)
	rule := func(r string) string {
		return "apiVersion: bulkhead/v1\nkind: Policy\nmetadata: {name: p}\nspec: {rules: [" + r + "]}"
	}
	spec := func(kind, spec string) string {
		return "apiVersion: bulkhead/v1\nkind: " + kind + "\nmetadata: {name: p}\nspec: " + spec
	}
	for _, text := range []string{
		"apiVersion: bulkhead/v2\nkind: Policy\nmetadata: {name: p}\nspec: {rules: []}",
		"apiVersion: bulkhead/v1\nkind: Polcy\nmetadata: {name: p}\nspec: {rules: []}",
		"apiVersion: bulkhead/v1\nkind: Policy\nmetadata: {name: p, labels: {a: b}}\nspec: {rules: []}",
		"apiVersion: bulkhead/v1\nkind: Workload\nmetadata: {name: p, labels: {bulkhead/x: b}}\nspec: {}",
		"apiVersion: bulkhead/v1\nkind: Workload\nmetadata: {name: p, labels: {a: b c}}\nspec: {}",
		rule("{name: r}"), rule("{allow: {from: a, to: b, on: any}}"),
		rule("{name: r, allow: {from: a, to: b, on: any}, deny: {from: a, to: b, on: any}}"),
		rule("{name: r, allow: {from: a, to: b, on: 443}}"), rule("{name: r, allow: {from: a, to: b, on: []}}"),
		rule("{name: r, allow: {from: any, to: b, on: any}}"), rule("{name: r, allow: {from: {domain: a.org}, to: b, on: any}}"),
		rule("{name: r, allow: {from: {network: a, cidr: 10.0.0.0/8}, to: b, on: any}}"),
		rule("{name: r, allow: {from: {process: {unit: x}}, to: b, on: any}}"),
		rule("{name: r, allow: {from: {network: a, process: {unit: x}}, to: b, on: any}}"),
		rule("{name: r, allow: {from: {workloads: a, process: {}}, to: b, on: any}}"),
		rule("{name: r, allow: {from: {workloads: a, process: {path: curl}}, to: b, on: any}}"),
		rule("{name: r, allow: {from: {any: false}, to: b, on: any}}"),
		spec("Segment", "{selector: a, mode: strict}"), spec("Segment", "{selector: a, mode: selective}"), spec("Segment", "{mode: observe}"),
		spec("Segment", "{selector: a, mode: selective, services: []}"), spec("Segment", "{selector: a, mode: observe, contain: {ttl: 1h}}"),
		spec("Network", "{}"), spec("Network", "{cidrs: []}"), spec("Network", "{cidrs: [10.0.0.1]}"), spec("Network", "{cidrs: [10.0.0.0/8], purpose: dns}"),
		spec("Service", "{ports: [443]}"), spec("Service", "{ports: [postgres]}"), spec("Service", "{ports: []}"),
		spec("Workload", "{unit: {host: a}}"), spec("Workload", "{managed: no thanks}"),
		spec("Guardrail", "{never: {from: a, to: b, on: any}, via: many}"),
		spec("Expectation", "{cases: []}"), spec("Expectation", "{cases: [{from: a, to: b, on: any thing, expect: allow}]}"),
		spec("Expectation", "{cases: [{from: a, to: b, on: tcp/1, expect: maybe}]}"),
	} {
		if _, err := policy.Parse([]policy.File{{Name: "x", Data: []byte(text)}}); err == nil {
			t.Errorf("Parse takes\n%s", text)
		}
		if s.check(yamlDocuments(t, []byte(text))[0]) == "" {
			t.Errorf("the schema takes\n%s", text)
		}
	}
}

// goodFiles returns files that Parse accepts: of the corpus, and written from generated worlds.
func goodFiles(t *testing.T) [][]byte {
	t.Helper()
	var out [][]byte
	paths, err := filepath.Glob(filepath.Join("..", "..", "corpus", "testdata", "*", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				if _, err := policy.Read([]policy.File{{Name: f.Name, Data: f.Data}}); err == nil {
					out = append(out, f.Data)
				}
			}
		}
	}
	for seed := range uint64(20) {
		size := policytest.Small
		size.NotYet = true
		docs, _, _ := policytest.Generate(seed, size)
		out = append(out, policy.Marshal(docs))
	}
	return out
}

func yamlDocuments(t *testing.T, data []byte) []map[string]any {
	t.Helper()
	var out []map[string]any
	d := yaml.NewDecoder(strings.NewReader(string(data)))
	for {
		var n yaml.Node
		if d.Decode(&n) != nil {
			return out
		}
		if m, ok := plainValue(n.Content[0]).(map[string]any); ok {
			out = append(out, m)
		}
	}
}

// plainValue returns a node as JSON would hold it; a date is text.
func plainValue(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			m[n.Content[i].Value] = plainValue(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := []any{}
		for _, c := range n.Content {
			list = append(list, plainValue(c))
		}
		return list
	}
	var v any
	if n.Tag == "!!timestamp" || n.Decode(&v) != nil {
		return n.Value
	}
	return v
}

// eachMapping calls f for every mapping, with the path of fields to it; lists have no part in the path.
func eachMapping(n *yaml.Node, path string, f func(*yaml.Node, string)) {
	switch n.Kind {
	case yaml.MappingNode:
		if path == "" {
			for i := 0; i < len(n.Content); i += 2 {
				if n.Content[i].Value == "kind" {
					path = n.Content[i+1].Value
				}
			}
		}
		for i := 0; i < len(n.Content); i += 2 {
			eachMapping(n.Content[i+1], path+"."+n.Content[i].Value, f)
		}
		f(n, path)
	case yaml.SequenceNode:
		for _, c := range n.Content {
			eachMapping(c, path, f)
		}
	}
}

func maps(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// jsonSchema is as much of JSON Schema as the schema uses; it fails the test on a keyword that it does not know.
type jsonSchema struct {
	t    *testing.T
	root map[string]any
}

func readSchema(t *testing.T) *jsonSchema {
	t.Helper()
	s := &jsonSchema{t: t}
	if err := json.Unmarshal(policy.Schema(), &s.root); err != nil {
		t.Fatal(err)
	}
	return s
}

// check returns why the value is not valid, or "".
func (s *jsonSchema) check(v any) string { return s.valid(s.root, v, "$") }

func (s *jsonSchema) ref(name string) any {
	v := any(s.root)
	for _, part := range strings.Split(strings.TrimPrefix(name, "#/"), "/") {
		v = v.(map[string]any)[part]
	}
	if v == nil {
		s.t.Fatalf("nothing is at %s", name)
	}
	return v
}

func (s *jsonSchema) valid(schema, v any, at string) string {
	if allowed, ok := schema.(bool); ok {
		if allowed {
			return ""
		}
		return at + ": not allowed"
	}
	m := schema.(map[string]any)
	for key, x := range m {
		if why := s.keyword(m, key, x, v, at); why != "" {
			return why
		}
	}
	return ""
}

func (s *jsonSchema) keyword(m map[string]any, key string, x, v any, at string) string {
	object, isObject := v.(map[string]any)
	list, isList := v.([]any)
	text, isText := v.(string)
	no := func(why string) string { return fmt.Sprintf("%s: %s %v: %s", at, key, x, why) }
	number := func() int { return int(x.(float64)) }
	switch key {
	case "$schema", "$id", "$defs", "title", "description", "default", "examples", "format", "then", "else":
	case "$ref":
		return s.valid(s.ref(x.(string)), v, at)
	case "type":
		is := map[string]bool{"object": isObject, "array": isList, "string": isText, "boolean": v == true || v == false}
		if ok, known := is[x.(string)]; !known {
			s.t.Fatalf("unknown type %v", x)
		} else if !ok {
			return no(fmt.Sprint(v))
		}
	case "const":
		if v != x {
			return no(fmt.Sprint(v))
		}
	case "enum":
		if !isText || !slices.Contains(x.([]any), any(text)) {
			return no(fmt.Sprint(v))
		}
	case "pattern":
		if isText && !regexp.MustCompile(x.(string)).MatchString(text) {
			return no(text)
		}
	case "minLength", "maxLength":
		if isText && (key == "minLength" && len(text) < number() || key == "maxLength" && len(text) > number()) {
			return no(text)
		}
	case "minItems":
		if isList && len(list) < number() {
			return no("too few")
		}
	case "minProperties":
		if isObject && len(object) < number() {
			return no("too few")
		}
	case "uniqueItems":
		for i := range list {
			if slices.Contains(list[i+1:], list[i]) {
				return no("twice")
			}
		}
	case "items":
		for i := range list {
			if why := s.valid(x, list[i], fmt.Sprintf("%s[%d]", at, i)); why != "" {
				return why
			}
		}
	case "required":
		for _, name := range x.([]any) {
			if _, ok := object[name.(string)]; isObject && !ok {
				return no("missing")
			}
		}
	case "dependentRequired":
		for name, needs := range x.(map[string]any) {
			if _, ok := object[name]; ok {
				if why := s.keyword(m, "required", needs, v, at); why != "" {
					return why
				}
			}
		}
	case "properties":
		for name, sub := range x.(map[string]any) {
			if value, ok := object[name]; ok {
				if why := s.valid(sub, value, at+"."+name); why != "" {
					return why
				}
			}
		}
	case "propertyNames":
		for name := range object {
			if why := s.valid(x, name, at); why != "" {
				return why
			}
		}
	case "additionalProperties":
		known, _ := m["properties"].(map[string]any)
		for name, value := range object {
			if _, ok := known[name]; !ok {
				if why := s.valid(x, value, at+"."+name); why != "" {
					return why
				}
			}
		}
	case "allOf", "anyOf", "oneOf":
		good, why := 0, ""
		for _, sub := range x.([]any) {
			if w := s.valid(sub, v, at); w == "" {
				good++
			} else {
				why = w
			}
		}
		if key == "allOf" && why != "" || good == 0 || key == "oneOf" && good > 1 {
			return fmt.Sprintf("%s: %s: %d are met; %s", at, key, good, why)
		}
	case "not":
		if s.valid(x, v, at) == "" {
			return no("met")
		}
	case "if":
		branch := "then"
		if s.valid(x, v, at) != "" {
			branch = "else"
		}
		if sub, ok := m[branch]; ok {
			return s.valid(sub, v, at)
		}
	default:
		s.t.Fatalf("unknown keyword %q", key)
	}
	return ""
}

// fieldsAt returns the fields that a mapping may have at a path of fields within a document of that kind, sorted.
func (s *jsonSchema) fieldsAt(path, kind string) []string {
	at := []any{s.root}
	for i, name := range strings.Split(path, ".")[1:] {
		var next []any
		for _, m := range s.objects(at) {
			if sub, ok := m["properties"].(map[string]any)[name]; ok {
				next = append(next, sub)
			}
		}
		if i == 0 && name == "spec" {
			next = []any{s.ref("#/$defs/" + strings.ToLower(kind))}
		}
		at = next
	}
	var out []string
	for _, m := range s.objects(at) {
		for name := range m["properties"].(map[string]any) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// objects returns the schemas of mappings among the alternatives.
func (s *jsonSchema) objects(list []any) []map[string]any {
	var out []map[string]any
	for _, x := range list {
		m, ok := x.(map[string]any)
		if !ok {
			continue
		}
		if _, ok := m["properties"]; ok && m["type"] == "object" {
			out = append(out, m)
		}
		if ref, ok := m["$ref"].(string); ok {
			out = append(out, s.objects([]any{s.ref(ref)})...)
		}
		for _, key := range []string{"anyOf", "items"} {
			switch sub := m[key].(type) {
			case []any:
				out = append(out, s.objects(sub)...)
			case map[string]any:
				out = append(out, s.objects([]any{sub})...)
			}
		}
	}
	return out
}
