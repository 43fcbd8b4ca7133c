package importer

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// Requirements and peers that policies of every kind are made of. The labels are those that kube.Load gives pods and
// nodes.
var (
	isPod      = model.Requirement{Key: model.PodLabel, Op: model.OpIn, Values: []string{model.PodValue}}
	isNode     = model.Requirement{Key: model.NodeLabel, Op: model.OpIn, Values: []string{model.NodeValue}}
	ofManifest = model.Requirement{Key: model.PodLabel, Op: model.OpExists} // a pod, on whichever network

	// inCluster is every workload that a manifest declares.
	inCluster = []model.Peer{workloads(ofManifest), workloads(isNode)}
	everybody = []model.Peer{{Kind: model.PeerAny}}
	anyPort   = []model.PortRange{model.AnyPort}

	allIPv4 = netip.MustParsePrefix("0.0.0.0/0")
	allIPv6 = netip.MustParsePrefix("::/0")
)

// namespaceKey is the key under which a pod carries the name of its namespace.
const namespaceKey = model.NamespaceLabelPrefix + "kubernetes.io/metadata.name"

func workloads(rs ...model.Requirement) model.Peer {
	return model.Peer{Kind: model.PeerWorkloads, Workloads: model.NewSelector(slices.Clone(rs)...)}
}

func addresses(p netip.Prefix, except ...netip.Prefix) model.Peer {
	return model.Peer{Kind: model.PeerCIDR, CIDR: p, Except: except}
}

func is(key string, values ...string) model.Requirement {
	values = slices.Clone(values)
	slices.Sort(values)
	return model.Requirement{Key: key, Op: model.OpIn, Values: slices.Compact(values)}
}

// not returns what is met exactly where the requirement is not.
func not(r model.Requirement) model.Requirement {
	r.Op = [...]model.Op{
		model.OpIn: model.OpNotIn, model.OpNotIn: model.OpIn, model.OpExists: model.OpNotExists, model.OpNotExists: model.OpExists,
	}[r.Op]
	return r
}

// less returns the range without the exceptions: the exceptions that count, and whether anything is left.
func less(p netip.Prefix, except []netip.Prefix) ([]netip.Prefix, bool) {
	var out []netip.Prefix
	for _, x := range except {
		switch {
		case !p.Overlaps(x):
		case x.Bits() <= p.Bits():
			return nil, false
		default:
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Compare(b) })
	return slices.Compact(out), true
}

func domainPeer(name string) model.Peer { return model.Peer{Kind: model.PeerDomain, Domain: name} }
