// Package standalone is the policy of a host that has no controller: a directory of documents, which it reads, judges, compiles
// with the same core and puts in force, and goes on watching.
//
// What is wrong changes nothing: documents that do not parse or compile, guardrails and expectations that do not hold and
// what the dataplane cannot hold are told with their place, and the documents that were good last stay in force, over a
// restart too. A change that closes something that was open is on trial: it is rolled back unless somebody confirms it,
// which who has locked himself out cannot.
package standalone

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/docdir"
)

// Config says what is kept where.
type Config struct {
	Dir     string       // of documents
	Data    string       // holds standalone.json
	Host    string       // name of this host's workload
	Labels  model.Labels // of it, where no document says otherwise
	Confirm time.Duration
	Retry   time.Duration // before what failed for a reason of the moment is tried again; default 5 s
}

// Deps is what the policy is made with and given to.
type Deps struct {
	// Set puts a policy in force, or says why it cannot be.
	Set func(context.Context, *hostpolicy.Policy) error
	// Current returns what is in force; nil: nothing that this agent knows of.
	Current func() *hostpolicy.Policy
	// Found returns what there is on this host.
	Found func() *inventory.Found
	// Flows returns what was seen lately, for plans.
	Flows func() []model.RecordedFlow
	// Target says what the dataplane can hold.
	Target budget.Target
	Log    *slog.Logger
	Report func(key, text string) // says what is wrong, or with an empty text that it is well
}

// Keeper keeps the documents in force. Its methods may be called from several goroutines.
type Keeper struct {
	cfg     Config
	deps    Deps
	changed chan struct{} // the inventory
	wake    chan struct{} // there is another time at which there is something to do

	mu       sync.Mutex
	accepted *version // what a restart comes back to; nil: none yet
	trial    *trial
	world    *compile.World // in force; nil: none that we have compiled
	read     string         // sum of what was in the directory last
	given    string         // sum of what was not confirmed in time, and is not tried again by itself
	refused  *status.Refused
	unsaved  bool      // the state on disk is not the one in here
	behind   bool      // what is in force was not made for what there is on the host
	retry    time.Time // when what failed is tried again
	unsure   bool      // what the dataplane holds is perhaps not what was put in force last
	noted    noted
}

// version is a set of documents that was found good.
type version struct {
	number   uint64
	files    []policy.File
	docs     *model.Documents
	findings []policy.Finding
	since    time.Time
}

// trial is a version in force that nobody has confirmed yet.
type trial struct {
	*version
	until  time.Time
	closes []string
}

// New returns a keeper that has done nothing.
func New(cfg Config, deps Deps) *Keeper {
	if cfg.Retry == 0 {
		cfg.Retry = 5 * time.Second
	}
	return &Keeper{cfg: cfg, deps: deps, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
}

// Keys under which problems are reported.
const (
	problemDocuments = "documents"
	problemHost      = "documents on this host"
	problemStore     = "documents on disk"
	problemWatch     = "documents watch"
)

// Start puts the directory in force, or the documents that were good last. It returns when that is done; what is wrong is reported.
func (k *Keeper) Start(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.load()
	if k.accepted == nil && (k.deps.Current() == nil || k.given != "") {
		k.accepted = nothing()
	}
	if err := k.reload(ctx); err != nil {
		k.deps.Log.Error("the documents are not put in force", "directory", k.cfg.Dir, "error", err)
	}
	if k.world == nil && k.accepted != nil {
		k.again(ctx)
	}
}

// Run follows the directory, the host and the clock until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	dir := make(chan struct{}, 1)
	watcher := docdir.Watcher{Dir: k.cfg.Dir, Report: func(err error) {
		text := ""
		if err != nil {
			text = fmt.Sprintf("changes in %s are noticed late: %v", k.cfg.Dir, err)
		}
		k.deps.Report(problemWatch, text)
	}}
	group.Go(func() error {
		return watcher.Run(ctx, func() {
			select {
			case dir <- struct{}{}:
			default:
			}
		})
	})
	group.Go(func() error {
		for {
			timer := time.NewTimer(k.next(time.Now()))
			select {
			case <-ctx.Done():
			case <-dir:
				k.look(ctx)
			case <-k.changed:
				k.fit(ctx)
			case <-k.wake:
			case <-timer.C:
				k.tick(ctx, time.Now())
			}
			timer.Stop()
			if ctx.Err() != nil {
				return nil
			}
		}
	})
	return group.Wait()
}

