package kube

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// reader reads the manifests of all files, and in finish turns them into workloads and policies.
type reader struct {
	policy.Reader
	count     int // manifests
	first     model.Position
	firstKind string
	seen      map[string]model.Position // "kind namespace/name" of what may be there once

	namespaces  map[string]model.Labels
	pods        []*pod
	controllers []*controller
	nodes       []*node
	services    []*service
	policies    []model.OneSided
	workloads   []model.Workload

	// ordered are the policies whose order their names promise: those of the kind OneSidedPolicy.
	ordered map[string]bool
	// visit, if set, is given every manifest instead.
	visit func(kind, *yaml.Node)

	ignored map[string]*ignored // by apiVersion and kind
	notes   []policy.Finding
}

// ignored counts manifests of a kind that says nothing here.
type ignored struct {
	pos   model.Position
	kind  kind
	count int
}

func newReader() *reader {
	return &reader{
		seen:       map[string]model.Position{},
		namespaces: map[string]model.Labels{},
		ordered:    map[string]bool{},
		ignored:    map[string]*ignored{},
	}
}

// kind is what a manifest says it is.
type kind struct{ group, version, name string }

func (k kind) apiVersion() string {
	if k.group == "" {
		return k.version
	}
	return k.group + "/" + k.version
}

var (
	ownVersion  = regexp.MustCompile(`(?m)^apiVersion: *["']?bulkhead/`)
	versionLike = regexp.MustCompile(`^v[0-9]+((alpha|beta)[0-9]+)?$`)
	marks       = regexp.MustCompile(`apiVersion|NetworkPolicy`) // one of them is in every manifest
)

// groupsWithoutDot are the API groups of Kubernetes that have no dot; every other group has one.
var groupsWithoutDot = []string{"", "apps", "batch", "autoscaling", "policy", "extensions"}

// file reads the manifests of a file and returns the file without them, every other line where it was.
func (r *reader) file(f policy.File) policy.File {
	if len(f.Data) > policy.MaxFile {
		return f // package policy says what is wrong with it
	}
	var rest []byte
	texts := policy.Split(f)
	for i := range texts {
		t := &texts[i]
		if r.Full() || !r.text(t) {
			if rest != nil {
				rest = append(rest, t.Bytes...)
			}
			continue
		}
		if rest == nil {
			rest = append(make([]byte, 0, len(f.Data)), f.Data[:offset(texts[:i])]...)
		}
		rest = append(rest, bytes.Repeat([]byte("\n"), bytes.Count(t.Bytes, []byte("\n")))...)
	}
	if rest == nil {
		return f
	}
	return policy.File{Name: f.Name, Data: rest}
}

func offset(texts []policy.Text) int {
	n := 0
	for i := range texts {
		n += len(texts[i].Bytes)
	}
	return n
}

// text reads a document if it is a manifest, and reports whether it is.
func (r *reader) text(t *policy.Text) bool {
	if ownVersion.Match(t.Bytes) || !marks.Match(t.Bytes) {
		return false
	}
	nodes := t.Nodes()
	if len(nodes) != 1 {
		return false // broken; package policy says how
	}
	k, ok := kindOf(nodes[0])
	if !ok {
		return false
	}
	r.Enter(t)
	if r.count == 0 {
		r.first, r.firstKind = r.Pos(nodes[0]), k.name
	}
	r.count++
	if n, ok := r.expand(nodes[0], 2*len(t.Bytes)+minNodes); ok {
		r.manifest(k, n)
	}
	return true
}

