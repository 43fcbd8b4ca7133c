package world

import (
	"net/netip"
	"sync"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Snapshot is the world at one moment. It does not change; any number of goroutines may read it.
type Snapshot struct {
	Compiled *compile.World
	Problems map[string][]string // by host: what of its report was not taken, and why
	Time     time.Time

	docs       *Documents
	generation uint64
	disputed   map[string]bool // hosts that claim an address which another one claims too
	policies   sync.Map        // host to *HostPolicy, made when first asked for
}

// HostPolicy is what the agent of a host should enforce.
type HostPolicy struct {
	*hostpolicy.Policy
	Sum hostpolicy.Hash
}

// as returns the same snapshot for documents that have got their revision number.
func (s *Snapshot) as(docs *Documents, generation uint64) *Snapshot {
	return &Snapshot{
		Compiled: s.Compiled, Problems: s.Problems, Time: s.Time,
		docs: docs, generation: generation, disputed: s.disputed,
	}
}

// Has reports whether the snapshot was compiled from inputs of the generation or of a later one.
func (s *Snapshot) Has(generation uint64) bool { return s.generation >= generation }

// Documents returns the documents that the snapshot was compiled from.
func (s *Snapshot) Documents() *Documents { return s.docs }

// Revision returns the number of the documents' revision.
func (s *Snapshot) Revision() uint64 { return s.docs.Revision }

// HostPolicy returns what the agent of the host should enforce, or nil if there is no such host.
func (s *Snapshot) HostPolicy(host string) *HostPolicy {
	if p, ok := s.policies.Load(host); ok {
		return p.(*HostPolicy)
	}
	compiled, ok := s.Compiled.HostPolicy(host)
	if !ok {
		return nil
	}
	compiled.Revision = s.docs.Revision
	p, _ := s.policies.LoadOrStore(host, &HostPolicy{Policy: compiled, Sum: compiled.Hash()})
	return p.(*HostPolicy)
}

// Instance returns the workload of that name, or nil.
func (s *Snapshot) Instance(name string) *model.Instance {
	if w := s.Compiled.Workload(name); w != nil {
		return w.Instance
	}
	return nil
}

// Resolve returns the workload that the address and, for a destination, its port stand for at this moment; "" if
// no workload has the address. Of several at one address it is the unit that is known to listen on the port, or else
// the host.
func (s *Snapshot) Resolve(addr netip.Addr, destination bool, proto model.Proto, port uint16) string {
	owners := s.Compiled.Owners(addr)
	if len(owners) == 0 {
		return ""
	}
	if len(owners) == 1 {
		return owners[0].Name
	}
	fallback := owners[0].Name
	for _, o := range owners {
		if !o.IsUnit() {
			fallback = o.Name
		}
		if destination && listens(o.Instance, addr, proto, port) {
			return o.Name
		}
	}
	return fallback
}

func listens(i *model.Instance, addr netip.Addr, proto model.Proto, port uint16) bool {
	for _, l := range i.Listening {
		if l.Proto == proto && l.Port == port && (!l.Addr.IsValid() || l.Addr.IsUnspecified() || l.Addr == addr) {
			return true
		}
	}
	return false
}
