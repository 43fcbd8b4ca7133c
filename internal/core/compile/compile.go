// Package compile turns documents and an inventory into what judges traffic: for every workload a policy set that
// says, by identity of the peer, protocol and port, what the verdict is and which rule decided.
//
// It works in four steps. Documents lower to one-sided rules (Rule), the intermediate form. Addresses are cut into
// the prefixes at which policy can change, and label sets and networks become identities. Rules are matched to
// identities through an index of labels. Then each distinct subject gets its tables, in which precedence is resolved
// once and for all. The result does not depend on the order of documents or workloads.
package compile

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// Options are what a compilation depends on beside documents and inventory.
type Options struct {
	// Now decides which rules have expired. Zero: none has.
	Now time.Time
	// Controllers are the addresses at which the controllers of the fleet answer, in TCP.
	Controllers []netip.AddrPort
	// MaxCells bounds the ranges of ports that one function may need. Zero: DefaultMaxCells.
	MaxCells int
}

// DefaultMaxCells is how many ranges of ports a peer's verdicts may need. A policy that needs more lists ports that
// a few ranges would cover.
const DefaultMaxCells = 4096

func (o *Options) maxCells() int {
	if o.MaxCells > 0 {
		return o.MaxCells
	}
	return DefaultMaxCells
}

// World is a compiled policy for one inventory. It is immutable: any number of goroutines may read it.
type World struct {
	docs  *model.Documents
	inv   *model.Inventory
	opts  Options
	rules [2][]Rule // by direction, in the order in which they are asked
	nets  *partition
	ids   *identities

	profiles  []*profile         // by label set
	workloads []Workload         // parallel to inv.Instances
	points    []Point            // of all workloads, in their order
	seats     []Seat             // parallel to points
	byName    nameIndex          // workload to its first point
	units     map[string][]int32 // host to its units, sorted
	owner4    addrIndex
	owner6    map[netip.Addr]int32 // to the point that has it, or to -1-i for shared[i]
	shared    []sharedAddress
	// addressNames: some workload has a name that could be read as an address.
	addressNames bool

	functions  *functions
	tables     []table
	lookup     *lookup // of sets
	judges     *judges // of functions
	sets       []policySet
	isolation  map[purposes]int32 // what a workload serves, to its isolation set
	placed     placement
	nextExpiry time.Time
}

// Workload is one workload of the world, with what judges it.
type Workload struct {
	*model.Instance
	// Points holds one entry for each address, in the order of Addresses; of a workload without addresses one
	// entry without an address.
	Points []Point
	family [2]int32 // the first point of IPv4 and of IPv6; -1 for none
	labels int32
	host   int32 // a number that the workloads of one host have; None if the host is not known
	node   int32 // likewise of a node of Kubernetes
}

// Point is a workload at one of its addresses.
type Point struct {
	Addr netip.Addr
	// Identity is what the workload is there. Seen is what other hosts take it for: the same, unless workloads of
	// other identities share the address.
	Identity, Seen model.IdentityID

	workload, exact, seen, cell, set int32
}

// Compile compiles the documents for the inventory. The inventory is sorted by name, as inventory.Build returns it.
// The error is of type Errors; it names every rule that cannot be compiled, with its position.
func Compile(docs *model.Documents, inv *model.Inventory, o Options) (*World, error) {
	w := &World{docs: docs, inv: inv, opts: o}
	w.opts.Controllers = plainAddrPorts(o.Controllers)
	var l *lowering
	w.rules, l = lower(docs, inv, o.Now)
	if len(l.errs) > 0 {
		return nil, l.errs
	}
	w.nextExpiry = nextExpiry(&w.rules)
	inOrder := rulePointers(&w.rules)
	w.nets = newPartition(docs, &inOrder)
	if err := w.place(); err != nil {
		return nil, err
	}
	resolver := newTermResolver(w.ids, w.nets)
	w.profiles = profiles(docs, l, resolver.index)
	if len(l.errs) > 0 {
		return nil, l.errs
	}
	if err := w.compileSets(resolver, inOrder); err != nil {
		return nil, err
	}
	return w, nil
}

func plainAddrPorts(list []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, len(list))
	for i, a := range list {
		out[i] = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

func nextExpiry(rules *[2][]Rule) time.Time {
	var next time.Time
	for d := range rules {
		for i := range rules[d] {
			r := &rules[d][i]
			if !r.Expires.IsZero() && !r.Expired && (next.IsZero() || r.Expires.Before(next)) {
				next = r.Expires
			}
		}
	}
	return next
}

// Documents returns the documents that the world was compiled from.
func (w *World) Documents() *model.Documents { return w.docs }

// Inventory returns the inventory that the world was compiled from.
func (w *World) Inventory() *model.Inventory { return w.inv }

// Options returns the options that the world was compiled with, controllers sorted and without repetition.
func (w *World) Options() Options { return w.opts }

// Rules returns the one-sided rules of a direction in the order in which they are asked, expired ones included.
func (w *World) Rules(d model.Direction) []Rule { return w.rules[d] }

// NextExpiry returns when the next rule expires, so that the documents must be compiled again; ok is false if none
// does.
func (w *World) NextExpiry() (at time.Time, ok bool) { return w.nextExpiry, !w.nextExpiry.IsZero() }

// Workload returns the workload of that name, or nil.
func (w *World) Workload(name string) *Workload {
	if p, ok := w.byName.find(name); ok {
		return &w.workloads[w.points[p].workload]
	}
	return nil
}

// Owners returns the workloads that have the address, sorted by name.
func (w *World) Owners(addr netip.Addr) []*Workload {
	owner, ok := w.ownerOf(addr.Unmap().WithZone(""))
	switch {
	case !ok:
		return nil
	case owner >= 0:
		return []*Workload{&w.workloads[w.points[owner].workload]}
	}
	s := &w.shared[-1-owner]
	out := make([]*Workload, len(s.points))
	for k, p := range s.points {
		out[k] = &w.workloads[w.points[p].workload]
	}
	return out
}

// Unowned returns the identity of an address that no workload owns: zero if no network of the policy holds it.
func (w *World) Unowned(addr netip.Addr) model.IdentityID {
	return w.nets.netsets[w.nets.netsetOf(w.nets.cellOf(addr))].unowned
}

// Identity returns what the number stands for. Of a shared identity it returns every member; of zero, and of a number
// that this world does not know, the identity of an address in no network.
func (w *World) Identity(id model.IdentityID) []model.Identity {
	i, ok := w.ids.index[id]
	if !ok {
		return []model.Identity{{}}
	}
	members := w.ids.all[i].members
	if members == nil {
		return []model.Identity{w.ids.all[i].Identity}
	}
	out := make([]model.Identity, len(members))
	for k, m := range members {
		out[k] = w.ids.all[m].Identity
	}
	return out
}

// Segments returns the segments that the workload is in, sorted by name.
func (w *World) Segments(of *Workload) []*model.Segment {
	in := w.profiles[of.labels].segments
	out := make([]*model.Segment, len(in))
	for i, s := range in {
		out[i] = &w.docs.Segments[s]
	}
	return out
}

// At returns the point of the workload at the address: the first one if it does not have it.
func (w *Workload) At(addr netip.Addr) *Point {
	for i := range w.Points {
		if w.Points[i].Addr == addr {
			return &w.Points[i]
		}
	}
	return &w.Points[0]
}

func compareNames(a, b string) int { return strings.Compare(a, b) }
