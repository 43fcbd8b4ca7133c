// Package change is how policy changes: documents are laid over those in force, checked, compiled, judged, stored as a
// revision and put in force, in this order; whatever fails leaves everything as it was.
package change

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/store"
)

// Kind tells errors of this package apart.
type Kind uint8

// The kinds of error.
const (
	Invalid  Kind = iota // the documents are wrong
	Unmet                // an expectation or a guardrail does not hold, or a host cannot hold the result
	Conflict             // the documents are based on another revision than the newest
	Missing              // there is no such revision or document
)

// Error is why a change was not made. Its text is for who asked for it.
type Error struct {
	Kind Kind
	Text string
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

func fail(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Text: fmt.Sprintf(format, args...)}
}

// unmet returns, in words, why the change to the world should not be made.
func unmet(before, w *compile.World, targets budget.Targets) []string {
	var out []string
	for _, r := range plan.Unmet(before, w, targets) {
		out = append(out, r.Text)
	}
	return out
}

// Desk makes changes, one at a time. Its methods may be called from any goroutine.
type Desk struct {
	store store.Store
	world *world.World
	flows *flows.Ingester
	holds budget.Targets
	log   *slog.Logger
	now   func() time.Time

	mu sync.Mutex // a change from the reading of its base to its publication
}

// New returns a desk. holds says what hosts can hold.
func New(s store.Store, w *world.World, f *flows.Ingester, holds budget.Targets, log *slog.Logger, now func() time.Time) *Desk {
	return &Desk{store: s, world: w, flows: f, holds: holds, log: log, now: now}
}

// Ref names a document.
type Ref struct {
	Kind model.Kind
	Name string
}

// Edit says what to do to the documents in force.
type Edit struct {
	Files  []policy.File
	Prune  bool // what is not in Files goes
	Remove []Ref
}

// Request asks for a change.
type Request struct {
	Edit
	Base   uint64 // the revision that it is based on; 0: whichever is newest
	Author string
	Note   string
	Force  bool // also if expectations or guardrails do not hold, or a host cannot hold the result
}

// Result says what became of a request.
type Result struct {
	Revision uint64
	Hash     string
	Changed  bool // false: the documents are those of the newest revision
	Warnings []string
}

// Apply makes the edit a revision and puts it in force. Errors: *Error, and those of the store.
func (d *Desk) Apply(ctx context.Context, r Request) (*Result, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	base := d.world.Snapshot().Documents()
	if r.Base != 0 && r.Base != base.Revision {
		return nil, conflict(r.Base, base.Revision)
	}
	docs, err := assemble(base.Parsed, r.Edit)
	if err != nil {
		return nil, err
	}
	return d.commit(ctx, base, docs, r, audit.Apply)
}

// Rollback applies an old revision again. What would stop Apply without Force does not stop it.
func (d *Desk) Rollback(ctx context.Context, revision uint64, author, note string) (*Result, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var old *store.Revision
	if err := d.store.View(ctx, func(r store.Reader) (err error) {
		if revision == 0 {
			return store.ErrNotFound
		}
		old, err = r.Revision(revision)
		return err
	}); errors.Is(err, store.ErrNotFound) {
		return nil, fail(Missing, "there is no revision %d; `bulkhead history` lists those there are", revision)
	} else if err != nil {
		return nil, err
	}
	docs, err := world.NewDocuments(old.Number, old.Hash, old.Documents)
	if err != nil {
		return nil, fail(Invalid, "%v", err)
	}
	if note == "" {
		note = fmt.Sprintf("back to revision %d", revision)
	}
	return d.commit(ctx, d.world.Snapshot().Documents(), docs.Parsed, Request{Author: author, Note: note, Force: true}, audit.Rollback)
}

func conflict(asked, newest uint64) error {
	return fail(Conflict, "the change is based on revision %d, and the newest is %d; look at what has changed and try again", asked, newest)
}

