package dataplanetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// RandomHost is near with a policy that chance has made: any number of its units, policy sets of every verdict, prefixes within
// each other, single addresses that workloads share or that have a policy of their own, controllers. It goes after edges: packets are
// to addresses, ports and protocols beside which another rule holds. A policy names no processes and no host names.
type RandomHost struct {
	Policy   *hostpolicy.Policy
	Isolated []string // workloads
	number   int
	v4, v6   netip.Prefix // where most of the peers are
	peers    []model.IdentityID
	changed  []netip.Prefix // whose they are is not what it was
}

// randomUnits are units of near by the directories of their cgroups. One lies in another.
var randomUnits = map[string]string{"one": "one", "two": "two", "inner": "two/inner"}

// Units returns the cgroups of the host's units.
func (h *RandomHost) Units(b *Bed) map[string][]string {
	units := map[string][]string{}
	for _, s := range h.Policy.Subjects {
		if s.Unit != "" {
			units[s.Unit] = []string{b.Unit(randomUnits[s.Unit])}
		}
	}
	return units
}

// nearAddresses are the addresses at which near is judged.
var nearAddresses = []netip.Addr{
	netip.MustParseAddr(Near4), netip.MustParseAddr(Near4b), netip.MustParseAddr("127.0.0.1"),
	netip.MustParseAddr(Near6), netip.MustParseAddr(Near6b), netip.MustParseAddr("::1"),
}

// MakeRandomHost makes one. Its number goes into the names of its rules, of which no two of one number are alike, and into
// most of its peers' addresses.
func MakeRandomHost(r *rand.Rand, number int) *RandomHost {
	h := &RandomHost{number: number}
	h.v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + number>>8%64), byte(number), 0, 0}), 16)
	h.v6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(number >> 8), byte(number), 9}), 32)
	for i := range 2 + r.IntN(8) {
		h.peers = append(h.peers, model.IdentityID(0x1_0000_0000*r.IntN(2)+0x100*(1+r.IntN(3))+i))
	}
	slices.Sort(h.peers)
	h.peers = slices.Compact(h.peers)
	p := &hostpolicy.Policy{Host: "near"}
	h.Policy = p
	h.addresses(r)
	for i := range 1 + r.IntN(4) {
		p.Sets = append(p.Sets, h.set(r, i))
	}
	slices.SortFunc(p.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
	subject := func(name, unit string) {
		s := hostpolicy.Subject{
			Workload: name, Unit: unit, Identity: h.peer(r), Set: h.anySet(r), Isolation: h.anySet(r),
			OnAgentLoss: []model.OnAgentLoss{model.LossKeep, model.LossOpen, model.LossClosed}[r.IntN(3)],
		}
		for _, a := range nearAddresses {
			if r.IntN(5) == 0 {
				s.Local = append(s.Local, hostpolicy.LocalSet{Addr: a, Identity: h.peer(r), Set: h.anySet(r)})
			}
		}
		slices.SortFunc(s.Local, func(a, b hostpolicy.LocalSet) int { return a.Addr.Compare(b.Addr) })
		p.Subjects = append(p.Subjects, s)
		if r.IntN(6) == 0 {
			h.Isolated = append(h.Isolated, name)
		}
	}
	subject("near", "")
	for _, unit := range slices.Sorted(maps.Keys(randomUnits)) {
		if r.IntN(4) != 0 {
			subject("near/"+unit, unit)
		}
	}
	for range r.IntN(3) {
		p.Controllers = append(p.Controllers, netip.AddrPortFrom([]netip.Addr{h.remote(r), nearAddresses[r.IntN(6)]}[r.IntN(2)], h.port(r)))
	}
	slices.SortFunc(p.Controllers, netip.AddrPort.Compare)
	p.Controllers = slices.Compact(p.Controllers)
	return h
}

func (h *RandomHost) anySet(r *rand.Rand) hostpolicy.PolicySetID {
	return h.Policy.Sets[r.IntN(len(h.Policy.Sets))].ID
}

