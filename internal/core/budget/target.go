package budget

import (
	"net/netip"
	"strconv"
)

// everyIPv4 is a prefix that a target with one tree for both families always holds.
var everyIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// Target says what one kind of dataplane can hold.
type Target struct {
	Kind string
	// Max is how many entries it holds of each resource.
	Max Cost
	// EntryBytes is what the key and the value of an entry take in memory. The kernel adds its own, some ten bytes or some
	// dozens an entry.
	EntryBytes Cost
	// MaxName is how many bytes the name of a workload or of a rule may have.
	MaxName int
	// MaxAlternatives is how many rules for some processes may apply to one peer and port; 0: it cannot tell processes apart.
	MaxAlternatives int
	// Domains says whether it can judge by host names.
	Domains bool
}

// KindEBPF is the kind of the target of package dataplane/ebpf, and of one that is not known.
const KindEBPF = "ebpf"

// EBPF returns the target of package dataplane/ebpf, which takes its limits from here and whose tests compare the maps.
func EBPF() Target {
	return Target{
		Kind: KindEBPF,
		Max: Cost{
			Rows: 524288, Ranges: 131072, Alternatives: 65536, Sets: 16384, Rules: 65536, Subjects: 4096, LocalSets: 16384,
			Addresses: 262144, Prefixes: 65536, Ports: 65536, Controllers: 1024,
			Patterns: 8192, Named: 65536,
		},
		EntryBytes: Cost{
			Rows: 32, Ranges: 32, Alternatives: 40, Sets: 12, Rules: 264, Subjects: 320, LocalSets: 88,
			Addresses: 40, Prefixes: 44, Ports: 44, Controllers: 44, Patterns: 260, Named: 40,
		},
		MaxName:         255,
		MaxAlternatives: 64,
		Domains:         true,
	}
}

// KindNftables is the kind of the target of package dataplane/nft.
const KindNftables = "nftables"

// Nftables returns the target of package dataplane/nft, which refuses what exceeds it: what a kernel takes in seconds. It has
// policy sets as maps, in which a peer is one entry as it is here, and ranges of ports cost no more than single ones.
func Nftables() Target {
	return Target{
		Kind: KindNftables,
		Max: Cost{
			Rows: 65536, Ranges: 32768, Sets: 1024, Rules: 65536, Subjects: 255, LocalSets: 4096,
			Addresses: 131072, Prefixes: 8192, Ports: 16384, Controllers: 1024,
		},
		EntryBytes: Cost{
			Rows: 16, Ranges: 28, Sets: 64, Rules: 0, Subjects: 4096, LocalSets: 128,
			Addresses: 28, Prefixes: 56, Ports: 40, Controllers: 24,
		},
		MaxName: 200,
	}
}

// Targets says what the dataplane of a host can hold; known is false if that is assumed, because no agent of the host has
// said what it has.
type Targets func(host string) (t Target, known bool)

// OfKind returns the target of a kind of dataplane as agents report it, and whether it is one that is known here. Others,
// and that of nobody (""), are taken for eBPF, which every agent has where it can be used.
func OfKind(kind string) (t Target, known bool) {
	if kind == KindNftables {
		return Nftables(), true
	}
	return EBPF(), kind == KindEBPF
}

// Bytes returns what the keys and values of the entries take in memory.
func (t *Target) Bytes(c Cost) int {
	n := 0
	for r := range c {
		n += c[r] * t.EntryBytes[r]
	}
	return n
}

// Exceeded returns the first resource of which the target cannot hold as many; ok is false if everything fits.
func (t *Target) Exceeded(c Cost) (r Resource, ok bool) {
	for r := range All() {
		if c[r] > t.Max[r] {
			return r, true
		}
	}
	return 0, false
}

// thousands writes a number with commas.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