// nothing is the version of a host for which nobody has written anything yet: everything passes.
func nothing() *version { return &version{docs: &model.Documents{}} }

// rouse has Run look at the clock again.
func (k *Keeper) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// later has what failed tried again after a while. The caller holds mu.
func (k *Keeper) later() {
	k.retry = time.Now().Add(k.cfg.Retry)
	k.rouse()
}

// InventoryChanged has the policy made again for what there is now on the host.
func (k *Keeper) InventoryChanged() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// look reads the directory and takes what is new in it.
func (k *Keeper) look(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.reload(ctx); err != nil && ctx.Err() == nil {
		k.deps.Log.Error("the documents are not put in force; what was in force stays", "directory", k.cfg.Dir, "error", err)
	}
}

// reload reads the directory and, unless it is as it was, judges it and puts it in force. The caller holds mu.
func (k *Keeper) reload(ctx context.Context) error {
	files, err := docdir.ReadSettled(ctx, k.cfg.Dir)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, docdir.ErrEmpty) && k.nothingYet() {
		files, err = nil, nil // to see comes before to decide
	}
	sum := sumOf(files, err)
	if sum == k.read {
		return nil
	}
	k.read = sum
	if k.trial == nil && sum != k.given {
		k.given = "" // somebody has thought about it
	}
	if err != nil {
		return k.refuse([]string{err.Error()})
	}
	return k.take(ctx, files, sum)
}

// nothingYet reports whether no documents were ever in force, so that an empty directory closes and opens nothing.
func (k *Keeper) nothingYet() bool {
	return k.accepted != nil && k.accepted.number == 0 && k.trial == nil
}

