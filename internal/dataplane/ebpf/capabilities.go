package ebpf

import (
	"fmt"
	"slices"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/dataplane"
)

// limits are what this implementation does not do on any kernel.
var limits = []string{
	"What a tunnel carries is judged as the tunnel only, unless a socket of this host is at its end.",
	"Connections to a port on which nothing listens are answered by the kernel and are not recorded at this end.",
	"Echo requests are answered by the kernel itself and are neither judged nor recorded at this end.",
	"A socket belongs to the cgroup of the process that made it, also after it was handed to another process " +
		"(socket activation, moved processes).",
	"A cgroup that appears is judged as what it lies in, a unit or the host, until the agent has named it to the kernel.",
	"A connection that this host itself redirects (DNAT) is judged at connect by the address the program asked for, " +
		"and the answers to a UDP socket without a peer are judged as traffic of their own.",
	"An accepted connection names the process that listens, not the one that accepted it.",
	"The process of a connection is the one that connected, or that made the socket which listens: a connected or listening " +
		"socket that is handed to another process (socket activation) stays with the former.",
	"Executables in mount namespaces that unprivileged users made, and those in memory only, have no path: a rule for a path " +
		"does not apply to them.",
	"Names of hosts are learnt from answers over UDP that the resolvers named in policy give to sockets of this host: not " +
		"from DNS over TCP, TLS or HTTPS, from multicast DNS, or from files.",
}

// Limits that depend on which interfaces are guarded.
var guardLimits = map[Guard][]string{
	GuardNone: {
		"Traffic that this host forwards for others is not judged; only traffic of its own sockets is. Nor are frames that are sent " +
			"through packet sockets (AF_PACKET, AF_XDP), which needs CAP_NET_RAW: set interfaces: ports, or all, in agent.yaml.",
	},
	GuardPorts: {
		"Frames that are sent through packet sockets (AF_PACKET, AF_XDP) in the network namespace of this host are not judged, which " +
			"needs CAP_NET_RAW there: set interfaces: all in agent.yaml. Those of containers are.",
		forwards,
	},
	GuardAll: {
		"Frames of AF_XDP, and of packet sockets that bypass queueing (PACKET_QDISC_BYPASS), in the network namespace of this host " +
			"are not judged, nor are those at its loopback interface. They need CAP_NET_RAW there.",
		forwards,
	},
}

const forwards = "Traffic that this host forwards for others is judged where it passes the interface of a container or virtual machine " +
	"that is a workload; other traffic is only counted. A connection that is denied later falls silent."

// confined is what an agent costs that may not enter network namespaces (it lacks CAP_SYS_ADMIN).
const confined = "Live TCP connections in the network namespaces of containers fall silent, when they are no longer " +
	"allowed, instead of being reset: that needs CAP_SYS_ADMIN."

// Capabilities says what this dataplane can and cannot enforce on this kernel.
func (d *Dataplane) Capabilities() dataplane.Capabilities {
	target := budget.EBPF()
	return dataplane.Capabilities{
		Kind:        target.Kind,
		Kernel:      kernelRelease(),
		ResetTCP:    d.programs[programsProgBulkheadSweep] != nil,
		ConnectErr:  true,
		Errno:       "EPERM",
		Namespaces:  true,
		Backlog:     true,
		SocketFlows: true,
		ExactBytes:  true,
		ProcessInfo: true,
		AgentLoss:   d.cfg.AgentLoss,
		LiveBytes:   d.programs[programsProgBulkheadUpdate] != nil,
		Processes:   target.MaxAlternatives > 0,
		Domains:     target.Domains && d.follows,
		Frames:      d.cfg.Guard != GuardNone,
		Routes:      true,
		Limits:      slices.Concat(guardLimits[d.cfg.Guard], limits, d.missing),
	}
}

// Counters returns totals since the dataplane was installed.
func (d *Dataplane) Counters() (dataplane.Counters, error) {
	d.open.RLock()
	defer d.open.RUnlock()
	var totals [9]uint64
	for i := range totals {
		var perCPU []uint64
		if err := d.maps.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return dataplane.Counters{}, fmt.Errorf("read counters: %w", err)
		}
		for _, n := range perCPU {
			totals[i] += n
		}
	}
	var named programsNameTotals
	if err := d.maps.Named.Lookup(uint32(0), &named); err != nil {
		return dataplane.Counters{}, fmt.Errorf("read counters: %w", err)
	}
	return dataplane.Counters{
		Judged: totals[0], Allowed: totals[1], WouldDenied: totals[2], Denied: totals[3],
		DroppedPkts: totals[4], EventsLost: totals[5], Errors: totals[6], NamesLost: totals[7], Transit: totals[8],
		Names: named.Names, NamedAddresses: named.Addresses,
	}, nil
}
