package world

import (
	"time"

	"bulkhead/internal/core/compile"
)

// Candidate is a world with other documents, compiled and not published.
type Candidate struct {
	Compiled *compile.World

	docs       *Documents
	generation uint64
}

// Try compiles the documents with everything else as it is, from scratch, and changes nothing. It keeps nobody waiting.
func (w *World) Try(docs *Documents) (*Candidate, error) {
	in := w.inputs(docs.Parsed)
	start := time.Now()
	compiled, err := in.compile()
	w.cfg.Compiled(time.Since(start), err)
	if err != nil {
		return nil, err
	}
	return &Candidate{Compiled: compiled, docs: docs, generation: in.generation}, nil
}

// Adopt puts the candidate in force under its revision number, with everything that has changed since Try. If what has
// changed does not go with it, everything stays as it was until the next change, which tries again.
func (w *World) Adopt(c *Candidate, revision uint64) error {
	docs := *c.docs
	docs.Revision = revision
	w.compiling.Lock()
	w.mu.Lock()
	w.docs = &docs
	fresh := w.generation == c.generation
	w.generation++
	w.mu.Unlock()
	in := w.changes()
	judge := c.Compiled
	if at, ok := judge.NextExpiry(); !fresh || ok && !in.now.Before(at) || in.generation != c.generation+1 {
		judge = nil // it is of another world by now
	}
	err := w.advance(in, judge)
	w.compiling.Unlock()
	w.spread()
	return err
}