// kindOf returns what the manifest is. It is none if its apiVersion is not one that Kubernetes could have.
func kindOf(n *yaml.Node) (kind, bool) {
	name, _ := scalar(child(n, "kind"))
	version, hasVersion := scalar(child(n, "apiVersion"))
	if !hasVersion {
		if k, ok := policyKinds[name]; ok && child(n, "apiVersion") == nil {
			return kind{group: k.group, name: name}, true
		}
		return kind{}, false
	}
	group, v, found := strings.Cut(version, "/")
	if !found {
		group, v = "", version
	}
	if !versionLike.MatchString(v) || !strings.Contains(group, ".") && !slices.Contains(groupsWithoutDot, group) {
		return kind{}, false
	}
	if group == "" && name != string(model.KindService) && slices.Contains(model.Kinds, model.Kind(name)) {
		return kind{}, false // a document of ours with the wrong apiVersion
	}
	return kind{group, v, name}, true
}

// child returns the value of a field of a mapping; nil if there is none, or nothing in it.
func child(n *yaml.Node, path ...string) *yaml.Node {
	for _, name := range path {
		if n == nil || n.Kind != yaml.MappingNode {
			return nil
		}
		var found *yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name && n.Content[i].Kind == yaml.ScalarNode {
				found = n.Content[i+1]
				break
			}
		}
		n = found
	}
	if isNull(n) {
		return nil
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

func scalar(n *yaml.Node) (string, bool) {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		return "", false
	}
	return n.Value, true
}

// Limits on what aliases may make of a manifest.
const (
	minNodes = 10_000 // however short the manifest is
	maxDepth = 100
)

// expand writes aliases out, up to a limit: people use them in manifests. A node keeps the place where it was written.
func (r *reader) expand(n *yaml.Node, limit int) (*yaml.Node, bool) {
	out, ok := expand(n, maxDepth, &limit)
	if !ok {
		r.Fail(n, "the manifest is nested too deeply or too large; split it")
	}
	return out, ok
}

func expand(n *yaml.Node, depth int, left *int) (*yaml.Node, bool) {
	*left--
	if depth == 0 || *left < 0 {
		return nil, false
	}
	if n.Kind == yaml.AliasNode {
		if n.Alias == nil {
			return nil, false
		}
		return expand(n.Alias, depth-1, left)
	}
	if len(n.Content) == 0 {
		return n, true
	}
	out := *n
	out.Content = make([]*yaml.Node, 0, len(n.Content))
	for i, c := range n.Content {
		x, ok := expand(c, depth-1, left)
		if !ok {
			return nil, false
		}
		if n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Tag == "!!merge" {
			// "<<: *base": what the mapping does not say itself.
			out.Content = out.Content[:len(out.Content)-1]
			merge(&out, n, x)
			continue
		}
		out.Content = append(out.Content, x)
	}
	return &out, true
}

func merge(into, written, from *yaml.Node) {
	if from.Kind == yaml.SequenceNode {
		for _, c := range from.Content {
			merge(into, written, c)
		}
		return
	}
	for i := 0; from.Kind == yaml.MappingNode && i+1 < len(from.Content); i += 2 {
		if k := from.Content[i]; !hasKey(into, k.Value) && !hasKey(written, k.Value) {
			into.Content = append(into.Content, k, from.Content[i+1])
		}
	}
}

func hasKey(n *yaml.Node, name string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return true
		}
	}
	return false
}

// policyKind is a kind whose manifests decide about traffic.
type policyKind struct {
	group    string
	versions []string
}

// policyKinds are those that are judged here.
var policyKinds = map[string]policyKind{
	"NetworkPolicy":              {"networking.k8s.io", []string{"v1"}},
	"ClusterNetworkPolicy":       {policyGroup, []string{"v1alpha2", "v1beta1"}},
	"AdminNetworkPolicy":         {policyGroup, []string{"v1alpha1"}},
	"BaselineAdminNetworkPolicy": {policyGroup, []string{"v1alpha1"}},
}

var policyKindNames = []string{"NetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"}

const policyGroup = "policy.networking.k8s.io"

// officialGroups are the groups in which the policies of Kubernetes are, were, or are looked for.
var officialGroups = []string{"", "extensions", "networking.k8s.io", policyGroup}

