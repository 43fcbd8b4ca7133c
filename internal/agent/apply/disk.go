package apply

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"bulkhead/internal/agent/durable"
	"bulkhead/internal/core/hostpolicy"
)

// disk is where policy and wishes for isolation outlast the agent. There are two dangers, and two steps against them.
// The agent may die at any moment: what is about to be enforced is written ahead, which takes no time worth naming, so
// that the next agent never goes back behind what the kernel enforces. The power may fail: that the device has what was
// written is waited for afterwards, with no lock held, so that nobody who isolates waits for it.
type disk struct {
	dir string

	mu   sync.Mutex // orders writing and renaming
	turn uint64     // how many policies were written ahead
	// What is in force and could not be kept.
	policyStale, isolatedStale bool
}

// draft is a policy that was written ahead, or should have been.
type draft struct {
	policy *hostpolicy.Policy
	turn   uint64
	err    error
}

// ahead writes a policy that is about to be enforced where a restart finds it before the one that was kept.
func (d *disk) ahead(p *hostpolicy.Policy) *draft {
	data, err := encode(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn++
	path := filepath.Join(d.dir, nextFile)
	if err == nil {
		err = durable.WriteAhead(path, data, 0o600)
	}
	if err != nil { // what an earlier turn has left there is older than what will be in force
		if gone := remove(path); gone != nil && !errors.Is(gone, unix.EROFS) {
			err = errors.Join(err, gone)
		}
	}
	return &draft{policy: p, turn: d.turn, err: err}
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// drop takes back what was written ahead, unless a later turn has taken its place.
func (d *disk) drop(w *draft) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.turn != d.turn {
		return nil
	}
	return remove(filepath.Join(d.dir, nextFile))
}

// keep makes a policy that was written ahead the one that a loss of power leaves. If a later turn has taken its place
// nothing is left to do, and nothing wrong.
func (d *disk) keep(w *draft) error {
	next, err := filepath.Join(d.dir, nextFile), w.err
	if err == nil {
		err = durable.Sync(next)
	}
	d.mu.Lock()
	if w.turn != d.turn {
		d.mu.Unlock()
		return nil
	}
	if err == nil {
		err = os.Rename(next, filepath.Join(d.dir, stateFile))
	}
	d.policyStale = err != nil
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if err = durable.SyncDir(d.dir); err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.policyStale = d.policyStale || w.turn == d.turn
	}
	return err
}

// stale reports whether what is in force was kept: the policy, and the wishes.
func (d *disk) stale() (policy, isolated bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.policyStale, d.isolatedStale
}

// stored is a policy on disk.
type stored struct {
	*hostpolicy.Policy
	ahead bool // it was written ahead and not kept
}

// load returns the policies of the host on disk, the one to try first first. What cannot be used is moved aside, and the
// error says so. A policy that was written ahead may be in pieces after a loss of power: it was not kept, and the other
// one was.
func (d *disk) load(host string) (found []stored, err error) {
	for _, file := range []string{nextFile, stateFile} {
		p, wrong := load(d.dir, file)
		switch {
		case errors.Is(wrong, errNoState):
		case wrong != nil:
			err = errors.Join(err, wrong)
		case p.Host != host:
			err = errors.Join(err, fmt.Errorf("%s is for host %q, this is %q", filepath.Join(d.dir, file), p.Host, host))
		default:
			found = append(found, stored{Policy: p, ahead: file == nextFile})
		}
	}
	return found, err
}

// settle makes the policy that was restored the only one on disk.
func (d *disk) settle(p stored) error {
	d.mu.Lock()
	w := &draft{policy: p.Policy, turn: d.turn}
	d.mu.Unlock()
	if p.ahead {
		return d.keep(w)
	}
	return d.drop(w)
}

// write writes the wishes, so that they outlast this process; sync makes them outlast a loss of power.
func (d *disk) write(wishes map[string]Origin) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := filepath.Join(d.dir, isolatedFile)
	var err error
	if len(wishes) == 0 {
		err = remove(path)
	} else {
		var data []byte
		if data, err = json.Marshal(wishes); err == nil {
			err = durable.WriteAhead(path, data, 0o600)
		}
	}
	d.isolatedStale = err != nil
	return err
}

func (d *disk) sync() error {
	err := durable.Sync(filepath.Join(d.dir, isolatedFile))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, durable.SyncDir(d.dir))
}

// wishes reads what write has written.
func (d *disk) wishes() (map[string]Origin, error) {
	data, err := os.ReadFile(filepath.Join(d.dir, isolatedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var wishes map[string]Origin
	if err == nil {
		err = json.Unmarshal(data, &wishes)
	}
	return wishes, err
}

// writeWishes notes down which workloads are isolated by a call. The caller holds mu of the applier.
func (a *Applier) writeWishes() { a.tellWishes(a.disk.write(a.isolated.all())) }

// keepWishes waits until what was noted down is on disk.
func (a *Applier) keepWishes() {
	if _, stale := a.disk.stale(); !stale {
		a.tellWishes(a.disk.sync())
	}
}

func (a *Applier) tellWishes(err error) {
	if err != nil {
		a.log.Error("isolation is in force but not on disk", "error", err)
		a.report(isolatedFile, fmt.Sprintf("isolation is in force but could not be kept on disk: %v", err))
		return
	}
	a.report(isolatedFile, "")
}
