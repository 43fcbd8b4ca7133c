package compile

import (
	"math/bits"
	"slices"
)

// perfect gives every key of a set that does not change a place of its own, among few more places than there are keys, from
// the key's hash and one small number, the pilot, that keys with hashes alike have in common. So a search reads one place, and
// no step of it depends on what is there. (Hash and displace: Belazzougui, Botelho and Dietzfelbinger, ESA 2009; the pilots are
// those of Pibiri and Trani, PTHash, SIGIR 2021.)
type perfect struct {
	pilots []uint16
	shift  uint8
	places uint64
}

const (
	keysToPilot  = 4    // at most, in the mean
	mostPilots   = 4096 // that are tried; more are needed only by keys whose hashes somebody has chosen
	mostTogether = 32   // keys that one pilot places; likewise
	fullOfPlaces = 10   // nine of so many places are taken
)

// at returns the place of a key of that hash; of other keys any place.
func (p *perfect) at(hash uint64) uint32 { return p.try(hash, p.pilots[hash>>(p.shift&63)]) }

func (p *perfect) try(hash uint64, pilot uint16) uint32 {
	return uint32((hash ^ uint64(pilot)*pilotFactor) * hashFactor >> 32 * p.places >> 32)
}

const pilotFactor = 0xd6e8feb86659fd93

// newPerfect finds places for keys of those hashes. Keys that find none, as their hashes are equal or too many are alike, have noPlace.
// The same hashes in the same order give the same places.
func newPerfect(hashes []uint64) (p perfect, places []uint32) {
	log := max(1, bits.Len(uint(len(hashes)/keysToPilot)))
	n := len(hashes) + len(hashes)/(fullOfPlaces-1) + 1
	p = perfect{pilots: make([]uint16, 1<<log), shift: uint8(64 - log), places: uint64(n)}
	places = make([]uint32, len(hashes))
	groups, begin := p.group(hashes)
	taken := newBitset(n)
	var at []int32
	for _, g := range p.largestFirst(begin) {
		keys := groups[begin[g]:begin[g+1]]
		keys = setApart(keys, hashes, places)
		for pilot := range uint16(mostPilots) {
			at = at[:0]
			for _, k := range keys {
				to := int32(p.try(hashes[k], pilot))
				if taken.has(to) || slices.Contains(at, to) {
					break
				}
				at = append(at, to)
			}
			if len(at) == len(keys) {
				p.pilots[g] = pilot
				break
			}
		}
		for i, k := range keys {
			places[k] = noPlace
			if len(at) == len(keys) {
				taken.add(at[i])
				places[k] = uint32(at[i])
			}
		}
	}
	return p, places
}

const noPlace = ^uint32(0)

// group lists the keys by their pilots; begin says where those of each begin, and where the last end.
func (p *perfect) group(hashes []uint64) (keys, begin []int32) {
	begin = make([]int32, len(p.pilots)+1)
	for _, h := range hashes {
		begin[h>>p.shift+1]++
	}
	for i := range p.pilots {
		begin[i+1] += begin[i]
	}
	keys, next := make([]int32, len(hashes)), slices.Clone(begin)
	for k, h := range hashes {
		g := h >> p.shift
		keys[next[g]] = int32(k)
		next[g]++
	}
	return keys, begin
}

// largestFirst lists the pilots that have keys: those with most, which are the hardest to place, while most places are free.
func (p *perfect) largestFirst(begin []int32) []int32 {
	most := int32(0)
	for g := range p.pilots {
		most = max(most, begin[g+1]-begin[g])
	}
	next := make([]int32, most+1) // by size: where the next of it goes
	for g := range p.pilots {
		next[begin[g+1]-begin[g]]++
	}
	sum := int32(0)
	for size := most; size > 0; size-- {
		next[size], sum = sum, sum+next[size]
	}
	list := make([]int32, sum)
	for g := range p.pilots {
		if size := begin[g+1] - begin[g]; size > 0 {
			list[next[size]] = int32(g)
			next[size]++
		}
	}
	return list
}

// setApart returns the keys without those whose hash another before them has, which no pilot tells apart, and without those
// that are too many.
func setApart(keys []int32, hashes []uint64, places []uint32) []int32 {
	n := 0
	for _, k := range keys {
		if n == mostTogether || slices.ContainsFunc(keys[:n], func(o int32) bool { return hashes[o] == hashes[k] }) {
			places[k] = noPlace
			continue
		}
		keys[n] = k
		n++
	}
	return keys[:n]
}
