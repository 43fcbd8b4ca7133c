// Package store is the port for what the controller must never lose: revisions of the documents, enrolled agents,
// join tokens, quarantine leases and the audit log.
//
// Implementations are sqlite (one file, one controller) and fake (in memory, for tests). Package storetest holds the
// conformance suite that every implementation runs. Flow history is not in here; it has a port of its own.
package store

import (
	"context"
	"errors"
	"time"

	"bulkhead/internal/core/model"
)

// Errors of the port. Implementations wrap them; the text of a driver is for the log and never for a client.
var (
	// ErrNotFound says that there is no such object.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the newest revision is not the one that the change was based on.
	ErrConflict = errors.New("the newest revision is another one")
	// ErrFull says that there is no room left to write.
	ErrFull = errors.New("the store is full")
	// ErrBusy says that somebody else holds the store, longer than it was sensible to wait.
	ErrBusy = errors.New("the store is locked")
	// ErrCorrupt says that what is stored cannot be read back.
	ErrCorrupt = errors.New("the store is damaged")
	// ErrNewer says that a newer Bulkhead wrote the store.
	ErrNewer = errors.New("the store was written by a newer version")
)

// Store keeps the state of the controllers. Its methods may be called from any number of goroutines.
type Store interface {
	// View runs fn on a consistent snapshot. fn must not keep its argument.
	View(ctx context.Context, fn func(Reader) error) error

	// Update runs fn in a transaction, one at a time. If fn or the commit returns an error nothing has changed; once
	// Update has returned nil the change survives the loss of power. fn must not keep its argument.
	Update(ctx context.Context, fn func(Tx) error) error

	// Close lets go of the store.
	Close() error
}

// Reader reads one consistent state. What it returns belongs to the caller.
type Reader interface {
	// Revision returns the revision of that number, or the newest one for 0. Errors: ErrNotFound.
	Revision(number uint64) (*Revision, error)
	// Revisions returns the newest revisions first, without their documents. A limit of 0 is no limit.
	Revisions(limit int) ([]Revision, error)

	// Agent returns the agent of the host. Errors: ErrNotFound.
	Agent(host string) (*Agent, error)
	// Agents returns every agent there ever was, sorted by host.
	Agents() ([]Agent, error)

	// Token returns the join token. Errors: ErrNotFound.
	Token(id string) (*Token, error)
	// Tokens returns every join token, oldest first.
	Tokens() ([]Token, error)

	// Leases returns the quarantine leases, sorted by workload; also those that have expired and not been dropped.
	Leases() ([]Lease, error)

	// Credential returns the API credential of that name. Errors: ErrNotFound.
	Credential(name string) (*Credential, error)
	// Credentials returns every API credential, sorted by name.
	Credentials() ([]Credential, error)

	// Audit calls fn for each entry, oldest first, until fn returns an error, which Audit returns.
	Audit(fn func(*AuditEntry) error) error
	// AuditHead returns how far the audit log goes; the zero value if it is empty.
	AuditHead() (AuditHead, error)
}

// Tx reads and changes the state.
type Tx interface {
	Reader

	// AppendRevision stores the revision with the number after base, which must be that of the newest revision
	// (0: there is none yet), and returns its number. Revisions are never changed. Errors: ErrConflict.
	AppendRevision(base uint64, r Revision) (uint64, error)
	// PutAgent adds the agent, or replaces the one of that host.
	PutAgent(a Agent) error
	// PutToken adds the join token, or replaces the one of that ID.
	PutToken(t Token) error
	// PutLease adds the lease, or replaces the one of that workload.
	PutLease(l Lease) error
	// DropLease removes the lease. Errors: ErrNotFound.
	DropLease(workload string) error
	// PutCredential adds the credential, or replaces the one of that name.
	PutCredential(c Credential) error
	// AppendAudit chains the entry to the audit log and returns it with its number and hash. Number and Hash of
	// the argument do not count.
	AppendAudit(e AuditEntry) (AuditEntry, error)
}

// Revision is one immutable set of all documents.
type Revision struct {
	Number    uint64
	Hash      string // of Documents
	Author    string
	Note      string
	Time      time.Time // in milliseconds
	Count     int       // of documents
	Documents string    // canonical YAML
}

// Agent is a host that has enrolled.
type Agent struct {
	Host   string
	Labels model.Labels // bound by the join token
	// Enrollment is a number of this enrolment that its certificates carry; 0: none counts. Another enrolment, or a
	// revocation, makes every certificate from before worthless.
	Enrollment int64
	EnrolledAt time.Time
	// RevokedAt is zero if the agent is not revoked. A revoked host must not enrol again; one whose revocation has
	// been lifted may, and is neither Revoked nor Enrolled until it does.
	RevokedAt time.Time
	Token     string // ID of the join token
	LastSeen  time.Time
	Expires   time.Time // of the newest certificate
	Version   string
	Kernel    string
	Dataplane string
	Limits    []string
	// Inventory is what the agent reported last, as a serialised HostInventory; nil: nothing yet.
	Inventory []byte
}

// Enrolled reports whether there is a certificate with which the agent may connect.
func (a *Agent) Enrolled() bool { return a.Enrollment != 0 }

// Revoked reports whether the host must neither connect nor enrol.
func (a *Agent) Revoked() bool { return !a.RevokedAt.IsZero() }

// Token lets hosts enrol.
type Token struct {
	ID         string
	SecretHash []byte // SHA-256
	Host       string // "" any name
	Labels     model.Labels
	Uses       int // allowed at creation
	UsesLeft   int
	Created    time.Time
	Expires    time.Time
	RevokedAt  time.Time // zero: not revoked
	CreatedBy  string
	Note       string
}

// Lease is a quarantine.
type Lease struct {
	Workload string
	Level    model.QuarantineLevel
	Reason   string
	By       string
	Since    time.Time
	Until    time.Time
	InUse    []model.InUse
}

// Credential lets somebody use the API.
type Credential struct {
	Name    string
	Hash    []byte // SHA-256 of the token
	Created time.Time
}
