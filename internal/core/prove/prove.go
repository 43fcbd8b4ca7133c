// Package prove answers the questions that documents ask about themselves: guardrails, which are properties of the
// whole policy and are proved for everything that could exist; and expectations, which are single cases.
//
// A guardrail is proved twice. Over everything that could exist it is a question of emptiness: label sets, cells of
// addresses, processes and ports are finitely many as far as policy can tell them apart, each rule is a few boxes in their
// product, and a search (hypothesis) looks for a point that some rule or default lets pass and no denial covers. Over
// the inventory, pairs of classes are looked at (proof): that finds the counterexamples that exist, and those that no label
// tells of, such as workloads that share an address or that nothing enforces on.
package prove

import (
	"fmt"
	"math/bits"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
	"bulkhead/internal/core/verdict"
)

// Guardrail is what the proof of one guardrail came to.
type Guardrail struct {
	Name string `json:"name"`
	At   string `json:"at,omitempty"` // place of the document
	// Holds says that policy allows none of what must never be, whatever workloads there are or will be.
	Holds bool `json:"holds"`
	// Enforced says that all of it is dropped. A guardrail that holds and is not enforced yet is kept by a segment
	// in mode observe somewhere: see NotEnforced.
	Enforced       bool     `json:"enforced"`
	Counterexample *Witness `json:"counterexample,omitempty"` // set unless Holds or Undecided
	NotEnforced    *Witness `json:"not_enforced,omitempty"`   // set if Holds and not Enforced, unless that is undecided
	// TodayOnly says that the answer is about the workloads of today only: so it is for guardrails over many hops that cannot be
	// decided for every workload that could exist. TodayWhy says why not.
	TodayOnly bool   `json:"today_only,omitempty"`
	TodayWhy  string `json:"today_why,omitempty"`
	// Undecided says why the proof was given up. What is undecided does not hold.
	Undecided string `json:"undecided,omitempty"`
}

// Why says in one sentence why the guardrail does not hold, or is not enforced; "" if there is nothing to say.
func (g *Guardrail) Why() string {
	switch {
	case g.Undecided != "":
		return "undecided: " + g.Undecided
	case g.Counterexample != nil:
		return g.Counterexample.String()
	case g.NotEnforced != nil:
		return g.NotEnforced.String()
	}
	return ""
}

// Guardrails proves every guardrail of the world's documents, in their order. A guardrail is violated by a pair of
// different ends, at least one of them a workload, for which the verdict is allow; what is essential does not count.
//
// The proof is over every workload that could exist: an agent enforces on it, it has any labels, and an address of its own
// anywhere or none; guardrails speak about it by its labels. It is also over the workloads of the inventory as they are, and over all addresses that no workload
// owns. A counterexample that exists is given before one that could. So it is for guardrails over many hops, as long as label
// sets fall into few enough classes; else those are decided over the workloads of today.
func Guardrails(w *compile.World) []Guardrail {
	docs := w.Documents()
	if len(docs.Guardrails) == 0 {
		return nil
	}
	s := newSpace(w)
	ideas := make([]idea, len(docs.Guardrails))
	p := newProof(w)
	p.space = s
	for i := range docs.Guardrails {
		if docs.Guardrails[i].Via == model.ViaAny {
			p.pending[i/64] &^= 1 << (i % 64) // has ways of its own
			continue
		}
		ideas[i] = s.think(&docs.Guardrails[i])
		if ideas[i].allows == nothing && ideas[i].passes == nothing && !byAddress(&docs.Guardrails[i]) {
			p.proved[i/64] |= 1 << (i % 64)
		}
	}
	p.run()
	out := make([]Guardrail, len(docs.Guardrails))
	for i := range docs.Guardrails {
		if docs.Guardrails[i].Via == model.ViaAny {
			out[i] = p.overHops(i)
		} else {
			out[i] = p.result(i, &ideas[i])
		}
	}
	return out
}

// byAddress reports whether the guardrail names an end by address: then it speaks about workloads of today too that the
// search over everything that could exist leaves out.
func byAddress(g *model.Guardrail) bool {
	return slices.ContainsFunc(slices.Concat(g.From, g.To), func(p model.Peer) bool {
		return p.Kind != model.PeerWorkloads && p.Kind != model.PeerAny
	})
}

