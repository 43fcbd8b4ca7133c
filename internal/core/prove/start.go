package prove

import (
	"fmt"

	"bulkhead/internal/core/model"
)

// alternative is what one peer of a guardrail means at an end, with a text that tells it from other peers; "" of any.
type alternative struct {
	conjunction
	key string
}

func keyOf(p *model.Peer) string {
	process := model.Process{}
	if p.Process != nil {
		process = *p.Process
	}
	return fmt.Sprintf("%d %q %q %q %q %q", p.Kind, p.Workloads.String(), p.Network, p.CIDR, p.Domain, process)
}

// startState is what a search begins with at one end. Guardrails often speak about the same ends, and the searches about
// one begin alike: which matches may mean something there is found out once.
type startState struct {
	ends     [2]kind
	family   addressFamily
	isolated [2]bool
	end      int
	key      string // of the peer there
}

// maxStates bounds how many are remembered.
const maxStates = 1 << 10

// touchedBy returns what is known of the matches at an end, by match: positive if it may mean something there, negative if
// not, and 0 if nobody has asked.
func (h *hypothesis) touchedBy(end int, key string) []int8 {
	at := h.state
	at.end, at.key = end, key
	known, ok := h.starts[at]
	if !ok {
		if len(h.starts) >= maxStates {
			clear(h.starts)
		}
		known = make([]int8, len(h.matches))
		h.starts[at] = known
	}
	return known
}
