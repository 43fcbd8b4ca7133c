// Package kube reads manifests of Kubernetes that stand beside documents of Bulkhead: pods, the controllers that make
// them, namespaces and nodes become workloads, and the policy kinds become one-sided policies, which package compile
// judges exactly as Kubernetes says (docs/kubernetes.md).
//
// Kinds of policy are read strictly, as the API server would and with its refusals: an unknown field is an error with
// its place, since a policy that is not read as it was meant opens or closes what nobody asked for. Of other kinds only
// what matters here is read. The package does no I/O; its functions may be called from several goroutines at once.
package kube

import (
	"slices"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// CodeKubernetes is the code of every finding about manifests.
const CodeKubernetes policy.Code = "kubernetes"

// Load reads files that hold documents of Bulkhead, manifests of Kubernetes, or both, and checks all of them against
// each other. The findings are what is allowed but likely not meant, and what was left out. The error is of type
// policy.Errors and holds every problem there is; then there are no documents.
func Load(files []policy.File) (*model.Documents, []policy.Finding, error) {
	r := newReader()
	ours := make([]policy.File, len(files))
	for i, f := range files {
		ours[i] = r.file(f)
	}
	if r.count == 0 {
		docs, err := policy.Parse(files)
		return docs, nil, err
	}
	r.finish()
	docs, err := policy.Parse(ours)
	problems := r.Problems()
	if err != nil {
		own, ok := err.(policy.Errors)
		if !ok {
			return nil, nil, err
		}
		problems = append(problems, own...)
	}
	if len(problems) > 0 {
		return nil, nil, sorted(problems)
	}
	docs.Workloads = append(docs.Workloads, r.workloads...)
	slices.SortStableFunc(docs.Workloads, func(a, b model.Workload) int { return compare(a.Name, b.Name) })
	docs.OneSided = append(docs.OneSided, r.policies...)
	slices.SortStableFunc(docs.OneSided, func(a, b model.OneSided) int { return compare(a.Name, b.Name) })
	if problems := policy.Validate(docs); len(problems) > 0 {
		return nil, nil, problems
	}
	return docs, r.findings(), nil
}

// First returns where the first manifest of Kubernetes stands, and its kind, if there is one in the files.
func First(files []policy.File) (model.Position, string, bool) {
	r := newReader()
	for _, f := range files {
		r.file(f)
		if r.count > 0 {
			return r.first, r.firstKind, true
		}
	}
	return model.Position{}, "", false
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func sorted(problems policy.Errors) policy.Errors {
	slices.SortStableFunc(problems, func(a, b *policy.Error) int { return comparePositions(a.Pos, b.Pos) })
	return problems
}

func comparePositions(a, b model.Position) int {
	if c := compare(a.File, b.File); c != 0 {
		return c
	}
	if a.Line != b.Line {
		return a.Line - b.Line
	}
	return a.Column - b.Column
}
