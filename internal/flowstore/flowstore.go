// Package flowstore is the port for flow history: what each end of each communication saw, summed over windows.
//
// Agents send a record for each edge and window; raw connections are never kept. A store remembers recent windows one
// by one and older ones as sums of an hour. Join makes edges of what both ends recorded. Implementations are sqlite
// and fake (in memory, for tests); package flowstoretest holds the conformance suite that both run.
package flowstore

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"bulkhead/internal/core/model"
)

// Errors of the port. Implementations wrap them; the text of a driver is for the log and never for a client.
var (
	// ErrFull says that there is no room left to write.
	ErrFull = errors.New("the flow store is full")
	// ErrBusy says that somebody else holds the store, longer than it was sensible to wait.
	ErrBusy = errors.New("the flow store is locked")
	// ErrCorrupt says that what is stored cannot be read back.
	ErrCorrupt = errors.New("the flow store is damaged")
	// ErrNewer says that a newer Bulkhead wrote the store.
	ErrNewer = errors.New("the flow store was written by a newer version")
)

// Store keeps flow history. Its methods may be called from any number of goroutines.
type Store interface {
	// Append stores the batches that it has not seen, all of them or none. A batch whose sequence is not above the
	// last one of its host and instance has been seen. Once Append has returned nil the records survive the death
	// of the process.
	Append(ctx context.Context, batches []Batch) (Appended, error)

	// Scan calls fn for each record that overlaps [since, until), in no particular order; a zero until is the end
	// of time. Records from before the recent windows come summed up: then First and Last span the sum. fn must
	// not keep its argument. Scan returns the error of fn as it is.
	Scan(ctx context.Context, since, until time.Time, fn func(*Record) error) error

	// Maintain sums up what has left the recent windows and forgets what is older than the store should keep. To
	// be called every few seconds.
	Maintain(ctx context.Context, now time.Time) error

	// Stats says how much there is.
	Stats(ctx context.Context) (Stats, error)

	// Close lets go of the store.
	Close() error
}

// Batch is what one agent sent in one message.
type Batch struct {
	Host     string
	Instance string // names the numbering
	Sequence uint64 // from 1
	Records  []Record
}

// Appended says what Append did.
type Appended struct {
	Records  int   // stored
	Repeated []int // indexes of the batches that had been seen
}

// Stats says how much a store holds.
type Stats struct {
	Recent int64     // records of recent windows
	Hourly int64     // sums of an hour
	Oldest time.Time // of what Scan can return; zero if there is nothing
	Lost   uint64    // records that were left out of the sums because an hour had too many edges
}

// Key is what tells records apart that are not summed.
type Key struct {
	Host      string          // whose agent saw it
	Direction model.Direction // Egress: the subject opened the connections
	Workload  string          // the subject, at this end
	Peer      string          // the workload at the other end by its name at the time; "": no workload had the address
	Exact     bool            // the kernel knew the peer; else it is the owner of the address
	Source    netip.Addr
	Dest      netip.Addr
	Proto     model.Proto
	Port      uint16 // destination port; of ICMP type<<8|code
	Process   string // name of the local process
	Path      string // of its executable
	UID       uint32
	Verdict   model.Verdict
	Rule      model.RuleID
}

// Sums are what is summed up. Times are in whole milliseconds.
type Sums struct {
	First           time.Time
	Last            time.Time
	Connections     uint64 // opened, or attempts that were denied
	Existing        uint64 // of Connections, those open before the agent came
	BytesToServer   uint64
	BytesToClient   uint64
	PacketsToServer uint64
	PacketsToClient uint64
}

// Record is what one end saw of one edge.
type Record struct {
	Key
	Sums
}

// Add adds more of the same.
func (s *Sums) Add(o *Sums) {
	if s.First.IsZero() || !o.First.IsZero() && o.First.Before(s.First) {
		s.First = o.First
	}
	if o.Last.After(s.Last) {
		s.Last = o.Last
	}
	s.Connections += o.Connections
	s.Existing += o.Existing
	s.BytesToServer += o.BytesToServer
	s.BytesToClient += o.BytesToClient
	s.PacketsToServer += o.PacketsToServer
	s.PacketsToClient += o.PacketsToClient
}

// Overlaps reports whether the sums touch [since, until); a zero until is the end of time.
func (s *Sums) Overlaps(since, until time.Time) bool {
	return !s.Last.Before(since) && (until.IsZero() || s.First.Before(until))
}