// commit checks and stores the documents and puts them in force. The caller holds mu.
func (d *Desk) commit(ctx context.Context, base *world.Documents, docs *model.Documents, r Request, action string) (*Result, error) {
	next := canonical(docs)
	if next.Hash == base.Hash && base.Revision != 0 {
		return &Result{Revision: base.Revision, Hash: base.Hash}, nil
	}
	before, candidate, err := d.compile(d.world.Snapshot(), next)
	if err != nil {
		return nil, err
	}
	broken := unmet(before, candidate.Compiled, d.holds)
	if len(broken) > 0 && !r.Force {
		return nil, fail(Unmet, "%s\nnothing was changed; put it right, or apply with --force", strings.Join(broken, "\n"))
	}
	detail := r.Note
	if len(broken) > 0 {
		detail = strings.TrimSpace(fmt.Sprintf("%s (forced: %s)", r.Note, strings.Join(broken, "; ")))
	}
	var number uint64
	// From here on a client that hangs up changes nothing any more.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := d.store.Update(ctx, func(tx store.Tx) error {
		now := d.now()
		if number, err = tx.AppendRevision(base.Revision, store.Revision{
			Hash: next.Hash, Author: r.Author, Note: r.Note, Time: now, Count: count(docs), Documents: next.Canonical,
		}); err != nil {
			return err
		}
		_, err := tx.AppendAudit(store.AuditEntry{
			Time: now, Actor: r.Author, Action: action, Subject: fmt.Sprintf("revision %d", number), Detail: detail,
		})
		return err
	}); errors.Is(err, store.ErrConflict) {
		return nil, fail(Conflict, "another controller has just stored a revision; look at it and try again")
	} else if err != nil {
		return nil, err
	}
	if err := d.world.Adopt(candidate, number); err != nil {
		// It is stored and will be compiled with the next change of the world.
		d.log.Error("the new revision cannot be compiled at present", "revision", number, "error", err)
	}
	d.log.Info("revision stored", "revision", number, "hash", next.Hash, "author", r.Author)
	result := &Result{Revision: number, Hash: next.Hash, Changed: true, Warnings: broken}
	for _, f := range policy.Hygiene(docs, candidate.Compiled.Inventory(), d.now()) {
		result.Warnings = append(result.Warnings, f.String())
	}
	return result, nil
}

const storeTimeout = 15 * time.Second

// compile returns the snapshot, nil if it cannot be judged, and the documents with the world as it is, as worlds that judge. The
// error is about the documents.
func (d *Desk) compile(s *world.Snapshot, docs *world.Documents) (before *compile.World, candidate *world.Candidate, err error) {
	var present sync.WaitGroup
	present.Go(func() {
		var err error
		if before, err = s.Compiled(); err != nil {
			d.log.Error("what is in force cannot be judged", "revision", s.Revision(), "error", err)
		}
	})
	candidate, err = d.world.Try(docs)
	present.Wait()
	if err != nil {
		return nil, nil, fail(Invalid, "%v", err)
	}
	return before, candidate, nil
}

// Plan judges the edit by the flows recorded since then, and changes nothing. Errors: *Error, and those of the flow
// store.
func (d *Desk) Plan(ctx context.Context, e Edit, since time.Time) (*plan.Plan, error) {
	s := d.world.Snapshot()
	docs, err := assemble(s.Documents().Parsed, e)
	if err != nil {
		return nil, err
	}
	before, candidate, err := d.compile(s, canonical(docs))
	if err != nil {
		return nil, err
	}
	if before == nil {
		return nil, errors.New("what is in force cannot be judged; the controller's log says why")
	}
	recorded, err := d.flows.Recorded(ctx, since, s)
	if err != nil {
		return nil, err
	}
	p, err := plan.Make(before, candidate.Compiled, recorded, plan.Options{BaseRevision: s.Revision(), Targets: d.holds})
	if err != nil {
		return nil, fail(Invalid, "%v", err)
	}
	return p, nil
}

// assemble returns the documents that the edit makes of the base, checked against each other.
func assemble(base *model.Documents, e Edit) (*model.Documents, error) {
	given, err := policy.Read(e.Files)
	if err != nil {
		return nil, fail(Invalid, "%v", err)
	}
	if e.Prune {
		base = &model.Documents{}
	}
	docs := policy.Merge(base, given)
	for _, ref := range e.Remove {
		var found bool
		if docs, found = policy.Remove(docs, ref.Kind, ref.Name); !found {
			return nil, fail(Missing, "there is no %s named %q to remove", ref.Kind, ref.Name)
		}
	}
	errs := policy.Validate(docs)
	if len(errs) > 0 {
		return nil, fail(Invalid, "%v", errs)
	}
	return docs, nil
}

// canonical returns the documents in the form that is stored, and its hash.
func canonical(docs *model.Documents) *world.Documents {
	text := policy.Marshal(docs)
	sum := sha256.Sum256(text)
	return &world.Documents{Hash: hex.EncodeToString(sum[:]), Canonical: string(text), Parsed: docs}
}

func count(d *model.Documents) int {
	return len(d.Services) + len(d.Networks) + len(d.Workloads) + len(d.Segments) + len(d.Policies) + len(d.Guardrails) + len(d.Expectations)
}
