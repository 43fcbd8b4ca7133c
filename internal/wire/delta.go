package wire

import (
	"errors"
	"fmt"
	"slices"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/hostpolicy"
)

// Errors of ApplyDelta. The way out of both is a snapshot.
var (
	// ErrBase says that the delta starts from another policy than the one that is here.
	ErrBase = errors.New("the delta starts from another policy")
	// ErrResult says that the delta did not lead to the policy that it promised.
	ErrResult = errors.New("the delta does not lead to the policy that it promises")
)

// Diff returns what turns old into new; both are of one host. Equal policies give a delta that changes the revision
// alone.
func Diff(old, new *hostpolicy.Policy) *pb.HostPolicyDelta {
	s := hostpolicy.Between(old, new)
	s.Base, s.Result = old.Hash(), new.Hash()
	return StepToProto(s)
}

// StepToProto returns the step as a delta message. It shares no memory with s that anybody writes to.
func StepToProto(s *hostpolicy.Step) *pb.HostPolicyDelta {
	d := &pb.HostPolicyDelta{
		Revision: s.Revision, Base: s.Base[:], Result: s.Result[:], RemoveSubjects: s.GoneSubjects,
		UpsertSubjects: each(s.Subjects, subjectToProto),
		UpsertSets:     each(s.Sets, setToProto),
	}
	d.UpsertAddresses, d.UpsertPorts = blocksToProto(s.Upsert)
	d.RemoveAddresses, d.RemovePorts = blocksToProto(s.Remove)
	for _, id := range s.GoneSets {
		d.RemoveSets = append(d.RemoveSets, uint64(id))
	}
	if s.ControllersChanged {
		d.Controllers, d.ControllersChanged = controllersToProto(s.Controllers), true
	}
	if s.DomainsChanged {
		d.Domains, d.DomainsChanged = domainsToProto(s.Domains), true
	}
	return d
}

// each turns every entry of a list into a message; an empty list gives nil.
func each[T, M any](list []T, to func(*T) M) []M {
	if len(list) == 0 {
		return nil
	}
	out := make([]M, len(list))
	for i := range list {
		out[i] = to(&list[i])
	}
	return out
}

// blocksToProto turns every entry of the blocks into a message.
func blocksToProto(blocks []*hostpolicy.Block) (addresses []*pb.Address, ports []*pb.PortOwner) {
	var n, m int
	for _, b := range blocks {
		n, m = n+len(b.Addresses), m+len(b.Ports)
	}
	addresses, ports = slices.Grow(addresses, n), slices.Grow(ports, m)
	for a := range hostpolicy.Addresses(blocks) {
		addresses = append(addresses, addressToProto(a))
	}
	for o := range hostpolicy.Ports(blocks) {
		ports = append(ports, portToProto(o))
	}
	return addresses, ports
}

// ApplyDelta returns what the delta makes of base, and leaves base as it is. The result is checked whole and has
// the hash that the delta promises. Errors wrap ErrBase or ErrResult where a snapshot is the way out; others say
// that the message is malformed.
func ApplyDelta(base *hostpolicy.Policy, d *pb.HostPolicyDelta) (*hostpolicy.Policy, error) {
	if d == nil {
		return nil, errors.New("the message holds no delta")
	}
	want, err := HashFromProto(d.GetBase())
	if err != nil {
		return nil, err
	}
	if base == nil {
		return nil, fmt.Errorf("%w: it starts from %s, here is none", ErrBase, want.Short())
	}
	if got := base.Hash(); got != want {
		return nil, fmt.Errorf("%w: it starts from %s, here is %s", ErrBase, want.Short(), got.Short())
	}
	if want, err = HashFromProto(d.GetResult()); err != nil {
		return nil, err
	}
	p, err := patch(base, d)
	if err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrResult, err)
	}
	if got := p.Hash(); got != want {
		return nil, fmt.Errorf("%w: it promises %s and gives %s", ErrResult, want.Short(), got.Short())
	}
	return p, nil
}

func patch(base *hostpolicy.Policy, d *pb.HostPolicyDelta) (*hostpolicy.Policy, error) {
	p := &hostpolicy.Policy{Revision: d.GetRevision(), Host: base.Host, Controllers: base.Controllers, Domains: base.Domains}

	subjects, err := convert("subject", d.GetUpsertSubjects(), subjectFromProto)
	if err != nil {
		return nil, err
	}
	p.Subjects = merge(base.Subjects, subjects, d.GetRemoveSubjects(), hostpolicy.CompareSubjects,
		func(s *hostpolicy.Subject) string { return s.Workload })

	sets, err := convert("policy set", d.GetUpsertSets(), setFromProto)
	if err != nil {
		return nil, err
	}
	p.Sets = merge(base.Sets, sets, d.GetRemoveSets(), hostpolicy.CompareSets,
		func(s *hostpolicy.PolicySet) uint64 { return uint64(s.ID) })

	addresses, err := convert("address", d.GetUpsertAddresses(), addressFromProto)
	if err != nil {
		return nil, err
	}
	gone, err := convert("address", d.GetRemoveAddresses(), addressFromProto)
	if err != nil {
		return nil, err
	}
	prefix := func(a *hostpolicy.Address) hostpolicy.Address { return hostpolicy.Address{Prefix: a.Prefix} }
	p.Addresses = merge(base.Addresses, addresses, keys(gone, prefix), hostpolicy.CompareAddresses, prefix)

	ports, err := convert("port owner", d.GetUpsertPorts(), portFromProto)
	if err != nil {
		return nil, err
	}
	closed, err := convert("port owner", d.GetRemovePorts(), portFromProto)
	if err != nil {
		return nil, err
	}
	port := func(o *hostpolicy.PortOwner) hostpolicy.PortOwner {
		return hostpolicy.PortOwner{Addr: o.Addr, Proto: o.Proto, Port: o.Port}
	}
	p.Ports = merge(base.Ports, ports, keys(closed, port), hostpolicy.ComparePorts, port)

	if d.GetControllersChanged() {
		if p.Controllers, err = controllersFromProto(d.GetControllers()); err != nil {
			return nil, err
		}
	}
	if d.GetDomainsChanged() {
		if p.Domains, err = domainsFromProto(d.GetDomains()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func keys[T any, K comparable](list []T, key func(*T) K) []K {
	out := make([]K, len(list))
	for i := range list {
		out[i] = key(&list[i])
	}
	return out
}

// merge returns base without what upserts replace or removes name, with the upserts, in order. Where nothing
// changes it returns base itself.
func merge[T any, K comparable](base, upserts []T, removes []K, order func(a, b *T) int, key func(*T) K) []T {
	if len(upserts) == 0 && len(removes) == 0 {
		return base
	}
	drop := make(map[K]bool, len(upserts)+len(removes))
	for _, k := range removes {
		drop[k] = true
	}
	for i := range upserts {
		drop[key(&upserts[i])] = true
	}
	added := slices.Clone(upserts)
	slices.SortFunc(added, func(a, b T) int { return order(&a, &b) })

	var out []T
	if n := len(base) + len(added) - len(removes); n > 0 {
		out = make([]T, 0, n)
	}
	for i := range base {
		if drop[key(&base[i])] {
			continue
		}
		for len(added) > 0 && order(&added[0], &base[i]) < 0 {
			out = append(out, added[0])
			added = added[1:]
		}
		out = append(out, base[i])
	}
	if out = append(out, added...); len(out) == 0 {
		return nil
	}
	return out
}
