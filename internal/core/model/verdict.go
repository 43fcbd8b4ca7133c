package model

import (
	"fmt"
	"net/netip"
	"time"
)

// RuleID is the stable identity of what decided: "policy/rule", "segment/NAME/members", "essential/…",
// "quarantine/…", or one of the defaults below.
type RuleID string

// The deciders that no document names.
const (
	RuleDefaultDeny RuleID = "default-deny"
	RuleOpen        RuleID = "open"
	RuleUnmanaged   RuleID = "unmanaged"

	RuleSameWorkload RuleID = "essential/same-workload"
	RuleController   RuleID = "essential/controller"
	RuleBreakGlass   RuleID = "exception/break-glass"
	RuleAgentLost    RuleID = "exception/agent-lost"
	RuleDNS          RuleID = "essential/dns"
	RuleTime         RuleID = "essential/time"
	RuleDHCP         RuleID = "essential/dhcp"
	RuleND           RuleID = "essential/neighbor-discovery"
	RuleICMPError    RuleID = "essential/icmp-error"
	RuleOwnNode      RuleID = "essential/own-node"

	RuleIsolate  RuleID = "quarantine/isolate"
	RuleRestrict RuleID = "quarantine/restrict"
	RuleForensic RuleID = "quarantine/forensic"
	RuleInUse    RuleID = "quarantine/in-use"
)

// MembersRule is the rule that members: allow stands for.
func MembersRule(segment string) RuleID { return RuleID("segment/" + segment + "/members") }

// OneSidedRuleID is the identity of a rule of a one-sided policy.
func OneSidedRuleID(policy, rule string) RuleID { return RuleID(policy + "/" + rule) }

// NamedRule is the identity of a rule of a policy.
func NamedRule(policy, rule string) RuleID { return RuleID(policy + "/" + rule) }

// Verdict is what becomes of a flow. The zero value denies. Greater is more permissive.
type Verdict uint8

// The verdicts.
const (
	Deny Verdict = iota
	WouldDeny
	Allow
)

// String returns the verdict as eval writes it.
func (v Verdict) String() string {
	switch v {
	case Deny:
		return "deny"
	case WouldDeny:
		return "would-deny"
	case Allow:
		return "allow"
	}
	return "verdict(" + fmt.Sprint(uint8(v)) + ")"
}

// ParseVerdict parses allow, deny or would-deny.
func ParseVerdict(s string) (Verdict, error) {
	for _, v := range []Verdict{Deny, WouldDeny, Allow} {
		if v.String() == s {
			return v, nil
		}
	}
	return Deny, fmt.Errorf("verdict %q: use allow, deny or would-deny", s)
}

// EndVerdict is the verdict at one end and what decided it.
type EndVerdict struct {
	Verdict Verdict
	Rule    RuleID
}

// FlowVerdict is the verdict over both ends: the strictest of the two.
type FlowVerdict struct {
	Verdict         Verdict
	Egress, Ingress EndVerdict
}

// Join returns the verdict over both ends (DESIGN §2): deny if either denies, else would-deny if either would.
func Join(egress, ingress EndVerdict) FlowVerdict {
	return FlowVerdict{Verdict: min(egress.Verdict, ingress.Verdict), Egress: egress, Ingress: ingress}
}

// Flow is one flow to judge. An end is a workload by name, or an address.
type Flow struct {
	From, To    End
	Proto       Proto
	Port        uint16 // destination port; of ICMP type<<8|code
	FromProcess *Process
	ToProcess   *Process
	// ToDomain is the host name that the source resolved to reach To; "" if it is not known. It counts only where no
	// workload owns To.
	ToDomain string
}

// End is one end of a flow: Workload if set, else Addr.
type End struct {
	Workload string
	Addr     netip.Addr
}

// String returns the name or the address.
func (e End) String() string {
	if e.Workload != "" {
		return e.Workload
	}
	return e.Addr.String()
}

// RecordedFlow is a flow that was really seen, as learn, plan and diff read it.
type RecordedFlow struct {
	Flow
	FromAddr, ToAddr netip.Addr // as seen; invalid if not recorded
	Connections      uint64     // how often; at least 1
	First, Last      time.Time
	Verdict          Verdict // at the time; Allow where nothing judged
	FromName, ToName string  // process names, "" if not known
}
