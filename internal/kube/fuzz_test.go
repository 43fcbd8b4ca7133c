package kube

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// seeds adds every manifest of the test data to the corpus, as it is and from its spec on.
func seeds(f *testing.F, add func(manifests []byte)) {
	files, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range txtar.Parse(data).Files {
			if filepath.Ext(part.Name) == ".yaml" {
				add(part.Data)
			}
		}
	}
}

// FuzzLoad: whatever the bytes, the answer is the same twice, every error has a place, and what is accepted is whole.
func FuzzLoad(f *testing.F) {
	seeds(f, func(manifests []byte) { f.Add(manifests) })
	f.Fuzz(func(t *testing.T, data []byte) {
		files := []policy.File{{Name: "f", Data: data}}
		docs, findings, err := Load(files)
		again, findingsAgain, errAgain := Load(files)
		if !reflect.DeepEqual(docs, again) || !reflect.DeepEqual(findings, findingsAgain) || !reflect.DeepEqual(err, errAgain) {
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
		whole(t, docs)
	})
}

// whole fails on documents that the compiler could not take, and on policies that select what no policy may.
func whole(t *testing.T, docs *model.Documents) {
	t.Helper()
	names := map[string]bool{}
	for i := range docs.OneSided {
		p := &docs.OneSided[i]
		if names[p.Name] || p.Name == "" {
			t.Errorf("policy %q is there twice", p.Name)
		}
		names[p.Name] = true
		kind, _, _ := strings.Cut(p.Name, "/")
		ofKubernetes := slices.ContainsFunc(policyKindNames, func(k string) bool { return strings.ToLower(k) == kind })
		if ofKubernetes { // a OneSidedPolicy may be for everybody
			onlyPods(t, p.Name, &p.Subject)
		}
		rules := map[string]bool{}
		for k := range p.Rules {
			r := &p.Rules[k]
			if r.Name == "" || rules[r.Name] {
				t.Errorf("%s: rule %q is there twice", p.Name, r.Name)
			}
			rules[r.Name] = true
			if len(r.Peers) == 0 {
				t.Errorf("%s/%s is about nobody", p.Name, r.Name)
			}
			for j := range r.Peers {
				if x := &r.Peers[j]; ofKubernetes && x.Kind == model.PeerWorkloads && !hasRequirement(&x.Workloads, isNode) {
					onlyPods(t, p.Name, &x.Workloads)
				}
			}
			for _, x := range r.Ports {
				if x.Lo > x.Hi {
					t.Errorf("%s/%s: ports %v", p.Name, r.Name, x)
				}
			}
		}
	}
}

func hasRequirement(s *model.Selector, want model.Requirement) bool {
	for _, r := range s.Requirements {
		if reflect.DeepEqual(r, want) {
			return true
		}
	}
	return false
}

func onlyPods(t *testing.T, name string, s *model.Selector) {
	t.Helper()
	if !hasRequirement(s, isPod) {
		t.Errorf("%s selects more than pods: %s", name, s)
	}
}

const (
	networkHead = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n"
	clusterHead = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec:\n"
)

// strictly decodes what follows the head with the field names of the API and nothing else.
func strictly(text []byte, into any) error {
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	return d.Decode(into)
}

func fuzzSpec(f *testing.F, head string, decode func(text []byte) error) {
	seeds(f, func(manifests []byte) {
		for _, t := range policy.Split(policy.File{Data: manifests}) {
			if _, spec, ok := bytes.Cut(t.Bytes, []byte("\nspec:\n")); ok {
				f.Add(spec)
			}
		}
	})
	f.Fuzz(func(t *testing.T, spec []byte) {
		text := append([]byte(head), spec...)
		docs, _, err := Load([]policy.File{{Name: "f", Data: text}})
		if err != nil || len(docs.OneSided) != 1 || len(policy.Split(policy.File{Data: text})) != 1 {
			return
		}
		whole(t, docs)
		if err := decode(text); err != nil {
			t.Errorf("accepted, and the API would not read it: %v", err)
		}
	})
}

// FuzzNetworkPolicy: what is accepted is what the types of the API can hold.
func FuzzNetworkPolicy(f *testing.F) {
	fuzzSpec(f, networkHead, func(text []byte) error {
		var p struct {
			apiNetworkPolicy `yaml:",inline"`
			Status           any `yaml:"status"`
		}
		return strictly(text, &p)
	})
}

// FuzzClusterNetworkPolicy: likewise.
func FuzzClusterNetworkPolicy(f *testing.F) {
	fuzzSpec(f, clusterHead, func(text []byte) error {
		var p struct {
			apiClusterPolicy `yaml:",inline"`
			Status           any `yaml:"status"`
		}
		return strictly(text, &p)
	})
}
