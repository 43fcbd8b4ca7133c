// Package wire turns compiled policy and the values around it into protobuf and back, and makes and applies deltas.
//
// Both ends of the protocol use it, so it holds no state and does no I/O. What comes from the wire is checked whole
// before anything is returned: a message that was cut short or changed on the way is an error, never a policy that
// is a little different.
package wire

import (
	"fmt"
	"net/netip"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Capability is the version of the protocol that this build speaks. Both sides work with their own and with the one
// before.
const Capability = 1

// AddrToProto returns 4 or 16 bytes; an IPv4-mapped address gives 4, an invalid one none.
func AddrToProto(a netip.Addr) []byte { return a.Unmap().AsSlice() }

// AddrFromProto is the inverse of AddrToProto. No bytes are an error; see OptionalAddrFromProto.
func AddrFromProto(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes: it must have 4 or 16", len(b))
	}
	return a.Unmap(), nil
}

// OptionalAddrFromProto is AddrFromProto, but no bytes give the invalid address.
func OptionalAddrFromProto(b []byte) (netip.Addr, error) {
	if len(b) == 0 {
		return netip.Addr{}, nil
	}
	return AddrFromProto(b)
}

// HashFromProto returns the hash; no bytes give the zero hash, which no policy has.
func HashFromProto(b []byte) (hostpolicy.Hash, error) {
	var h hostpolicy.Hash
	if len(b) == 0 {
		return h, nil
	}
	if len(b) != len(h) {
		return h, fmt.Errorf("hash of %d bytes: it must have %d", len(b), len(h))
	}
	copy(h[:], b)
	return h, nil
}

// VerdictToProto returns the verdict as the protocol numbers it.
func VerdictToProto(v model.Verdict) pb.Verdict {
	switch v {
	case model.Allow:
		return pb.Verdict_VERDICT_ALLOW
	case model.WouldDeny:
		return pb.Verdict_VERDICT_WOULD_DENY
	}
	return pb.Verdict_VERDICT_DENY
}

// VerdictFromProto is the inverse of VerdictToProto.
func VerdictFromProto(v pb.Verdict) (model.Verdict, error) {
	switch v {
	case pb.Verdict_VERDICT_ALLOW:
		return model.Allow, nil
	case pb.Verdict_VERDICT_WOULD_DENY:
		return model.WouldDeny, nil
	case pb.Verdict_VERDICT_DENY:
		return model.Deny, nil
	}
	return model.Deny, fmt.Errorf("verdict %d is not known", int32(v))
}

// DirectionToProto returns the direction as the protocol numbers it.
func DirectionToProto(d model.Direction) pb.Direction {
	if d == model.Egress {
		return pb.Direction_DIRECTION_EGRESS
	}
	return pb.Direction_DIRECTION_INGRESS
}

// DirectionFromProto is the inverse of DirectionToProto.
func DirectionFromProto(d pb.Direction) (model.Direction, error) {
	switch d {
	case pb.Direction_DIRECTION_INGRESS:
		return model.Ingress, nil
	case pb.Direction_DIRECTION_EGRESS:
		return model.Egress, nil
	}
	return model.Ingress, fmt.Errorf("direction %d is not known", int32(d))
}

// LevelToProto returns the quarantine level as the protocol numbers it.
func LevelToProto(l model.QuarantineLevel) pb.QuarantineLevel { return pb.QuarantineLevel(l) }

// LevelFromProto is the inverse of LevelToProto.
func LevelFromProto(l pb.QuarantineLevel) (model.QuarantineLevel, error) {
	if l < pb.QuarantineLevel_QUARANTINE_LEVEL_NONE || l > pb.QuarantineLevel_QUARANTINE_LEVEL_ISOLATE {
		return model.QuarantineNone, fmt.Errorf("quarantine level %d is not known", int32(l))
	}
	return model.QuarantineLevel(l), nil
}

// LossFromProto returns what the kernel does when its agent is gone.
func LossFromProto(l pb.OnAgentLoss) (model.OnAgentLoss, error) {
	if l < pb.OnAgentLoss_ON_AGENT_LOSS_KEEP || l > pb.OnAgentLoss_ON_AGENT_LOSS_CLOSED {
		return model.LossKeep, fmt.Errorf("on-agent-loss %d is not known", int32(l))
	}
	return model.OnAgentLoss(l), nil
}

// PortFromProto returns a protocol and a port from the wider numbers that protobuf has.
func PortFromProto(proto, port uint32) (model.Proto, uint16, error) {
	if proto > 255 {
		return 0, 0, fmt.Errorf("protocol %d is out of range 0–255", proto)
	}
	if port > 65535 {
		return 0, 0, fmt.Errorf("port %d is out of range 0–65535", port)
	}
	return model.Proto(proto), uint16(port), nil
}
