package kube

import (
	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/policy"
)

// Object is one manifest: what it says it is, and its root, with aliases written out.
type Object struct {
	Group, Version, Kind string
	Node                 *yaml.Node
}

// Walk calls visit for every manifest of the files, in order, items of lists too, with the reader that the manifest stands
// in. It returns every problem there is, of which none may remain unseen: documents that cannot be read, and what visit
// reports to the reader. Documents of Bulkhead are passed over.
func Walk(files []policy.File, visit func(*policy.Reader, Object)) policy.Errors {
	r := newReader()
	r.visit = func(k kind, n *yaml.Node) { visit(&r.Reader, Object{k.group, k.version, k.name, n}) }
	rest := make([]policy.File, len(files))
	for i, f := range files {
		rest[i] = r.file(f)
	}
	problems := r.Problems()
	if _, err := policy.Parse(rest); err != nil {
		if more, ok := err.(policy.Errors); ok {
			problems = append(problems, more...)
		} else {
			problems = append(problems, &policy.Error{Msg: err.Error()})
		}
	}
	return sorted(problems)
}
