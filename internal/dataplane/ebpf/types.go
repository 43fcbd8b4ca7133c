package ebpf

import (
	"encoding/binary"
	"net/netip"

	"bulkhead/internal/core/model"
)

// Names for what bpf/types.h declares.
type (
	event       = programsEvent
	versioned   = programsVersioned
	subjectInfo = programsSubjectInfo
	netKey      = programsNetKey
	portKey     = programsPortKey
	localKey    = programsLocalKey
	rowKey      = programsRowKey
	rangeKey    = programsRangeKey
	row         = programsRow

	alternativeKey = programsAlternativeKey
	alternative    = programsAlternative

	guarded = programsGuarded

	patternKey   = programsPatternKey
	domainKey    = programsDomainKey
	learntKey    = programsLearntKey
	addressNames = programsAddressNames
)

// address is an address as the programs hold it: 16 bytes, IPv4 mapped.
type address = [4]uint32

func addressOf(a netip.Addr) address {
	b := a.As16()
	var w address
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func addrOf(w address) netip.Addr {
	var b [16]byte
	for i, x := range w {
		binary.NativeEndian.PutUint32(b[4*i:], x)
	}
	return netip.AddrFrom16(b).Unmap()
}

func netKeyOf(p netip.Prefix) netKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return netKey{Bits: uint32(bits), Addr: addressOf(p.Addr())}
}

// networkOrder returns the number whose bytes in memory are n's, most significant first.
func networkOrder(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}

func networkOrder32(n uint32) uint32 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return binary.NativeEndian.Uint32(b[:])
}

// Subject numbers and states.
const (
	hostSubject = 0

	subjectLocalSets       = 1 << 0
	subjectLocalIdentities = 1 << 1
	subjectIsolated        = 1 << 2
	subjectLossOpen        = 1 << 3
	subjectLossClosed      = 1 << 4
	subjectGlass           = 1 << 5
)

// state packs struct subject's word.
func state(gen, set uint32, flags uint8) uint64 {
	return uint64(gen)<<32 | uint64(set)<<8 | uint64(flags)
}

func stateFlags(s uint64) uint8 { return uint8(s) }

// noLevel says that the depth of the cgroup is not known.
const noLevel = 0xffffffff

// maxLevels is at how many depths the cgroups of units may be: as many as settings.Levels has bytes.
const maxLevels = 8

// packLevels packs depths, the deepest first, as settings.Levels holds them.
func packLevels(levels []uint8) (word uint64) {
	for i, l := range levels {
		word |= uint64(l) << (8 * i)
	}
	return word
}

func unpackLevels(word uint64) (levels []uint8) {
	for ; word != 0; word >>= 8 {
		levels = append(levels, uint8(word))
	}
	return levels
}

// maxSets is how many policy sets a state can number.
const maxSets = 1<<24 - 1

// Kinds of row, and what a catch-all row says about the others of its peer.
const (
	rowAny   = 0
	rowProto = 2
	rowPort  = 4

	hasPort  = 1
	hasRange = 2
	hasProto = 4
)

// Rules that programs name by themselves, as enum fixed_rule counts them.
const (
	ruleMissing model.RuleID = "dataplane/no-policy"
	ruleSpoofed model.RuleID = "dataplane/spoofed-source"
)

var fixedRules = []model.RuleID{
	1:  model.RuleOpen,
	2:  model.RuleSameWorkload,
	3:  model.RuleController,
	4:  model.RuleDHCP,
	5:  model.RuleND,
	6:  model.RuleICMPError,
	7:  ruleMissing,
	8:  model.RuleOpen, // before any policy; no event names it
	9:  model.RuleBreakGlass,
	10: model.RuleAgentLost,
	11: ruleSpoofed,
}

// Flags of events. Their kinds are those of dataplane.EventKind.
const (
	eventRejudged = 1
	eventExisting = 2
)
