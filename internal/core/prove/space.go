package prove

import (
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// kind says what stands at an end of a flow that could be.
type kind uint8

const (
	managed kind = iota // a workload that an agent enforces on, with any labels, at any address or at none
	address             // an address that no workload owns
	device              // a workload of today that nothing enforces on: those are taken as they are
	kinds
)

// The variables of an end that come after those of its label keys.
const (
	placeVariable = iota // a cell of the address space, or no address
	deviceVariable
	unitVariable
	pathVariable
	userVariable
	fixedVariables
)

// space is everything that could exist, as far as the policy of one world can tell it apart: for each end the value of each
// label key, the cell of its address and the process there; and the protocol and port.
type space struct {
	world *compile.World
	docs  *model.Documents
	rules [2][]rule // by direction, without the expired ones

	keys     []keyDomain // labels, then the three fields of a process
	labels   int         // how many of keys are labels
	keyIndex map[string]int32
	level    int32 // the key of quarantine
	cells    []reach.Cell
	devices  []*model.Identity
	family   []addressFamily // of devices
	cuts     portCuts
	portSets []conjunction // by set of cuts: that the port is in it
	sizes    []int32
	spare    [][]int32

	matches      []*compile.Match
	matchIndex   map[string]int32
	byLabels     matchIndex
	starts       map[startState][]int8
	conjunctions [2][kinds][]knownMatch // by end, kind and match, as far as asked for
	networkBits  map[string][]uint64    // network to its cells
	deviceBits   map[string][]uint64    // condition to the devices that meet it
	segments     []int32                // by segment: the match of its members
	onPorts      []int32                // by segment: the set of cuts that is its services
}

func newSpace(w *compile.World) *space {
	s := &space{
		world: w, docs: w.Documents(), keyIndex: map[string]int32{}, matchIndex: map[string]int32{},
		networkBits: map[string][]uint64{}, deviceBits: map[string][]uint64{},
		cells: reach.Cells(w), starts: map[startState][]int8{},
	}
	s.findDevices()
	s.readRules([2][]compile.Rule{w.Rules(model.Ingress), w.Rules(model.Egress)})
	s.cuts.build(w, s.docs, s.rules)
	if inv := s.namePorts(); inv != nil {
		s.rules = [2][]rule{}
		s.readRules(compile.Lower(s.docs, inv, w.Options().Now))
		s.cuts = portCuts{}
		s.cuts.build(w, s.docs, s.rules)
	}
	s.findKeys()
	for d := range s.rules {
		for i := range s.rules[d] {
			s.rules[d][i].ports = s.cuts.number(s.rules[d][i].Ports)
		}
	}
	for i := range s.docs.Segments {
		seg := &s.docs.Segments[i]
		s.segments = append(s.segments, s.number(&compile.Match{Terms: []compile.Term{{Selector: &seg.Selector}}}))
		s.onPorts = append(s.onPorts, s.cuts.number(portsOf(s.docs, seg.Services)))
	}
	s.indexMatches()
	s.findTwins()
	s.size()
	for _, set := range s.cuts.sets {
		s.portSets = append(s.portSets, conjunction{inBits(s.port(), set)})
	}
	return s
}

// variable returns the number of a variable of an end: a key, or labels plus one of the fixed ones.
func (s *space) variable(end int, n int) int32 { return int32(end*(s.labels+fixedVariables) + n) }

func (s *space) place(end int) int32  { return s.variable(end, s.labels+placeVariable) }
func (s *space) device(end int) int32 { return s.variable(end, s.labels+deviceVariable) }

// process returns the variable of a field of the process at the end.
func (s *space) process(end, field int) int32 { return s.variable(end, s.labels+unitVariable+field) }

func (s *space) port() int32 { return s.variable(2, 0) }

// noAddress is the value of a place variable.
func (s *space) noAddress() int32 { return int32(len(s.cells)) }

func (s *space) size() {
	n := int(s.port()) + 1
	s.sizes, s.spare = make([]int32, n), make([][]int32, n)
	for end := range 2 {
		for i := range s.labels {
			k := &s.keys[i]
			v := s.variable(end, i)
			s.sizes[v] = k.size
			s.spare[v] = []int32{k.absent}
			if k.other != unset {
				s.spare[v] = append(s.spare[v], k.other)
			}
		}
		s.sizes[s.place(end)] = int32(len(s.cells)) + 1
		s.sizes[s.device(end)] = max(1, int32(len(s.devices)))
		for f := range 3 {
			k := &s.keys[s.labels+f]
			s.sizes[s.process(end, f)] = k.size
			s.spare[s.process(end, f)] = []int32{k.other}
		}
	}
	s.sizes[s.port()] = int32(len(s.cuts.pieces))
}
