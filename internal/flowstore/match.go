package flowstore

import (
	"math"
	"math/bits"
	"time"
)

// pairing is a share of a record at each end.
type pairing struct{ out, in Record }

// matcher shares the records of both ends out to each other.
type matcher struct {
	pairs []pairing
	index map[[2]*Record]int
}

// match pairs the records of both ends, each list in order of time and neither empty. Every record is in at least
// one pair, and the sums of its shares are its own sums.
func match(out, in []*Record) []pairing {
	m := matcher{index: map[[2]*Record]int{}}
	outFlows, outRest := split(out)
	inFlows, inRest := split(in)
	if len(outFlows) > 0 && len(inFlows) > 0 {
		m.couple(outFlows, inFlows)
	} else {
		outRest, inRest = out, in
	}
	for _, r := range outRest {
		m.pair(r, nearest(r, in)).out.Add(&r.Sums)
	}
	for _, r := range inRest {
		m.pair(nearest(r, out), r).in.Add(&r.Sums)
	}
	return m.pairs
}

// split tells records that opened connections from those that only went on with one.
func split(list []*Record) (flows, rest []*Record) {
	for _, r := range list {
		if r.Connections > 0 {
			flows = append(flows, r)
		} else {
			rest = append(rest, r)
		}
	}
	return flows, rest
}

// pair returns the pair of two records, to which shares are added.
func (m *matcher) pair(out, in *Record) *pairing {
	key := [2]*Record{out, in}
	i, ok := m.index[key]
	if !ok {
		i = len(m.pairs)
		m.index[key] = i
		m.pairs = append(m.pairs, pairing{out: Record{Key: out.Key}, in: Record{Key: in.Key}})
	}
	return &m.pairs[i]
}

// couple lays the connections of both ends side by side, each end stretched to the same length, and pairs what lies
// beside each other.
func (m *matcher) couple(out, in []*Record) {
	outTotal, inTotal := connections(out), connections(in)
	o, i := sharer{list: out}, sharer{list: in}
	for !o.done() && !i.done() {
		// The present record of either side ends at end/total of the whole length; the nearer end closes the pair.
		switch order := compareFractions(o.end(), outTotal, i.end(), inTotal); {
		case order == 0:
			m.share(&o, &i, 1, 1)
			o.next()
			i.next()
		case order < 0:
			m.share(&o, &i, 1, i.progress(float64(o.end())/float64(outTotal), inTotal))
			o.next()
		default:
			m.share(&o, &i, o.progress(float64(i.end())/float64(inTotal), outTotal), 1)
			i.next()
		}
	}
}

func connections(list []*Record) (n uint64) {
	for _, r := range list {
		n += r.Connections
	}
	return n
}

// share gives the pair of the present records what is due when each has got so far. A pair without a connection is a
// rounding error of the other pairs, and gets nothing; what is left of a record then goes to its last pair.
func (m *matcher) share(o, i *sharer, outTo, inTo float64) {
	out, in := o.record(), i.record()
	outShare, inShare := o.due(outTo), i.due(inTo)
	if outShare.Connections > 0 || inShare.Connections > 0 {
		p := m.pair(out, in)
		p.out.Add(&outShare)
		p.in.Add(&inShare)
		o.give(outShare, in)
		i.give(inShare, out)
	}
	if outTo == 1 && o.partner != nil {
		rest := o.due(1)
		m.pair(out, o.partner).out.Add(&rest)
	}
	if inTo == 1 && i.partner != nil {
		rest := i.due(1)
		m.pair(i.partner, in).in.Add(&rest)
	}
}

// sharer gives the records of one end away, piece by piece.
type sharer struct {
	list    []*Record
	at      int
	before  uint64  // connections of the records before
	given   Sums    // of the present record
	partner *Record // with whom the present record was paired last
}

func (s *sharer) done() bool      { return s.at == len(s.list) }
func (s *sharer) record() *Record { return s.list[s.at] }
func (s *sharer) end() uint64     { return s.before + s.record().Connections }

func (s *sharer) next() {
	s.before = s.end()
	s.at++
	s.given, s.partner = Sums{}, nil
}

// progress returns how much of the present record lies before the place, a fraction of the whole length.
func (s *sharer) progress(place float64, total uint64) float64 {
	p := (place*float64(total) - float64(s.before)) / float64(s.record().Connections)
	return min(max(p, 0), 1)
}

// due returns what is to be given for the present record to have given the fraction away.
func (s *sharer) due(fraction float64) Sums {
	r := s.record()
	part := func(all, given uint64) uint64 {
		want := all
		if fraction < 1 {
			want = min(uint64(math.Round(float64(all)*fraction)), all)
		}
		return want - min(given, want)
	}
	return Sums{
		First: r.First, Last: r.Last,
		Connections:     part(r.Connections, s.given.Connections),
		Existing:        part(r.Existing, s.given.Existing),
		BytesToServer:   part(r.BytesToServer, s.given.BytesToServer),
		BytesToClient:   part(r.BytesToClient, s.given.BytesToClient),
		PacketsToServer: part(r.PacketsToServer, s.given.PacketsToServer),
		PacketsToClient: part(r.PacketsToClient, s.given.PacketsToClient),
	}
}

func (s *sharer) give(share Sums, partner *Record) {
	s.given.Add(&share)
	s.partner = partner
}

// compareFractions compares a/b with c/d exactly.
func compareFractions(a, b, c, d uint64) int {
	hi1, lo1 := bits.Mul64(a, d)
	hi2, lo2 := bits.Mul64(c, b)
	switch {
	case hi1 < hi2 || hi1 == hi2 && lo1 < lo2:
		return -1
	case hi1 > hi2 || lo1 > lo2:
		return 1
	}
	return 0
}

// nearest returns the record of the list that shares most time with r, or else the one that is closest to it.
func nearest(r *Record, list []*Record) *Record {
	best := list[0]
	for _, x := range list[1:] {
		if together(r, x) > together(r, best) {
			best = x
		}
	}
	return best
}

// together returns how long both records last together; less than zero is the gap between them.
func together(a, b *Record) time.Duration {
	from, to := a.First, a.Last
	if b.First.After(from) {
		from = b.First
	}
	if b.Last.Before(to) {
		to = b.Last
	}
	return to.Sub(from)
}
