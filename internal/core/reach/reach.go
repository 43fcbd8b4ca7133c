// Package reach says who can talk to whom, exactly, in one world or in several at once: over every workload there is
// and every address that none owns.
//
// An Actor is one end that policy can tell from others: a workload at one of its addresses, or a set of addresses that
// are in the same networks. Actors that behave alike in all worlds, towards everybody and everybody towards them, are
// one Class; what is true of one member is true of all. The verdict between two classes is a function of protocol and
// port; functions are numbered across worlds, so two worlds agree about a pair if the numbers agree, and proofs and
// differences look closer only where they do not.
//
// Verdicts are read from the compiled policy sets, as package verdict reads them; the tests hold both to one answer.
package reach

import (
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// Actor is one end of a flow.
type Actor struct {
	Workload string // "" for addresses that no workload owns
	// Addr is the workload's address, invalid if it has none; or one of the addresses.
	Addr netip.Addr
	// Networks are the sets that hold the address: names of networks, and literal CIDRs of rules and guardrails.
	// NetworkSet is their number in Universe.NetworkSets.
	Networks   []string
	NetworkSet int32
	// Labels are the workload's in the last world that has it. LabelSet is their number in Universe.LabelSets, -1 for
	// addresses.
	Labels   model.Labels
	LabelSet int32
	// Domain is the pattern of the host names by which the source found the addresses, Name one of them; "" where no name is
	// known. An actor with one is a destination only.
	Domain, Name string

	views []view
	class int32
	alone bool // the address is this actor's and nobody else's, in every world
}

// Owned reports whether some workload has the address.
func (a *Actor) Owned() bool { return a.Workload != "" }

// Managed reports whether an agent enforces on the workload, in the last world that has it.
func (a *Actor) Managed() bool {
	for i := len(a.views) - 1; i >= 0; i-- {
		if wl := a.views[i].workload; wl != nil && wl.Name == a.Workload {
			return wl.Managed
		}
	}
	return false
}

// End returns the actor as people name it: the workload, or one of the addresses.
func (a *Actor) End() model.End {
	if a.Owned() {
		return model.End{Workload: a.Workload}
	}
	return model.End{Addr: a.Addr}
}

// Is says what the actor is: the labels of a workload, or the networks that addresses are in.
func (a *Actor) Is() string {
	switch {
	case a.Owned() && len(a.Labels) == 0:
		return "no labels"
	case a.Owned():
		return a.Labels.String()
	case a.Domain != "":
		return "an address found by the name " + a.Domain
	case len(a.Networks) == 0:
		return "an address in no network"
	}
	return "an address in " + strings.Join(a.Networks, " and ")
}

// Exactly returns the actor as the end of a flow that means this address of the workload and no other, where the
// address is its alone in every world; else the workload.
func (a *Actor) Exactly() model.End {
	if a.alone {
		return model.End{Addr: a.Addr}
	}
	return a.End()
}

// view is an actor in one world.
type view struct {
	workload       *compile.Workload // nil: nobody owns the address there
	at             *compile.Point
	identity, seen model.IdentityID
}

func (v *view) managed() bool { return v.workload != nil && v.workload.Managed }

// family keeps apart what cannot meet.
type family uint8

const (
	noAddress family = iota // meets both
	ipv4
	ipv6
)

func familyOf(a netip.Addr) family {
	switch {
	case !a.IsValid():
		return noAddress
	case a.Is4():
		return ipv4
	}
	return ipv6
}

// Class is a set of actors that no world tells apart. It has at least one member.
type Class struct {
	Members []int32 // indexes into Universe.Actors, sorted

	family family
	owned  bool
	named  bool                   // found by a host name: destinations only
	first  string                 // name of one workload
	many   bool                   // more than one workload, or addresses
	hosts  map[string]hostMembers // in the last world; "" for no host
	worlds []place
	// local says that ingress on its own host may take it for something else than elsewhere, controls that it has a
	// controller's address.
	local, controls bool
}

// hostMembers are the workloads of a class that are on one host.
type hostMembers struct {
	first string
	many  bool // more than one
}

// place is what a class is in one world.
type place struct {
	managed    bool
	unit       bool
	egress     rowID // rows by which it judges; of a managed class
	ingress    rowID
	asDest     colID // what others' egress takes it for
	asLocal    colID // what ingress on its own host takes it for
	asRemote   colID // what ingress elsewhere takes it for
	controller []uint16
}

// seat is the part of a class's place that every question about it as a destination needs. Seats are small and side by
// side: questions run over all of them.
type seat struct {
	asDest  colID
	ingress rowID // unjudged if nobody enforces there
}

const unjudged rowID = -1

// Universe is everything that may talk in its worlds. It remembers what it was asked, so it belongs to one goroutine.
type Universe struct {
	Actors  []Actor
	Classes []Class
	// LabelSets and NetworkSets are the distinct labels and networks of actors.
	LabelSets   []model.Labels
	NetworkSets [][]string

	worlds    []*compile.World
	functions *functions
	open      FuncID // everything is allowed: the end that nobody enforces
	rows      [2][][]row
	columns   [2][][]column
	rests     [][]FuncID // by world: the defaults of the rows of ingress
	seats     [][]seat   // by world and class
	controls  bool       // some class has a controller's address
	source    Source     // space for From
	address   *addressSpace
	names     [2][bothFamilies + 1]*describer // by role
	byName    bool                            // some actor is found by a name
	dual      map[dualKey]families            // the families of all addresses of an end
	counted   *ends
	joint     map[jointKey]FuncID
	masked    map[maskKey]FuncID
}

type maskKey struct {
	fn    FuncID
	world int
	class int32
}

// New makes the universe of the worlds, at least one. What it says about networks and CIDRs holds for those that
// documents of the worlds name anywhere, guardrails included.
func New(worlds ...*compile.World) *Universe {
	u := &Universe{
		worlds: worlds, functions: newFunctions(),
		joint: map[jointKey]FuncID{}, masked: map[maskKey]FuncID{},
	}
	u.open = u.functions.intern(function{rest: choice(Allow)})
	u.address = newAddressSpace(worlds)
	u.NetworkSets = slices.Clone(u.address.kinds)
	u.addWorkloads()
	u.addAddresses()
	u.addNamed()
	for d := range u.rows {
		u.rows[d] = make([][]row, len(worlds))
		u.columns[d] = make([][]column, len(worlds))
	}
	tables := make([]*tables, len(worlds))
	for i, w := range worlds {
		tables[i] = u.tablesOf(i, w)
	}
	u.rests = make([][]FuncID, len(worlds))
	for w := range worlds {
		for _, r := range u.rows[model.Ingress][w] {
			u.rests[w] = append(u.rests[w], r.rest)
		}
	}
	u.classify(tables)
	return u
}

// ClassOf returns the class of an actor, as indexes into Classes and Actors.
func (u *Universe) ClassOf(actor int32) int32 { return u.Actors[actor].class }

// Talks reports whether members of the class may be sources: an address is found by a name only as a destination.
func (u *Universe) Talks(class int32) bool { return !u.Classes[class].named }

// Plain reports whether the members of the class are judged as what they are and nothing else: an agent enforces on them, and
// no other host takes them for another workload that has their address.
func (u *Universe) Plain(class int32) bool {
	c := &u.Classes[class]
	for i := range c.worlds {
		if !c.worlds[i].managed {
			return false
		}
	}
	return !c.local
}
