// Package policy is the document language: it reads YAML documents strictly into model.Documents, checks them against
// each other, writes them back in one canonical form, and points out what is allowed but looks wrong.
//
// Everything a reader of an error needs is in it: the place as file:line:column, what is wrong, what is expected and
// what to do. All problems of all files are reported at once. The package does no I/O and reads no clock; its
// functions may be called from several goroutines at once.
package policy

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// File is one file of documents.
type File struct {
	Name string // for positions only
	Data []byte
}

// Limits on what Read accepts. They are far above what people write, and keep a hostile file from taking the memory
// of whoever reads it.
const (
	MaxFile     = 64 << 20 // bytes in a file
	MaxDocument = 4 << 20  // bytes in one document of a file
	maxDepth    = 64       // lists and mappings within each other; the language needs 8
	maxErrors   = 1000     // reported at once
)

// Parse reads the files and checks the documents against each other. The error is of type Errors, sorted by position,
// and holds every problem there is: broken YAML, what the language does not know, and names that nothing declares. The
// documents are nil if there is an error.
func Parse(files []File) (*model.Documents, error) {
	r := read(files)
	r.problems.add(Validate(r.docs)...)
	if errs := r.problems.sorted(); len(errs) > 0 {
		return nil, errs
	}
	return r.docs, nil
}

// Read reads the files without checking that what documents name exists, for callers that lay them over other
// documents (Merge) before they call Validate. Two documents of one kind and name are an error here
// already. The error is as Parse returns it.
func Read(files []File) (*model.Documents, error) {
	r := read(files)
	r.problems.add(duplicates(r.docs)...)
	if errs := r.problems.sorted(); len(errs) > 0 {
		return nil, errs
	}
	return r.docs, nil
}

// read reads what it can of the files: documents with a problem are kept as far as they could be read, so that a
// problem in one does not make its name unknown to others.
func read(files []File) *reader {
	r := &reader{docs: &model.Documents{}}
	for _, f := range files {
		r.readFile(f)
	}
	sortDocuments(r.docs)
	return r
}

// Error is one problem at one place.
type Error struct {
	Pos model.Position
	Msg string
}

// Error returns "file:line:column: message", or the message alone if the place is unknown.
func (e *Error) Error() string {
	if e.Pos == (model.Position{}) {
		return e.Msg
	}
	return e.Pos.String() + ": " + e.Msg
}

// Errors is every problem that was found, sorted by position.
type Errors []*Error

// Error returns one problem a line.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

func errorf(pos model.Position, format string, args ...any) *Error {
	return &Error{Pos: pos, Msg: fmt.Sprintf(format, args...)}
}

// problems collects errors up to a limit, so that a file of garbage does not make gigabytes of messages.
type problems struct {
	list Errors
	more bool // there are, or may be, more than the list holds
}

func (p *problems) add(errs ...*Error) {
	for _, e := range errs {
		if p.full() {
			p.more = true
			return
		}
		p.list = append(p.list, e)
	}
}

// full reports whether so many problems were found that looking for more helps nobody.
func (p *problems) full() bool { return len(p.list) >= maxErrors }

// sorted returns the collected errors in the order of their positions, each once.
func (p *problems) sorted() Errors {
	slices.SortStableFunc(p.list, func(a, b *Error) int { return a.Pos.Compare(b.Pos) })
	p.list = slices.CompactFunc(p.list, func(a, b *Error) bool { return *a == *b })
	if p.more {
		return append(p.list, errorf(model.Position{}, "mend these %d problems first; the rest was not looked at", len(p.list)))
	}
	return p.list
}

func sortDocuments(d *model.Documents) {
	sortByName(d.Services, serviceName)
	sortByName(d.Networks, networkName)
	sortByName(d.Workloads, workloadName)
	sortByName(d.Segments, segmentName)
	sortByName(d.Policies, policyName)
	sortByName(d.Guardrails, guardrailName)
	sortByName(d.Expectations, expectationName)
	sortByName(d.OneSided, oneSidedName)
}

// sortByName is stable, so that of two documents of one name the first of the files stays first.
func sortByName[T any](list []T, name func(*T) string) {
	slices.SortStableFunc(list, func(a, b T) int { return strings.Compare(name(&a), name(&b)) })
}

func serviceName(d *model.Service) string         { return d.Name }
func networkName(d *model.Network) string         { return d.Name }
func workloadName(d *model.Workload) string       { return d.Name }
func segmentName(d *model.Segment) string         { return d.Name }
func policyName(d *model.Policy) string           { return d.Name }
func guardrailName(d *model.Guardrail) string     { return d.Name }
func expectationName(d *model.Expectation) string { return d.Name }
func oneSidedName(d *model.OneSided) string       { return d.Name }