// idea is what the search over everything that could exist found about a guardrail.
type idea struct {
	allows, passes answer // passes counts if allows is nothing
	scene          *scene // what it found
}

func (s *space) think(g *model.Guardrail) idea {
	var out idea
	if out.allows, out.scene = s.could(g, allowed); out.allows == nothing {
		out.passes, out.scene = s.could(g, passing)
	}
	return out
}

// proof is the work of one Guardrails. Guardrails are numbered as in the documents; sets of them are bit masks.
type proof struct {
	world    *compile.World
	u        *reach.Universe
	judge    *verdict.Evaluator
	services map[model.PortRange]string
	ports    []reach.FuncID // by guardrail: the function that allows its ports
	words    int
	means    [2]meaning // as sources, and as destinations
	says     []says     // by function
	known    []says     // by function over both ends, and guardrail

	violated []*finding
	unkept   []*finding
	pending  []uint64 // guardrails that are not violated so far
	lax      []uint64 // guardrails that are enforced as far as has been seen
	over     [2]*ways // by aim: for guardrails over many hops
	proved   []uint64 // guardrails that no workload which is what its labels say can break
	choosy   []bool   // by guardrail: it constrains processes

	space  *space
	all    *proof    // over everything that could exist, for many hops
	allWhy string    // why there is none
	could  *imagined // of the proof over everything: its world
}

// says tells what a function may come to, somewhere.
type says uint8

const (
	mayAllow says = 1 << iota // it allows
	mayWarn                   // it would deny
	mayPass                   // either
	unknown
)

// finding is a pair of the inventory that shows something about a guardrail.
type finding struct {
	from, to *reach.Actor
	ports    reach.Ports
	joint    reach.FuncID // what is said over both ends
	level    reach.Level  // what it shows
	who      reach.Who    // the processes that the guardrail is about
}

func newProof(w *compile.World) *proof {
	docs := w.Documents()
	n := len(docs.Guardrails)
	p := &proof{
		world: w, u: reach.New(w), judge: verdict.New(w), services: map[model.PortRange]string{},
		ports: make([]reach.FuncID, n), words: (n + 63) / 64,
		violated: make([]*finding, n), unkept: make([]*finding, n),
	}
	byName := map[string][]model.PortRange{}
	for i := range docs.Services {
		s := &docs.Services[i]
		byName[s.Name] = s.Ports
		if len(s.Ports) == 1 && p.services[s.Ports[0]] == "" {
			p.services[s.Ports[0]] = s.Name
		}
	}
	p.pending, p.lax, p.proved = make([]uint64, p.words), make([]uint64, p.words), make([]uint64, p.words)
	for i := range docs.Guardrails {
		var on []model.PortRange
		for _, ref := range docs.Guardrails[i].On {
			if ref.Service != "" {
				on = append(on, byName[ref.Service]...)
			} else {
				on = append(on, ref.Range)
			}
		}
		p.ports[i] = p.u.Within(on)
		p.choosy = append(p.choosy, slices.ContainsFunc(slices.Concat(docs.Guardrails[i].From, docs.Guardrails[i].To), func(peer model.Peer) bool {
			return peer.Process != nil
		}))
		p.pending[i/64] |= 1 << (i % 64)
		p.lax[i/64] |= 1 << (i % 64)
	}
	p.match()
	return p
}

// match finds, for each end, the guardrails that speak about each label set, each set of networks and each class.
func (p *proof) match() {
	docs := p.world.Documents()
	for end := range p.means {
		m := &p.means[end]
		m.labels = make([]uint64, len(p.u.LabelSets)*p.words)
		m.networks = make([]uint64, len(p.u.NetworkSets)*p.words)
		m.everybody = make([]uint64, p.words)
		for g := range docs.Guardrails {
			peers := docs.Guardrails[g].From
			if end == 1 {
				peers = docs.Guardrails[g].To
			}
			for i := range peers {
				p.matchPeer(m, &peers[i], g)
			}
		}
		m.classes = make([]uint64, len(p.u.Classes)*p.words)
		mask := make([]uint64, p.words)
		for i := range p.u.Actors {
			p.of(end, &p.u.Actors[i], mask)
			class := m.classes[int(p.u.ClassOf(int32(i)))*p.words:]
			for w := range mask {
				class[w] |= mask[w]
			}
		}
	}
}

