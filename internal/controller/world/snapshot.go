package world

import (
	"iter"
	"net/netip"
	"sync"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// Snapshot is the world at one moment. It does not change; any number of goroutines may read it.
type Snapshot struct {
	Problems map[string][]string // by host: what of its report was not taken, and why
	Time     time.Time

	docs        *Documents
	generation  uint64
	controllers []netip.AddrPort
	roster      *roster
	nextExpiry  time.Time       // zero: no rule expires
	disputed    map[string]bool // hosts that claim an address which another one claims too

	judging sync.Mutex
	judge   *compile.World // made when first asked for
}

// Has reports whether the snapshot was made from inputs of the generation or of a later one.
func (s *Snapshot) Has(generation uint64) bool { return s.generation >= generation }

// Documents returns the documents of the snapshot.
func (s *Snapshot) Documents() *Documents { return s.docs }

// Revision returns the number of the documents' revision.
func (s *Snapshot) Revision() uint64 { return s.docs.Revision }

// Compiled returns the snapshot as a world that judges. It is compiled from scratch when somebody asks for the first time,
// which takes seconds in a large world: agents are sent policy without it. An error is rare: to judge, workloads without
// an agent are compiled too, and their rules may make too many ranges of ports.
func (s *Snapshot) Compiled() (*compile.World, error) {
	s.judging.Lock()
	defer s.judging.Unlock()
	if s.judge != nil {
		return s.judge, nil
	}
	inv := &model.Inventory{Instances: make([]model.Instance, 0, s.Len())}
	for inst := range s.Instances() {
		inv.Instances = append(inv.Instances, *inst)
	}
	w, err := compile.Compile(s.docs.Parsed, inv, compile.Options{Now: s.Time, Controllers: s.controllers})
	if err != nil {
		return nil, err
	}
	s.judge = w
	return w, nil
}

// expired reports whether a rule has expired since the snapshot was made.
func (s *Snapshot) expired(now time.Time) bool {
	return !s.nextExpiry.IsZero() && !now.Before(s.nextExpiry)
}

// Len returns how many workloads there are.
func (s *Snapshot) Len() int { return s.roster.n }

// Instances yields every workload, sorted by name.
func (s *Snapshot) Instances() iter.Seq[*model.Instance] { return s.roster.all() }

// Instance returns the workload of that name, or nil.
func (s *Snapshot) Instance(name string) *model.Instance { return s.roster.find(name) }

// Owners returns the workloads that have the address, sorted by name.
func (s *Snapshot) Owners(addr netip.Addr) []*model.Instance { return s.roster.ownersOf(addr) }

// Resolve returns the workload that the address and, for a destination, its port stand for at this moment; "" if
// no workload has the address. Of several at one address it is the unit that is known to listen on the port, or else
// the host.
func (s *Snapshot) Resolve(addr netip.Addr, destination bool, proto model.Proto, port uint16) string {
	owners := s.Owners(addr)
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
		if destination && listens(o, addr, proto, port) {
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