// sumOf names what was read.
func sumOf(files []policy.File, err error) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v\n", err)
	for _, f := range files {
		fmt.Fprintf(h, "%q %d\n", f.Name, len(f.Data))
		h.Write(f.Data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// take judges the files and puts them in force. The caller holds mu.
func (k *Keeper) take(ctx context.Context, files []policy.File, sum string) error {
	if k.accepted != nil && sameFiles(files, k.accepted.files) {
		return k.keep(ctx)
	}
	if k.trial != nil && sameFiles(files, k.trial.files) {
		k.good()
		return nil
	}
	if sum == k.given {
		return k.refuse([]string{k.notConfirmed()})
	}
	next := &version{number: 1, files: files}
	if now := k.now(); now != nil {
		next.number = now.number + 1
	}
	world, p, why := k.judge(next)
	if len(why) > 0 {
		return k.refuse(why)
	}
	closes, err := k.closes(world, p)
	if err != nil {
		return k.refuse([]string{err.Error()})
	}
	if len(closes) > 0 {
		return k.try(ctx, next, world, p, closes, sum)
	}
	if err := k.set(ctx, world, p); err != nil {
		return k.refuse([]string{err.Error()})
	}
	k.accept(next)
	return nil
}

func sameFiles(a, b []policy.File) bool {
	return slices.EqualFunc(a, b, func(a, b policy.File) bool { return a.Name == b.Name && slices.Equal(a.Data, b.Data) })
}

// now returns the version in force, or nil.
func (k *Keeper) now() *version {
	if k.trial != nil {
		return k.trial.version
	}
	return k.accepted
}

// keep is for a directory that is again as it was accepted: what is on trial ends.
func (k *Keeper) keep(ctx context.Context) error {
	if before := k.trial; before != nil || k.world == nil {
		k.trial = nil
		if err := k.fitNow(ctx); err != nil {
			k.trial = before
			return k.refuse([]string{err.Error()})
		}
		k.deps.Report(problemTrial, "")
		k.given = ""
		k.save()
	}
	k.good()
	return nil
}

// accept makes a version in force the one that a restart comes back to.
func (k *Keeper) accept(v *version) {
	v.since = time.Now()
	k.accepted, k.trial, k.given = v, nil, ""
	k.good()
	k.deps.Report(problemTrial, "")
	k.deps.Log.Info("documents are in force", "version", v.number, "files", len(v.files), "documents", countDocuments(v.docs))
	for _, note := range k.notes() {
		k.deps.Log.Warn("documents", "note", note)
	}
	k.save()
}

// good says that the directory is what is in force.
func (k *Keeper) good() {
	k.refused = nil
	k.deps.Report(problemDocuments, "")
}

// refuse says why the directory is not in force, and returns it as an error.
func (k *Keeper) refuse(why []string) error {
	k.refused = &status.Refused{At: time.Now().UTC().Round(time.Second), Errors: why}
	stays := "what was in force stays"
	if now := k.now(); now != nil {
		stays = fmt.Sprintf("version %d stays", now.number)
	} else if k.deps.Current() == nil {
		stays = "nothing is enforced"
	}
	text := why[0]
	if n := len(why) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	k.deps.Report(problemDocuments, fmt.Sprintf("%s is not in force, %s: %s", k.cfg.Dir, stays, text))
	return errors.New(strings.Join(why, "\n"))
}

// set puts what was compiled in force. The caller holds mu.
func (k *Keeper) set(ctx context.Context, world *compile.World, p *hostpolicy.Policy) error {
	if now := k.deps.Current(); k.unsure || now == nil || now.Revision != p.Revision || now.Hash() != p.Hash() {
		if err := k.deps.Set(ctx, p); err != nil {
			if !errors.Is(err, dataplane.ErrRefused) { // it may be in force: what is to be in force is put there again
				k.unsure, k.behind = true, k.now() != nil
				k.later()
			}
			return err
		}
	}
	k.world, k.behind, k.unsure = world, false, false
	k.deps.Report(problemHost, "")
	return nil
}

// fit makes the policy in force again for what there is on the host, and for the time that it is.
func (k *Keeper) fit(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again(ctx)
}

// again is fit for who holds mu.
func (k *Keeper) again(ctx context.Context) {
	if err := k.fitNow(ctx); err != nil && ctx.Err() == nil {
		k.behind = true
		k.later()
		k.deps.Log.Error("policy was not made again for what is on the host now", "error", err)
		k.deps.Report(problemHost, fmt.Sprintf("policy is not that of what is on the host now: %v", err))
	}
}

func (k *Keeper) fitNow(ctx context.Context) error {
	v := k.now()
	if v == nil {
		return nil
	}
	world, p, err := k.compile(v)
	if err != nil {
		return err
	}
	return k.set(ctx, world, p)
}

// next returns how long to wait until there is something to do at a time that is known.
func (k *Keeper) next(now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := time.Hour
	if k.unsaved || k.behind {
		wait = k.retry.Sub(now)
	}
	if k.trial != nil {
		wait = min(wait, k.trial.until.Sub(now))
	}
	if k.world != nil && !k.behind {
		if at, ok := k.world.NextExpiry(); ok {
			wait = min(wait, at.Sub(now))
		}
	}
	return max(wait, 0)
}

// tick does what the clock asks for.
func (k *Keeper) tick(ctx context.Context, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trial != nil && !now.Before(k.trial.until) {
		k.rollBack(ctx)
	}
	due := !now.Before(k.retry)
	if k.unsaved && due {
		k.save()
	}
	expired := false
	if k.world != nil {
		at, ok := k.world.NextExpiry()
		expired = ok && !now.Before(at)
	}
	if k.behind && due || expired && !k.behind {
		k.again(ctx)
	}
}