// meaning says which guardrails speak about what, as bit masks of words words each.
type meaning struct {
	labels    []uint64 // by label set
	networks  []uint64 // by set of networks
	everybody []uint64
	classes   []uint64 // by class: about some member
}

func (p *proof) matchPeer(m *meaning, peer *model.Peer, g int) {
	word, bit := g/64, uint64(1)<<(g%64)
	inNetwork := func(name string) {
		for n, networks := range p.u.NetworkSets {
			if slices.Contains(networks, name) {
				m.networks[n*p.words+word] |= bit
			}
		}
	}
	switch peer.Kind {
	case model.PeerAny:
		m.everybody[word] |= bit
	case model.PeerWorkloads:
		for n, labels := range p.u.LabelSets {
			if peer.Workloads.Matches(labels) {
				m.labels[n*p.words+word] |= bit
			}
		}
	case model.PeerNetwork:
		inNetwork(peer.Network)
	case model.PeerCIDR:
		inNetwork(reach.CIDRName(peer.CIDR))
	case model.PeerDomain:
		inNetwork(model.DomainNetwork(peer.Domain))
	}
}

// of fills mask with the guardrails that speak about the actor.
func (p *proof) of(end int, a *reach.Actor, mask []uint64) {
	m := &p.means[end]
	if end == 0 && a.Domain != "" { // found by a name: no source
		clear(mask)
		return
	}
	for w := range mask {
		mask[w] = m.everybody[w]
		if a.LabelSet >= 0 {
			mask[w] |= m.labels[int(a.LabelSet)*p.words+w]
		}
		if a.Addr.IsValid() && !p.mayBe(a) {
			mask[w] |= m.networks[int(a.NetworkSet)*p.words+w]
		}
	}
}

// mayBe reports whether the actor is a workload that could be: guardrails speak about it by its labels.
func (p *proof) mayBe(a *reach.Actor) bool { return p.could != nil && p.could.could[a.Workload] }

// members returns the members of a class that a guardrail speaks about.
func (p *proof) members(end, g int, class int32) []int32 {
	mask := make([]uint64, p.words)
	var out []int32
	for _, i := range p.u.Classes[class].Members {
		if p.of(end, &p.u.Actors[i], mask); mask[g/64]&(1<<(g%64)) != 0 {
			out = append(out, i)
		}
	}
	return out
}

// run looks at every pair of classes that some guardrail speaks about, as long as there is something left to learn.
func (p *proof) run() {
	sources, dests := p.means[0].classes, p.means[1].classes
	var candidates []int32 // destinations of some guardrail that is still to be learnt about
	for c := range p.u.Classes {
		if overlap(dests[c*p.words:(c+1)*p.words], p.pending) {
			candidates = append(candidates, int32(c))
		}
	}
	mask := make([]uint64, p.words)
	for from := range p.u.Classes {
		left := false
		plain := p.u.Plain(int32(from))
		for w := range mask {
			mask[w] = sources[from*p.words+w] & p.pending[w]
			if plain {
				mask[w] &^= p.proved[w]
			}
			left = left || mask[w] != 0
		}
		if !left {
			continue
		}
		src := p.u.From(int32(from))
		for _, to := range candidates {
			if !overlap(mask, dests[int(to)*p.words:(int(to)+1)*p.words]) || !p.worthIt(src, to, mask) {
				continue
			}
			src.Each(to, func(pair *reach.Pair, where reach.Where) {
				p.judgePair(int32(from), to, pair, where, mask)
			})
		}
	}
}

func overlap(a, b []uint64) bool {
	for i := range a {
		if a[i]&b[i] != 0 {
			return true
		}
	}
	return false
}

// worthIt reports whether the pair may tell something new about a guardrail that speaks about it.
func (p *proof) worthIt(src *reach.Source, to int32, mask []uint64) bool {
	if src.HostCounts(to) {
		return true
	}
	egress, ingress := src.At(to, 0)
	out, in := p.saysAbout(egress), p.saysAbout(ingress)
	if out&in&mayAllow != 0 {
		return true
	}
	if out&in&mayPass == 0 || (out|in)&mayWarn == 0 {
		return false
	}
	for w := range mask {
		if mask[w]&p.means[1].classes[int(to)*p.words+w]&p.lax[w] != 0 {
			return true
		}
	}
	return false
}

