package suggest

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// Neighbour similarity: two workloads are alike when they serve and call the same ports of the same peers. Each
// workload is a bag of tokens weighted by TF-IDF; likeness is the cosine. Tokens that one workload alone has, or that
// very many have, tell nothing.
const (
	neighbours      = 5    // so many of the nearest labelled workloads vote
	commonToken     = 2000 // a token of more workloads is left out
	leastSimilarity = 0.3  // a neighbour less alike has no vote
	neighbourTrust  = 0.75 // the most that neighbours can say
)

// token is one habit of a workload: to serve or call a port, of anybody or of one peer.
type token struct {
	serves bool
	peer   partyID // noParty: anybody
	proto  model.Proto
	port   uint16 // dynamicLow stands for every short-lived port
}

type tokenWeight struct {
	token  int32
	weight float64
}

// likeness holds the token vectors of all parties and the inverted index over them.
type likeness struct {
	r       *records
	tokens  []token
	vectors [][]tokenWeight // by party, sorted by token
	holders [][]tokenHolder // by token, sorted by party
}

type tokenHolder struct {
	party  partyID
	weight float64
}

func newLikeness(r *records) *likeness {
	l := &likeness{r: r, vectors: make([][]tokenWeight, len(r.parties))}
	index := map[token]int32{}
	counts := make([]map[int32]uint64, len(r.parties))
	add := func(p partyID, t token, n uint64) {
		if !r.parties[p].owned() {
			return
		}
		id, ok := index[t]
		if !ok {
			id = int32(len(l.tokens))
			index[t] = id
			l.tokens = append(l.tokens, t)
		}
		if counts[p] == nil {
			counts[p] = map[int32]uint64{}
		}
		counts[p][id] += n
	}
	for i := range r.edges {
		e := &r.edges[i]
		if e.fate == FateSuspicious || e.fate == FateDenied || e.src == e.dst {
			continue
		}
		port := min(e.port, dynamicLow)
		if e.proto.IsICMP() {
			port = e.port
		}
		add(e.dst, token{true, noParty, e.proto, port}, e.connections)
		add(e.dst, token{true, e.src, e.proto, port}, e.connections)
		add(e.src, token{false, noParty, e.proto, port}, e.connections)
		add(e.src, token{false, e.dst, e.proto, port}, e.connections)
	}
	holders := make([]int, len(l.tokens))
	workloads := 0
	for _, c := range counts {
		if c != nil {
			workloads++
		}
		for t := range c {
			holders[t]++
		}
	}
	l.holders = make([][]tokenHolder, len(l.tokens))
	for p, c := range counts {
		vector := make([]tokenWeight, 0, len(c))
		for t, n := range c {
			if df := holders[t]; df >= 2 && df <= commonToken {
				vector = append(vector, tokenWeight{t, math.Log1p(float64(n)) * math.Log1p(float64(workloads)/float64(df))})
			}
		}
		slices.SortFunc(vector, func(a, b tokenWeight) int { return cmp.Compare(a.token, b.token) })
		norm := 0.0
		for _, w := range vector {
			norm += w.weight * w.weight
		}
		norm = math.Sqrt(norm)
		for i := range vector {
			vector[i].weight /= norm
			l.holders[vector[i].token] = append(l.holders[vector[i].token], tokenHolder{partyID(p), vector[i].weight})
		}
		l.vectors[p] = vector
	}
	return l
}

type neighbour struct {
	party partyID
	sim   float64
}

// nearest returns the parties most like p, best first. It is called for one party at a time; sums is scratch space of
// one float for each party, zero before and after.
func (l *likeness) nearest(p partyID, sums []float64) []neighbour {
	var touched []partyID
	for _, w := range l.vectors[p] {
		for _, h := range l.holders[w.token] {
			if h.party == p {
				continue
			}
			if sums[h.party] == 0 {
				touched = append(touched, h.party)
			}
			sums[h.party] += w.weight * h.weight
		}
	}
	var out []neighbour
	for _, q := range touched {
		if sums[q] >= leastSimilarity {
			out = append(out, neighbour{q, sums[q]})
		}
		sums[q] = 0
	}
	slices.SortFunc(out, func(a, b neighbour) int {
		if math.Abs(a.sim-b.sim) > 1e-9 {
			return cmp.Compare(b.sim, a.sim)
		}
		return l.r.compareParties(a.party, b.party)
	})
	return out
}

// vote asks the nearest workloads that carry the label key for its value.
func (l *likeness) vote(p partyID, near []neighbour, key string) (clue, bool) {
	weights := map[string]float64{}
	best := map[string]neighbour{}
	total, voters := 0.0, 0
	for _, n := range near {
		value, ok := l.r.parties[n.party].instance.Labels[key]
		if !ok {
			continue
		}
		if _, seen := best[value]; !seen {
			best[value] = n
		}
		weights[value] += n.sim
		total += n.sim
		if voters++; voters == neighbours {
			break
		}
	}
	winner := ""
	for v, w := range weights {
		if winner == "" || w > weights[winner] || w == weights[winner] && v < winner {
			winner = v
		}
	}
	if winner == "" {
		return clue{}, false
	}
	nearest := best[winner]
	why := fmt.Sprintf("it behaves like %s (similarity %.2f)", l.r.parties[nearest.party].name, nearest.sim)
	if shared := l.shared(p, nearest.party); shared != "" {
		why += ": both " + shared
	}
	return clue{"neighbours", winner, neighbourTrust * nearest.sim * weights[winner] / total, why}, true
}

// shared describes the two habits that two parties share most.
func (l *likeness) shared(a, b partyID) string {
	var common []tokenWeight
	va, vb := l.vectors[a], l.vectors[b]
	for len(va) > 0 && len(vb) > 0 {
		switch {
		case va[0].token < vb[0].token:
			va = va[1:]
		case va[0].token > vb[0].token:
			vb = vb[1:]
		default:
			common = append(common, tokenWeight{va[0].token, va[0].weight * vb[0].weight})
			va, vb = va[1:], vb[1:]
		}
	}
	slices.SortFunc(common, func(a, b tokenWeight) int {
		if c := cmp.Compare(b.weight, a.weight); c != 0 {
			return c
		}
		return cmp.Compare(a.token, b.token)
	})
	var parts []string
	for _, c := range common[:min(2, len(common))] {
		parts = append(parts, l.describe(l.tokens[c.token]))
	}
	return strings.Join(parts, " and ")
}

func (l *likeness) describe(t token) string {
	port := model.PortRange{Proto: t.proto, Lo: t.port, Hi: t.port}.String()
	if t.port == dynamicLow {
		port = "short-lived ports"
	}
	switch {
	case t.serves && t.peer == noParty:
		return "serve " + port
	case t.serves:
		return "serve " + port + " to " + l.r.parties[t.peer].String()
	case t.peer == noParty:
		return "call " + port
	}
	return "call " + l.r.parties[t.peer].String() + " on " + port
}
