package model

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// IdentityID is the number that the kernel knows for one identity. It is the start of a hash of the identity's
// content, so every controller and every revision gives equal identities equal numbers without coordination
// (ADR 0001). Zero is "no identity of its own": the default of a policy set decides.
type IdentityID uint64

// String returns sixteen hexadecimal digits.
func (id IdentityID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ParseIdentityID is the inverse of String.
func ParseIdentityID(s string) (IdentityID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("identity %q: use sixteen hexadecimal digits", s)
	}
	return IdentityID(n), nil
}

// Identity is what policy can tell apart: a label set and the networks that contain the address. Workloads of one
// identity are interchangeable.
type Identity struct {
	Owned    bool     // some workload has the address; only then do workload selectors match
	Labels   Labels   // empty unless Owned
	Networks []string // sorted: names of networks, CIDRName of literal CIDRs, DomainNetwork of literal domains
}

// Key returns the canonical text of the identity; equal identities have equal keys.
func (i *Identity) Key() string {
	owner := "address"
	if i.Owned {
		owner = "workload"
	}
	return owner + "\x00" + i.Labels.String() + "\x00" + strings.Join(i.Networks, "\x00")
}

// ID returns the identity's number; it is never zero.
func (i *Identity) ID() IdentityID { return hashID("identity", i.Key()) }

// SharedID returns the number that stands for an address which workloads of several identities share. The order
// and repetition of ids do not count.
func SharedID(ids []IdentityID) IdentityID {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if len(ids) == 1 {
		return ids[0]
	}
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(id.String())
	}
	return hashID("shared", b.String())
}

func hashID(kind, key string) IdentityID {
	sum := sha256.Sum256([]byte(kind + "\x00" + key))
	if n := binary.BigEndian.Uint64(sum[:8]); n != 0 {
		return IdentityID(n)
	}
	return 1
}

// CIDRName returns the name by which Identity.Networks lists a literal CIDR: "10.0.0.0/8", and with the parts of it that
// do not count, "10.0.0.0/8!10.1.0.0/16!10.2.0.0/16".
func CIDRName(p netip.Prefix, except ...netip.Prefix) string {
	if len(except) == 0 {
		return p.Masked().String()
	}
	parts := make([]string, len(except))
	for i, x := range except {
		parts[i] = x.Masked().String()
	}
	slices.Sort(parts)
	return p.Masked().String() + "!" + strings.Join(slices.Compact(parts), "!")
}
