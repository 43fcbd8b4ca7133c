package standalone

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bulkhead/internal/agent/durable"
	"bulkhead/internal/core/policy"
)

const stateFile = "standalone.json"

// state is what outlasts the agent: the documents that were accepted last, and what was on trial then or was rolled back.
type state struct {
	Accepted *stored `json:"accepted,omitempty"`
	Given    string  `json:"not_confirmed,omitempty"` // sum of the directory
}

type stored struct {
	Number uint64       `json:"version"`
	Since  time.Time    `json:"since"`
	Files  []storedFile `json:"files"`
}

type storedFile struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// save keeps the state. What cannot be kept is reported and tried again: only a restart would miss it. The caller holds mu.
func (k *Keeper) save() {
	s := state{Given: k.given}
	if v := k.accepted; v != nil {
		s.Accepted = &stored{Number: v.number, Since: v.since}
		for _, f := range v.files {
			s.Accepted.Files = append(s.Accepted.Files, storedFile{f.Name, f.Data})
		}
	}
	data, err := json.Marshal(s)
	if err == nil {
		err = durable.WriteFile(filepath.Join(k.cfg.Data, stateFile), data, 0o600)
	}
	k.unsaved = err != nil
	text := ""
	if err != nil {
		k.deps.Log.Error("documents are not kept on disk", "error", err)
		k.later()
		text = fmt.Sprintf("the documents in force could not be kept on disk: %v", err)
	}
	k.deps.Report(problemStore, text)
}

// load takes the state from disk. The caller holds mu.
func (k *Keeper) load() {
	v, err := k.loadState()
	text := ""
	if err != nil {
		k.deps.Log.Error("the documents on disk cannot be used", "error", err)
		text = fmt.Sprintf("the documents that were good last cannot be used: %v", err)
	}
	k.accepted = v
	k.deps.Report(problemStore, text)
}

func (k *Keeper) loadState() (*version, error) {
	path := filepath.Join(k.cfg.Data, stateFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k.given = s.Given
	if s.Accepted == nil {
		return nil, nil
	}
	v := &version{number: s.Accepted.Number, since: s.Accepted.Since}
	for _, f := range s.Accepted.Files {
		v.files = append(v.files, policy.File{Name: f.Name, Data: f.Data})
	}
	if why := v.parse(); len(why) > 0 {
		return nil, errors.New(strings.Join(why, "; "))
	}
	return v, nil
}
