package traffic

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Role says which side of which traffic an entry is about.
type Role string

// The roles.
const (
	RoleCall   Role = "call"   // a request that belongs to the business of the place
	RoleProbe  Role = "probe"  // a request that the runner ordered
	RoleServed Role = "served" // a request that arrived and was answered
	RoleClosed Role = "closed" // a connection that ended; Last is when its last byte arrived
	RoleScan   Role = "scan"   // an attempt of the worm
	RoleTaken  Role = "taken"  // the worm has taken the workload From; By and Via say how
)

// Outcome is what became of a request.
type Outcome string

// The outcomes.
const (
	OK          Outcome = "ok"
	Refused     Outcome = "refused"     // it arrived; nothing listens there
	Denied      Outcome = "denied"      // the caller's own kernel said no (EPERM)
	Timeout     Outcome = "timeout"     // no answer
	Reset       Outcome = "reset"       // the connection was cut
	Unreachable Outcome = "unreachable" // no such host
	Failed      Outcome = "failed"      // anything else; Err says what
)

// Entry is one line of a ledger.
type Entry struct {
	ID      string         `json:"id,omitempty"`
	Role    Role           `json:"role"`
	Start   int64          `json:"start"` // nanoseconds since 1970
	End     int64          `json:"end,omitempty"`
	From    string         `json:"from"` // of the process that writes
	Process string         `json:"process,omitempty"`
	To      string         `json:"to,omitempty"`
	Proto   string         `json:"proto,omitempty"`
	Src     netip.AddrPort `json:"src,omitzero"`
	Dst     netip.AddrPort `json:"dst,omitzero"`
	Opened  bool           `json:"opened,omitempty"` // a connection was opened for it, or tried to
	Outcome Outcome        `json:"outcome,omitempty"`
	Err     string         `json:"err,omitempty"`
	Sent    int            `json:"sent,omitempty"`
	Rcvd    int            `json:"rcvd,omitempty"`
	Last    int64          `json:"last,omitempty"`
	By      string         `json:"by,omitempty"`
	Via     string         `json:"via,omitempty"`
}

// Latency is how long the request took.
func (e *Entry) Latency() time.Duration { return time.Duration(e.End - e.Start) }

// Ledger appends entries to a file, each with one write, so that nothing is lost when the process is killed; only a write
// that the kill itself cuts short is. Entries stand between line feeds, so that what is left of such a one stays apart from
// what is appended next. A Ledger may be used from several goroutines.
type Ledger struct {
	mu   sync.Mutex
	file *os.File
}

// OpenLedger opens the file for appending.
func OpenLedger(path string) (*Ledger, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	return &Ledger{file: f}, nil
}

// Write appends one entry.
func (l *Ledger) Write(e *Entry) error {
	entry, err := json.Marshal(e)
	if err != nil {
		return err
	}
	line := append([]byte{'\n'}, entry...)
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.file.Write(append(line, '\n'))
	return err
}

// Close closes the file.
func (l *Ledger) Close() error { return l.file.Close() }

// ReadLedger reads the entries from offset on and returns the offset to go on from. A line that is being written is
// left for the next time. A file that does not exist is empty.
func ReadLedger(path string, offset int64) ([]Entry, int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, offset, nil
	}
	if err != nil {
		return nil, offset, err
	}
	defer f.Close()
	if _, err := f.Seek(offset, 0); err != nil {
		return nil, offset, err
	}
	var out []Entry
	lines := bufio.NewReaderSize(f, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil { // also io.EOF after half a line
			return out, offset, nil
		}
		if text := bytes.TrimSpace(line); len(text) == 0 || text[0] == '{' && text[len(text)-1] != '}' {
			offset += int64(len(line)) // between entries, or the writer was killed in the middle of one
			continue
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return out, offset, fmt.Errorf("%s at byte %d: %w", path, offset, err)
		}
		offset += int64(len(line))
		out = append(out, e)
	}
}

// Book is all ledgers of a lab. It reads what has been added since it last looked.
type Book struct {
	dir     string
	offsets map[string]int64
	entries []Entry
}

// NewBook returns the book of the ledgers in dir.
func NewBook(dir string) *Book { return &Book{dir: dir, offsets: map[string]int64{}} }

// Update reads what the ledgers gained.
func (b *Book) Update() error {
	files, err := filepath.Glob(filepath.Join(b.dir, "*.jsonl"))
	if err != nil {
		return err
	}
	for _, f := range files {
		more, offset, err := ReadLedger(f, b.offsets[f])
		if err != nil {
			return err
		}
		b.offsets[f] = offset
		b.entries = append(b.entries, more...)
	}
	return nil
}

// Entries returns those that keep accepts, by time.
func (b *Book) Entries(keep func(*Entry) bool) []Entry {
	var out []Entry
	for i := range b.entries {
		if keep(&b.entries[i]) {
			out = append(out, b.entries[i])
		}
	}
	slices.SortStableFunc(out, func(x, y Entry) int {
		switch {
		case x.Start < y.Start:
			return -1
		case x.Start > y.Start:
			return 1
		}
		return 0
	})
	return out
}