// saysAbout is saysOf, remembered.
func (p *proof) saysAbout(id reach.FuncID) says {
	for len(p.says) <= int(id) {
		p.says = append(p.says, p.saysOf(reach.FuncID(len(p.says))))
	}
	return p.says[id]
}

func (p *proof) saysOf(id reach.FuncID) says {
	var s says
	if p.u.Has(id, reach.Allow) || p.u.Has(id, reach.Essential) { // of an essential, the other end decides
		s |= mayAllow | mayPass
	}
	if p.u.Has(id, reach.WouldDeny) {
		s |= mayWarn | mayPass
	}
	return s
}

// judgePair asks the guardrails of the mask about a pair.
func (p *proof) judgePair(from, to int32, pair *reach.Pair, where reach.Where, mask []uint64) {
	joint := p.u.Joint(pair.Egress[0], pair.Ingress[0])
	for w := range mask {
		for left := mask[w] & p.means[1].classes[int(to)*p.words+w] & p.pending[w]; left != 0; left &= left - 1 {
			g := w*64 + bits.TrailingZeros64(left)
			bit := left & -left
			found := p.within(joint, g)
			if found&mayAllow != 0 {
				if p.violated[g] = p.find(g, from, to, joint, where, reach.Allow); p.violated[g] != nil {
					p.pending[w] &^= bit
					continue
				}
			}
			if found&mayWarn != 0 && p.lax[w]&bit != 0 {
				if p.unkept[g] = p.find(g, from, to, joint, where, reach.WouldDeny); p.unkept[g] != nil {
					p.lax[w] &^= bit
				}
			}
		}
	}
}

// find returns members of two classes, with processes, that show the level about a guardrail; nil if there are none.
func (p *proof) find(g int, from, to int32, joint reach.FuncID, where reach.Where, level reach.Level) *finding {
	for _, a := range p.parties(0, g, from) {
		for _, b := range p.parties(1, g, to) {
			ends := p.u.Example(a.actors, b.actors, where)
			if ends == nil {
				continue
			}
			f := &finding{from: ends[0], to: ends[1], joint: joint, level: level, who: p.u.And(a.who, b.who)}
			if f.ports = p.u.Where(joint, p.ports[g], level, f.who); !f.ports.Empty() {
				return f
			}
		}
	}
	return nil
}

// within says what a function over both ends does on the ports of a guardrail, for any processes.
func (p *proof) within(joint reach.FuncID, g int) says {
	n := len(p.ports)
	for len(p.known) < (int(joint)+1)*n {
		p.known = append(p.known, unknown)
	}
	at := &p.known[int(joint)*n+g]
	if *at == unknown {
		*at = 0
		if ports := p.u.Where(joint, p.ports[g], reach.Allow, reach.Everybody); !ports.Empty() {
			*at |= mayAllow | mayPass
		}
		if ports := p.u.Where(joint, p.ports[g], reach.WouldDeny, reach.Everybody); !ports.Empty() {
			*at |= mayWarn | mayPass
		}
	}
	return *at
}

func (p *proof) result(g int, thought *idea) Guardrail {
	doc := &p.world.Documents().Guardrails[g]
	out := Guardrail{Name: doc.Name, At: doc.Pos.String()}
	switch {
	case p.violated[g] != nil:
		out.Counterexample = p.witness(p.violated[g])
		return out
	case thought.allows == found && thought.scene != nil:
		out.Counterexample = p.imagine(thought.scene)
		return out
	case thought.allows != nothing:
		out.Undecided = undecided(thought.allows)
		return out
	}
	out.Holds = true
	switch {
	case p.unkept[g] != nil:
		out.NotEnforced = p.witness(p.unkept[g])
	case thought.passes == found && thought.scene != nil:
		out.NotEnforced = p.imagine(thought.scene)
	case thought.passes != nothing:
		out.Undecided = "whether it is enforced: " + undecided(thought.passes)
	default:
		out.Enforced = true
	}
	return out
}

func undecided(a answer) string {
	if a == exhausted {
		return fmt.Sprintf("the search was given up after %d steps: say it in several guardrails about less", maxSteps)
	}
	return "the search contradicts the rules: this is a fault of Bulkhead, please report it"
}
