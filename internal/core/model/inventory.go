package model

import (
	"net/netip"
	"time"
)

// QuarantineLevel is how strictly a quarantined workload is held. The zero value is no quarantine.
type QuarantineLevel uint8

// The levels.
const (
	QuarantineNone     QuarantineLevel = iota
	QuarantineWatch                    // log everything, drop nothing more
	QuarantineRestrict                 // no new east-west connections but those in use during the last day
	QuarantineIsolate                  // essentials and the forensic network only
)

var quarantineNames = [...]string{"none", "watch", "restrict", "isolate"}

// String returns the level as users and labels spell it.
func (q QuarantineLevel) String() string {
	if int(q) < len(quarantineNames) {
		return quarantineNames[q]
	}
	return "unknown"
}

// ParseQuarantineLevel parses watch, restrict or isolate.
func ParseQuarantineLevel(s string) (QuarantineLevel, bool) {
	for i, n := range quarantineNames {
		if i > 0 && n == s {
			return QuarantineLevel(i), true
		}
	}
	return QuarantineNone, false
}

// Quarantine is the effect of a lease on one workload.
type Quarantine struct {
	Level QuarantineLevel
	// InUse are the east-west connections that QuarantineRestrict keeps open.
	InUse []InUse
}

// InUse is one edge that a restricted workload used lately.
type InUse struct {
	Direction Direction
	Peer      string // name of the workload at the other end
	Ports     PortRange
}

// Instance is a workload as it exists: what documents declare, agents report and leases add, merged.
type Instance struct {
	Name       string
	Labels     Labels       // inherited, own and system labels together
	Addresses  []netip.Addr // sorted as declared; units have their host's
	Managed    bool
	Host       string // the host whose agent judges it; equal to Name for a host; "" if no agent is known
	Unit       string // name of the unit on Host; "" for the host itself
	Node       string // of a pod, the node it runs on; of a node, its own name; else ""
	Quarantine Quarantine
	Listening  []Listener // sockets known to belong to it
}

// IsUnit reports whether the workload is a unit of a host.
func (i *Instance) IsUnit() bool { return i.Unit != "" }

// IsPod reports whether the workload is a pod with an address of its own.
func (i *Instance) IsPod() bool { return i.Node != "" && i.Labels[PodLabel] == PodValue }

// Listener is a socket that accepts traffic. An unspecified address means every address of the host.
type Listener struct {
	Addr    netip.Addr
	Proto   Proto
	Port    uint16
	Process string // name of the process that owns it
}

// Inventory is every workload there is, sorted by name.
type Inventory struct {
	Instances []Instance
}

// Process facts that agents report with flows.
type ProcessInfo struct {
	Name string    // comm
	Path string    // executable; "" if it could not be read
	PID  int       // at the time of the event
	UID  uint32    //
	Unit string    // unit it runs in
	From time.Time // start of the process; with PID it is unambiguous
}