// peer returns an identity of some peer, which no policy set need tell apart.
func (h *RandomHost) peer(r *rand.Rand) model.IdentityID { return h.peers[r.IntN(len(h.peers))] }

// addresses makes prefixes in prefixes down to single addresses.
func (h *RandomHost) addresses(r *rand.Rand) {
	all := map[netip.Prefix]hostpolicy.Address{}
	put := func(p netip.Prefix) {
		a := hostpolicy.Address{Prefix: p.Masked(), Identity: h.peer(r)}
		if r.IntN(8) == 0 {
			a.Identity = nobody
		}
		a.Shared = p.IsSingleIP() && r.IntN(3) == 0
		all[a.Prefix] = a
	}
	for _, root := range []netip.Prefix{h.v4, h.v6} {
		in := []netip.Prefix{root}
		for range r.IntN(24) {
			around := in[r.IntN(len(in))]
			most := around.Addr().BitLen()
			p, err := inside(r, around).Prefix(min(most, around.Bits()+1+r.IntN(10)*r.IntN(3)))
			if err != nil {
				panic(err) // a mistake in the suite itself
			}
			if r.IntN(4) == 0 {
				p = netip.PrefixFrom(p.Addr(), most)
			}
			put(p)
			in = append(in, p)
		}
		switch r.IntN(4) {
		case 0:
			put(root)
		case 1:
			put(netip.PrefixFrom(root.Addr(), 0))
		case 2:
			put(netip.PrefixFrom(root.Addr(), 1+r.IntN(7)))
		}
	}
	for _, a := range nearAddresses {
		if r.IntN(2) == 0 {
			put(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(all), func(a, b netip.Prefix) int {
		return hostpolicy.CompareAddresses(&hostpolicy.Address{Prefix: a}, &hostpolicy.Address{Prefix: b})
	}) {
		h.Policy.Addresses = append(h.Policy.Addresses, all[p])
	}
	owners := map[hostpolicy.PortOwner]model.IdentityID{}
	for _, a := range h.Policy.Addresses {
		for range r.IntN(3) {
			if a.Prefix.IsSingleIP() && (a.Shared || r.IntN(4) == 0) {
				owners[hostpolicy.PortOwner{Addr: a.Prefix.Addr(), Proto: []model.Proto{model.ProtoTCP, model.ProtoUDP}[r.IntN(2)], Port: h.port(r)}] = h.peer(r)
			}
		}
	}
	for o, id := range owners {
		o.Identity = id
		h.Policy.Ports = append(h.Policy.Ports, o)
	}
	slices.SortFunc(h.Policy.Ports, func(a, b hostpolicy.PortOwner) int { return hostpolicy.ComparePorts(&a, &b) })
}

// inside returns an address of the prefix, often its first or last.
func inside(r *rand.Rand, p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	fill := r.IntN(3)
	for i := range b {
		host := byte(1<<min(max(8*(i+1)-p.Bits(), 0), 8) - 1)
		switch fill {
		case 1:
			b[i] |= host
		case 2:
			b[i] |= host & byte(r.Uint32())
		}
	}
	a, _ := netip.AddrFromSlice(b) // of a length that fits
	return a
}

// set makes a policy set.
func (h *RandomHost) set(r *rand.Rand, number int) hostpolicy.PolicySet {
	var s hostpolicy.PolicySet
	for _, dir := range model.Directions {
		t := s.Table(dir)
		for i := range 1 + r.IntN(4) {
			t.Funcs = append(t.Funcs, h.function(r, fmt.Sprintf("p%d/s%d-%s-f%d", h.number, number, dir, i)))
		}
		for _, peer := range h.peers {
			if r.IntN(3) != 0 {
				t.Peers = append(t.Peers, hostpolicy.PeerFunc{Peer: peer, Func: uint32(r.IntN(len(t.Funcs)))})
			}
		}
	}
	s.ID = s.ContentID()
	return s
}

// randomProtos are those that policy names.
var randomProtos = []model.Proto{model.ProtoICMP, model.ProtoTCP, model.ProtoUDP, model.ProtoICMPv6, model.ProtoSCTP}

// function makes one of protocol and port.
func (h *RandomHost) function(r *rand.Rand, name string) hostpolicy.Func {
	var f hostpolicy.Func
	cell := func(on model.PortRange) {
		v := []model.Verdict{model.Allow, model.Allow, model.Deny, model.Deny, model.WouldDeny}[r.IntN(5)]
		f = append(f, hostpolicy.Cell{Ports: on, Verdict: v, Rule: model.RuleID(fmt.Sprintf("%s-%s-%d", name, v, len(f)))})
	}
	cell(model.AnyPort)
	for _, proto := range randomProtos {
		if r.IntN(3) == 0 {
			continue
		}
		edges := []int{0, 65536}
		for range r.IntN(5) {
			p := int(h.port(r))
			if proto.IsICMP() {
				p = int(randomTypes[proto][r.IntN(len(randomTypes[proto]))])<<8 + r.IntN(3)*r.IntN(256)
			}
			if edges = append(edges, p); r.IntN(2) == 0 {
				edges = append(edges, min(p+1, 65536))
			}
		}
		slices.Sort(edges)
		edges = slices.Compact(edges)
		for i := range edges[:len(edges)-1] {
			cell(model.PortRange{Proto: proto, Lo: uint16(edges[i]), Hi: uint16(edges[i+1] - 1)})
		}
	}
	return f
}

// randomTypes are types of ICMP that begin a flow.
var randomTypes = map[model.Proto][]uint8{model.ProtoICMP: {8, 13, 17}, model.ProtoICMPv6: {128, 139}}

func (h *RandomHost) port(r *rand.Rand) uint16 {
	if r.IntN(2) == 0 {
		return []uint16{0, 1, 22, 53, 67, 68, 80, 255, 256, 443, 546, 547, 548, 4095, 4096, 8443, 32767, 32768, 65534, 65535}[r.IntN(20)]
	}
	return uint16(r.Uint32())
}

// remote returns an address of somebody else: in or just beside what policy names.
func (h *RandomHost) remote(r *rand.Rand) netip.Addr {
	for {
		a := inside(r, []netip.Prefix{h.v4, h.v6}[r.IntN(2)])
		if len(h.Policy.Addresses) > 0 && r.IntN(8) != 0 {
			a = inside(r, h.Policy.Addresses[r.IntN(len(h.Policy.Addresses))].Prefix)
		}
		if len(h.changed) > 0 && r.IntN(8) == 0 {
			a = inside(r, h.changed[r.IntN(len(h.changed))])
		}
		if n := r.IntN(8); n == 0 {
			a = a.Next()
		} else if n == 1 {
			a = a.Prev()
		}
		if a.IsValid() && ordinary(a) {
			return a
		}
	}
}

// ordinary reports whether a host with that address can be elsewhere, and talk.
func ordinary(a netip.Addr) bool {
	if slices.Contains(nearAddresses, a) || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Is4In6() {
		return false
	}
	return !a.Is4() || a.As4()[0] != 0 && a.As4()[0] < 224 && !netip.MustParsePrefix("10.77.0.0/16").Contains(a)
}

// Packet makes the first packet of a flow that somebody may begin: of TCP, UDP, SCTP, ICMP or a protocol without ports. Of what is on this
// host at both ends only TCP and UDP have an end that is known.
func (h *RandomHost) Packet(r *rand.Rand) hostpolicy.Packet {
	p := h.Policy
	s := &p.Subjects[r.IntN(len(p.Subjects))]
	pkt := hostpolicy.Packet{Workload: s.Workload, Dir: model.Directions[r.IntN(2)], Remote: h.remote(r)}
	if r.IntN(4) == 0 {
		pkt.RemoteWorkload = p.Subjects[r.IntN(len(p.Subjects))].Workload
		pkt.Remote = nearAddresses[r.IntN(len(nearAddresses))]
	}
	protos := []model.Proto{model.ProtoTCP, model.ProtoTCP, model.ProtoUDP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP, 2, 47, 253}
	pkt.Proto, pkt.Port = protos[r.IntN(len(protos))], h.port(r)
	if r.IntN(4) != 0 { // what a rule names
		t := p.Set(s.Set).Table(pkt.Dir)
		if slices.Contains(h.Isolated, s.Workload) {
			t = p.Set(s.Isolation).Table(pkt.Dir)
		}
		f := t.Funcs[r.IntN(len(t.Funcs))]
		if c := f[r.IntN(len(f))].Ports; c.Proto != model.ProtoAny {
			pkt.Proto = c.Proto
			pkt.Port = []uint16{c.Lo, c.Hi, c.Lo - 1, c.Hi + 1, c.Lo + (c.Hi-c.Lo)/2}[r.IntN(5)]
		}
	}
	if len(p.Ports) > 0 && r.IntN(10) == 0 {
		o := p.Ports[r.IntN(len(p.Ports))]
		if pkt.RemoteWorkload == "" && ordinary(o.Addr) || pkt.RemoteWorkload != "" && slices.Contains(nearAddresses, o.Addr) {
			pkt.Remote, pkt.Proto, pkt.Port = o.Addr, o.Proto, o.Port
		}
	}
	if len(p.Controllers) > 0 && r.IntN(10) == 0 {
		c := p.Controllers[r.IntN(len(p.Controllers))]
		pkt.Proto, pkt.Port = model.ProtoTCP, c.Port()
		if pkt.RemoteWorkload == "" && ordinary(c.Addr()) {
			pkt.Dir, pkt.Remote = model.Egress, c.Addr()
		}
	}
	here := func(a netip.Addr) bool {
		return a.Is4() == pkt.Remote.Is4() && (pkt.RemoteWorkload != "" && a.IsLoopback() == pkt.Remote.IsLoopback() || pkt.RemoteWorkload == "" && !a.IsLoopback())
	}
	for pkt.Local = nearAddresses[r.IntN(len(nearAddresses))]; !here(pkt.Local); {
		pkt.Local = nearAddresses[r.IntN(len(nearAddresses))]
	}
	switch {
	case pkt.RemoteWorkload != "" && pkt.Proto != model.ProtoTCP:
		pkt.Proto = model.ProtoUDP
	case pkt.Proto.IsICMP():
		pkt.Proto = model.ProtoICMP
		if pkt.Local.Is6() {
			pkt.Proto = model.ProtoICMPv6
		}
		if types := randomTypes[pkt.Proto]; !slices.Contains(types, uint8(pkt.Port>>8)) {
			pkt.Port = model.ICMPPort(types[r.IntN(len(types))], uint8(pkt.Port))
		}
	case !slices.Contains(randomProtos, pkt.Proto):
		pkt.Port = 0
	}
	if _, always := essential.Match(pkt.Proto, pkt.Port); always && pkt.Proto.IsICMP() {
		pkt.Port = model.ICMPPort(randomTypes[pkt.Proto][0], 0)
	}
	return pkt
}

// Change makes the policy another one in which most is as it was: some addresses are somebody else's or nobody's, the host has
// another policy set, a unit may go.
func (h *RandomHost) Change(r *rand.Rand) {
	p := *h.Policy
	p.Addresses = slices.Clone(p.Addresses)
	for range 1 + r.IntN(2) {
		if n := len(p.Addresses); n > 0 {
			i := r.IntN(n)
			h.changed = append(h.changed, p.Addresses[i].Prefix)
			if r.IntN(2) == 0 {
				p.Addresses = slices.Delete(p.Addresses, i, i+1)
			} else {
				p.Addresses[i].Identity = h.peer(r)
			}
		}
	}
	p.Subjects = slices.Clone(p.Subjects)
	p.Subjects[0].Set = h.anySet(r)
	if n := len(p.Subjects); n > 2 && r.IntN(3) == 0 {
		i := 1 + r.IntN(n-1)
		p.Subjects = slices.Delete(p.Subjects, i, i+1)
	}
	h.Policy = &p
}
