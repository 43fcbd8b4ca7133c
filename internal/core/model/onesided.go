package model

// Tier is the place of a one-sided policy in the order of decision.
type Tier uint8

// The tiers, in the order in which they are asked. Deny and allow rules of native policies are asked between the first
// and the second.
const (
	TierAdmin     Tier = iota // for the whole cluster, before everything else
	TierNamespace             // NetworkPolicy: who is selected is closed, rules open
	TierBaseline              // for the whole cluster, where nothing before decided
)

// String returns the tier as people read it.
func (t Tier) String() string { return [...]string{"admin", "namespace", "baseline"}[t] }

// OneSided is a policy seen from its subjects alone: its rules open or close one end of a connection and say nothing of
// the other. Kubernetes writes its policies so. What it denies is dropped, whatever the mode of the subject's segments.
//
// Name is how verdicts cite it and is unique among one-sided policies, such as "networkpolicy/shop/web".
type OneSided struct {
	Meta
	Tier     Tier
	Priority int      // within TierAdmin and TierBaseline: smaller is asked first; then by Name
	Subject  Selector // whom it is for
	// Isolates, by direction: what no rule of TierNamespace allows its subjects is denied. TierNamespace only.
	Isolates [2]bool
	Rules    []OneSidedRule // in the order in which they are asked
}

// OneSidedRule is one rule of a OneSided. Its identity is the policy's name, a slash and the rule's.
type OneSidedRule struct {
	Name      string
	Direction Direction
	Action    Action
	Peers     []Peer      // or-ed; nobody if empty
	Ports     []PortRange // or-ed with Named; a rule without either means no port
	Named     []NamedPort
	Pos       Position
}

// NamedPort is a port by the name that the destination gives it. Which number it is, if any, differs from workload to
// workload: see PortLabel.
type NamedPort struct {
	Proto Proto
	Name  string
}

// PortLabelPrefix starts the keys of the system labels that carry the named ports of a workload.
const PortLabelPrefix = SystemLabelPrefix + "port."

// PortLabel returns the key of the system label whose value is the number of the port of that name, so that workloads
// which differ in a named port differ in a label.
func (n NamedPort) PortLabel() string { return PortLabelPrefix + n.Proto.String() + "." + n.Name }

// NamespaceLabelPrefix starts the keys under which a pod carries the labels of its namespace, as in
// "namespace:kubernetes.io/metadata.name". Selectors may name such keys; documents cannot set them.
const NamespaceLabelPrefix = "namespace:"

// PodLabel is the system label of everything that a pod manifest declares: PodValue for a pod with an address of its
// own, HostPodValue for one that uses its node's network, to which Kubernetes applies no policy.
const (
	PodLabel     = SystemLabelPrefix + "pod"
	PodValue     = "pod"
	HostPodValue = "host-network"
)

// DomainNetwork is the name by which Identity.Networks lists a domain: a host name, or "*." and a suffix of one or more
// labels.
func DomainNetwork(pattern string) string { return "domain:" + pattern }

// NodeLabelPrefix starts the keys under which a node, and what uses its network, carries the labels of the node beside
// labels of its own.
const NodeLabelPrefix = "node:"

// NodeLabel is the system label of the nodes of a cluster, with the value NodeValue. Pods that use their node's network
// carry it too: whoever may reach the node reaches them.
const (
	NodeLabel = SystemLabelPrefix + "node"
	NodeValue = "node"
)
