package nft

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// limits are what this implementation does not do on any kernel.
var limits = []string{
	"Only the network namespace of the agent is judged: a container with one of its own is not, nor is traffic that this host " +
		"forwards for others.",
	"Frames sent through packet sockets (AF_PACKET) are not judged; sending them needs CAP_NET_RAW. Nor are sockets of other " +
		"families than IPv4 and IPv6.",
	"Rules for some processes only (user, path, unit) are refused, and the whole policy with them.",
	"Rules that name hosts (domains) are refused, and the whole policy with them.",
	"Events do not name processes, and what happens while no agent runs is only counted.",
	"A denied connection is refused (ECONNREFUSED) instead of forbidden (EPERM).",
	"Of what a TCP connection has received one byte may be missing where this end has closed it first.",
	"A flow of UDP or another protocol without connections ends by its silence, not with its socket.",
	"Packets that connection tracking cannot follow (invalid, untracked) are dropped where the policy of the host or a unit " +
		"denies anything. Every connection takes an entry of the kernel's table (net.netfilter.nf_conntrack_max).",
	"Packets with a source route (IPv4) or with a routing header that has something left (IPv6) are not judged by where they end: they " +
		"are dropped, and counted, where the policy of the host or a unit denies anything.",
	"Connections to a port on which nothing listens are answered by the kernel and are not recorded at this end.",
	"Datagrams to a group or broadcast are judged for one of the sockets that get them; raw sockets that receive are the host's.",
	"A socket belongs to the cgroup of the process that made it, also after it was handed to another process " +
		"(socket activation, moved processes).",
	"A cgroup that appears is judged as what it lies in, a unit or the host, until the agent has named it to the kernel.",
	"24 bits of the marks of connections (ct mark) are ours, 8–31; another program that sets them changes what is remembered of " +
		"a connection.",
}

// Capabilities says what this dataplane can and cannot enforce on this kernel.
func (d *Dataplane) Capabilities() dataplane.Capabilities {
	return dataplane.Capabilities{
		Kind:        budget.KindNftables,
		Kernel:      kernelRelease(),
		ResetTCP:    true,
		ConnectErr:  true,
		Errno:       "ECONNREFUSED",
		AgentLoss:   d.cfg.AgentLoss,
		PeersAtOnce: true,
		Limits:      d.limits(),
	}
}

func (d *Dataplane) limits() []string {
	all := slices.Clone(limits)
	if !d.can.reopen {
		all = append(all, "This kernel lacks nft_tproxy: a connection to a unit from a port that it knows in TIME_WAIT, for a minute after it has "+
			"closed a connection from there, is judged as the host's until it is open.")
	}
	return all
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// abilities are what the kernel can do beyond what is needed.
type abilities struct {
	reopen bool // nft_tproxy is there: a connection that comes back to a port in TIME_WAIT can be judged by who listens there
}

// probe finds out whether the kernel can do everything that is needed, and what it can do beyond that: it makes a table with all
// of it and takes it away again, in one transaction, so nobody ever sees it.
func (n *namespace) probe() (abilities, error) {
	if n.tries(true) == nil {
		return abilities{reopen: true}, nil
	}
	if err := n.tries(false); err != nil {
		return abilities{}, fmt.Errorf("this kernel lacks something that is needed (Linux 5.13 with nf_tables, nft_socket, nft_ct, nft_log, "+
			"nft_reject and nfnetlink_log has it), or this process lacks CAP_NET_ADMIN: %w", err)
	}
	return abilities{}, nil
}

func (n *namespace) tries(reopens bool) error {
	t := newTable()
	w := writer{table: t, content: &content{
		policy: probePolicy(), beaten: true, glass: true, units: map[uint64]unitCgroup{1: {depth: 1, subject: hostNumber}},
	}, layout: layout{8}, gen: 1, group: 1, reopens: reopens}
	w.content.addresses = lowerAddresses(w.content.policy, nil)
	for i := range w.content.policy.Subjects {
		w.content.subjects = append(w.content.subjects, &subject{&w.content.policy.Subjects[i], hostNumber, false})
	}
	r := record{version: tableVersion, gen: 1}
	t.chain(stateChain).rules = r.rules()
	w.write()
	b := batch{probe: true}
	b.table(unix.NFT_MSG_NEWTABLE)
	newTable().change(t, &b)
	b.table(unix.NFT_MSG_DELTABLE)
	return n.commit(&b)
}

func probePolicy() *hostpolicy.Policy {
	set := hostpolicy.PolicySet{}
	for _, dir := range model.Directions {
		set.Table(dir).Funcs = []hostpolicy.Func{{{Ports: model.AnyPort, Verdict: model.Deny, Rule: model.RuleDefaultDeny}}}
	}
	set.ID = set.ContentID()
	return &hostpolicy.Policy{Host: "probe", Sets: []hostpolicy.PolicySet{set}, Subjects: []hostpolicy.Subject{
		{Workload: "probe", Set: set.ID, Isolation: set.ID, OnAgentLoss: model.LossClosed},
	}}
}