// otherPolicies are groups whose policies decide about traffic too and are not judged here, with what to do.
var otherPolicies = map[string]string{
	"cilium.io":             "read what bulkhead import cilium makes of it",
	"projectcalico.org":     "read what bulkhead import calico makes of it",
	"crd.projectcalico.org": "read what bulkhead import calico makes of it",
	"crd.antrea.io":         rewrite,
	"k8s.ovn.org":           rewrite,
	"security.istio.io":     "judge the rest without it: it is asked above the network, and what is said here holds below it",
}

const rewrite = "write it as NetworkPolicy or ClusterNetworkPolicy, or judge the rest without it"

// manifest reads one manifest of any kind.
func (r *reader) manifest(k kind, n *yaml.Node) {
	if r.Full() {
		return
	}
	if r.visit != nil {
		if item, ok := strings.CutSuffix(k.name, "List"); ok && child(n, "items") != nil {
			r.list(kind{k.group, k.version, item}, n)
			return
		}
		r.visit(k, n)
		return
	}
	if k.group == OneSidedGroup {
		r.oneSided(k, n)
		return
	}
	if p, ok := policyKinds[k.name]; ok && (p.group == k.group || slices.Contains(officialGroups, k.group)) {
		switch {
		case k.version == "":
			r.Fail(n, "apiVersion is missing in the manifest; write apiVersion: %s/%s", p.group, p.versions[0])
		case p.group != k.group || !slices.Contains(p.versions, k.version):
			r.Fail(child(n, "apiVersion"), "%s of %s is not known here; write apiVersion: %s/%s",
				k.name, k.apiVersion(), p.group, strings.Join(p.versions, " or "+p.group+"/"))
		case k.name == "NetworkPolicy":
			r.networkPolicy(n)
		default:
			r.clusterPolicy(k, n)
		}
		return
	}
	if item, ok := strings.CutSuffix(k.name, "List"); ok && child(n, "items") != nil {
		r.list(kind{k.group, k.version, item}, n)
		return
	}
	if slices.Contains(officialGroups, k.group) {
		// A policy that is passed over as a kind of no interest opens what it closes.
		if hint := policy.DidYouMean(k.name, policyKindNames); hint != "" || k.group == policyGroup {
			r.Fail(n, "unknown kind %q of %s%s", k.name, k.apiVersion(), hint)
			return
		}
	}
	switch k.group + "/" + k.name {
	case "/Namespace":
		r.namespace(n)
	case "/Pod":
		r.pod(n)
	case "/Node":
		r.node(n)
	case "/Service":
		r.service(n)
	case "/ReplicationController", "apps/Deployment", "apps/StatefulSet", "apps/DaemonSet", "apps/ReplicaSet", "batch/Job":
		r.controller(k, n, "spec", "template")
	case "batch/CronJob":
		r.controller(k, n, "spec", "jobTemplate", "spec", "template")
	default:
		r.ignore(k, n)
	}
}

// list reads the items of a List, or of a list of one kind whose items need not say what they are.
func (r *reader) list(of kind, n *yaml.Node) {
	r.Each(child(n, "items"), "items", true, func(item *yaml.Node) {
		k := of
		if own, ok := kindOf(item); ok {
			k = own
		} else if of.name == "" || child(item, "apiVersion") != nil || child(item, "kind") != nil {
			r.Fail(item, "the item has no apiVersion and kind that Kubernetes could have")
			return
		}
		if k.name == "List" {
			r.Fail(item, "a List within a List; write its items into the outer one")
			return
		}
		r.manifest(k, item)
	})
}

func (r *reader) ignore(k kind, n *yaml.Node) {
	key := k.apiVersion() + " " + k.name
	if r.ignored[key] == nil {
		r.ignored[key] = &ignored{pos: r.Pos(n), kind: k}
	}
	r.ignored[key].count++
}

// note keeps a finding for check.
func (r *reader) note(pos model.Position, s policy.Severity, fix, format string, args ...any) {
	r.notes = append(r.notes, policy.Finding{Pos: pos, Severity: s, Code: CodeKubernetes, Msg: fmt.Sprintf(format, args...), Fix: fix})
}
