package prove

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// What could ever be reached over many hops is decided in a world in which everything that could exist does, as far as policy
// can tell it apart: of each class of label sets two workloads that have an address in every cell, and two that have none,
// beside what is taken as it is today. Two, since a way may lead from one to another of the same class and needs no third; in
// every cell, since a workload may have several addresses, and one that has fewer can do less. Whatever way there could be
// leads over classes and cells, so there is one in this world too, and each of its ways could be.
//
// The cells of the real address space may be too small for that many workloads, so each is given room of its own.

// mostImagined bounds the workloads of the world, times the cells that their addresses are in.
const mostImagined = 4000

// imagined is such a world.
type imagined struct {
	*space
	world       *compile.World
	cells       []reach.Cell      // of the real addresses, without those that are found by a name
	kind        map[string]int    // family and networks to the cell
	index       []int             // by cell: its number among those of its family
	used        []uint32          // by cell: addresses given away
	relevant    map[string]bool   // networks and literal CIDRs that count
	controllers []netip.AddrPort  // at workloads of today
	names       map[string]string // networks that stand for literal CIDRs, to those
	today       map[string]string // workloads that are as one of today, to its name
	could       map[string]bool   // workloads that could be
	inv         model.Inventory
}

// imagine makes the world for the guardrails over many hops. Where it would be too large, why says so.
func (s *space) imagine(now *reach.Universe) (im *imagined, why string) {
	im = &imagined{
		space: s, kind: map[string]int{}, names: map[string]string{}, today: map[string]string{}, could: map[string]bool{},
	}
	im.relevant = im.networks()
	for _, c := range s.cells {
		if c.Domain != "" {
			continue
		}
		c.Networks = im.among(c.Networks)
		key := cellKey(c.Addr.Is4(), c.Networks)
		if _, known := im.kind[key]; known {
			continue // a controller answers there: not at workloads that could be
		}
		family := 0
		for i := range im.cells {
			if im.cells[i].Addr.Is4() == c.Addr.Is4() {
				family++
			}
		}
		im.kind[key] = len(im.cells)
		im.cells, im.index, im.used = append(im.cells, c), append(im.index, family), append(im.used, 0)
	}
	most := mostImagined / (len(im.cells) + 1)
	sets, ok := s.labelClasses(im.selectors(), most)
	if !ok {
		return nil, fmt.Sprintf("more than %d classes of label sets, at %d kinds of addresses each", most, len(im.cells)+1)
	}
	slices.SortStableFunc(sets, func(a, b model.Labels) int { return len(a) - len(b) }) // the simplest are found first
	docs := im.documents()
	for n, labels := range sets {
		im.addClass(n, labels)
	}
	im.addToday(now)
	slices.SortFunc(im.inv.Instances, func(a, b model.Instance) int { return strings.Compare(a.Name, b.Name) })
	w, err := compile.Compile(docs, &im.inv, compile.Options{
		Now: s.world.Options().Now, MaxCells: s.world.Options().MaxCells, Controllers: im.controllers,
	})
	if err != nil {
		return nil, "the policy cannot be compiled for all of them: " + err.Error()
	}
	im.world = w
	return im, ""
}

func cellKey(is4 bool, networks []string) string {
	return fmt.Sprint(is4) + "\x00" + strings.Join(networks, "\x00")
}

// networks lists the networks and literal CIDRs that rules and guardrails over many hops name, or that have a purpose.
func (im *imagined) networks() map[string]bool {
	out := map[string]bool{}
	for _, m := range im.matches {
		for i := range m.Terms {
			if m.Terms[i].Selector == nil {
				out[m.Terms[i].Network] = true
			}
		}
	}
	for name := range im.guarded() {
		out[name] = true
	}
	for i := range im.docs.Networks {
		if im.docs.Networks[i].Purpose != model.PurposeNone {
			out[im.docs.Networks[i].Name] = true
		}
	}
	return out
}

// guarded lists the networks and literal CIDRs that guardrails over many hops name.
func (im *imagined) guarded() map[string]bool {
	out := map[string]bool{}
	for i := range im.docs.Guardrails {
		g := &im.docs.Guardrails[i]
		for _, p := range slices.Concat(g.From, g.To) {
			switch {
			case g.Via != model.ViaAny:
			case p.Kind == model.PeerNetwork:
				out[p.Network] = true
			case p.Kind == model.PeerCIDR:
				out[compile.CIDRName(&p)] = true
			}
		}
	}
	return out
}

// among returns those of the networks that count.
func (im *imagined) among(networks []string) []string {
	var out []string
	for _, n := range networks {
		if im.relevant[n] {
			out = append(out, n)
		}
	}
	return out
}

// selectors lists what tells label sets apart.
func (im *imagined) selectors() []*model.Selector {
	var out []*model.Selector
	seen := map[string]bool{}
	add := func(s *model.Selector) {
		if text := s.String(); !seen[text] {
			seen[text] = true
			out = append(out, s)
		}
	}
	for _, m := range im.matches {
		for i := range m.Terms {
			if m.Terms[i].Selector != nil {
				add(m.Terms[i].Selector)
			}
		}
	}
	for i := range im.docs.Guardrails {
		g := &im.docs.Guardrails[i]
		if g.Via != model.ViaAny {
			continue
		}
		for _, list := range [][]model.Peer{g.From, g.To} {
			for k := range list {
				if list[k].Kind == model.PeerWorkloads {
					add(&list[k].Workloads)
				}
			}
		}
	}
	if slices.ContainsFunc(im.docs.Networks, func(n model.Network) bool { return n.Purpose == model.PurposeForensic }) {
		add(&model.Selector{Requirements: []model.Requirement{{Key: model.QuarantineLabel, Op: model.OpIn, Values: []string{model.QuarantineIsolate.String()}}}})
	}
	return out
}

// room returns the addresses that stand for a cell. The first cell of a family also has all that no other one has.
func (im *imagined) room(cell int) netip.Prefix {
	n := im.index[cell]
	if im.cells[cell].Addr.Is4() {
		var a [4]byte
		binary.BigEndian.PutUint16(a[:], uint16(n+256))
		return netip.PrefixFrom(netip.AddrFrom4(a), 16)
	}
	var a [16]byte
	a[0] = 0xfd
	binary.BigEndian.PutUint32(a[2:], uint32(n))
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// address returns an address of the cell that nothing has.
func (im *imagined) address(cell int) netip.Addr {
	im.used[cell]++
	p := im.room(cell)
	b := p.Addr().AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(im.used[cell]))
	a, _ := netip.AddrFromSlice(b)
	return a
}

// documents returns the documents over the addresses of the world: every literal CIDR is a network there.
func (im *imagined) documents() *model.Documents {
	docs := *im.docs
	docs.Workloads, docs.Expectations = nil, nil
	docs.Networks = slices.Clone(docs.Networks)
	for i := range docs.Networks {
		n := &docs.Networks[i]
		n.CIDRs, n.Except = im.within(n.Name)
	}
	literal := map[string]string{}
	peers := func(list []model.Peer) []model.Peer {
		list = slices.Clone(list)
		for i := range list {
			p := &list[i]
			if p.Kind != model.PeerCIDR {
				continue
			}
			name := compile.CIDRName(p)
			network, known := literal[name]
			if !known {
				network = fmt.Sprintf("literal %d", len(literal))
				literal[name], im.names[network] = network, name
				n := model.Network{Meta: model.Meta{Name: network}}
				n.CIDRs, n.Except = im.within(name)
				docs.Networks = append(docs.Networks, n)
			}
			p.Kind, p.Network, p.CIDR, p.Except = model.PeerNetwork, network, netip.Prefix{}, nil
		}
		return list
	}
	docs.Policies = slices.Clone(docs.Policies)
	for i := range docs.Policies {
		rules := slices.Clone(docs.Policies[i].Rules)
		for k := range rules {
			rules[k].From, rules[k].To = peers(rules[k].From), peers(rules[k].To)
		}
		docs.Policies[i].Rules = rules
	}
	docs.OneSided = slices.Clone(docs.OneSided)
	for i := range docs.OneSided {
		rules := slices.Clone(docs.OneSided[i].Rules)
		for k := range rules {
			rules[k].Peers = peers(rules[k].Peers)
		}
		docs.OneSided[i].Rules = rules
	}
	docs.Guardrails = slices.Clone(docs.Guardrails)
	for i := range docs.Guardrails {
		g := &docs.Guardrails[i]
		g.From, g.To = peers(g.From), peers(g.To)
	}
	return &docs
}

// within returns the addresses of a network.
func (im *imagined) within(network string) (in, except []netip.Prefix) {
	first := [2]bool{}
	for i := range im.cells {
		if im.index[i] == 0 && slices.Contains(im.cells[i].Networks, network) {
			if im.cells[i].Addr.Is4() {
				first[0] = true
				in = append(in, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
			} else {
				first[1] = true
				in = append(in, netip.PrefixFrom(netip.IPv6Unspecified(), 0))
			}
		}
	}
	for i := range im.cells {
		all := first[1]
		if im.cells[i].Addr.Is4() {
			all = first[0]
		}
		switch has := slices.Contains(im.cells[i].Networks, network); {
		case has && !all:
			in = append(in, im.room(i))
		case !has && all:
			except = append(except, im.room(i))
		}
	}
	return in, except
}

// addClass adds the workloads of a class of label sets.
func (im *imagined) addClass(n int, labels model.Labels) {
	for i := range 4 {
		x := model.Instance{Name: fmt.Sprintf("class %05d.%d", n, i), Labels: labels, Managed: true}
		im.quarantine(&x)
		if i%2 == 0 {
			for c := range im.cells {
				x.Addresses = append(x.Addresses, im.address(c))
			}
		}
		im.could[x.Name] = true
		im.inv.Instances = append(im.inv.Instances, x)
	}
}

// quarantine gives a workload the level that its labels say. What level restrict leaves may be anything, and watch leaves all.
func (im *imagined) quarantine(x *model.Instance) {
	if x.Labels[model.QuarantineLabel] == model.QuarantineIsolate.String() {
		x.Quarantine.Level = model.QuarantineIsolate
	}
}

// addToday adds what is taken as it is today: workloads that nothing enforces on, and those of which a guardrail may speak by
// their address. Of those that policy cannot tell apart, two are enough.
func (im *imagined) addToday(now *reach.Universe) {
	networks := map[netip.Addr][]string{}
	for i := range now.Actors {
		if a := &now.Actors[i]; a.Owned() && a.Addr.IsValid() {
			networks[a.Addr] = im.among(a.Networks)
		}
	}
	named := im.guarded()
	count := map[string]int{}
	all := im.space.world.Inventory().Instances
	for i := range all {
		x := all[i]
		meant := !x.Managed
		type at struct {
			cell  int
			ports []uint16
		}
		var places []at
		for _, a := range x.Addresses {
			a = a.Unmap().WithZone("")
			p := at{cell: im.kind[cellKey(a.Is4(), networks[a])]}
			for _, c := range im.space.world.Options().Controllers {
				if c.Addr().Unmap() == a {
					p.ports = append(p.ports, c.Port())
				}
			}
			places = append(places, p)
			meant = meant || slices.ContainsFunc(networks[a], func(n string) bool { return named[n] })
		}
		key := fmt.Sprint(x.Managed, x.Labels.String(), places)
		if !meant || count[key] == 2 {
			continue
		}
		count[key]++
		name := x.Name
		x = model.Instance{Name: "today " + name, Labels: x.Labels, Managed: x.Managed}
		im.quarantine(&x)
		for _, p := range places {
			a := im.address(p.cell)
			x.Addresses = append(x.Addresses, a)
			for _, port := range p.ports {
				im.controllers = append(im.controllers, netip.AddrPortFrom(a, port))
			}
		}
		im.today[x.Name] = name
		im.inv.Instances = append(im.inv.Instances, x)
	}
}

// end names an actor of the world as people know it: a workload of today, one that could be, or a real address.
func (im *imagined) end(a *reach.Actor) (name, is string) {
	f := figure{kind: managed, addr: a.Addr, domain: a.Domain}
	f.identity.Labels = a.Labels
	for _, n := range a.Networks {
		if real, ok := im.names[n]; ok {
			n = real
		}
		f.identity.Networks = append(f.identity.Networks, n)
	}
	slices.Sort(f.identity.Networks)
	switch {
	case !a.Owned():
		f.kind = address
		if a.Domain == "" {
			f.addr = im.cells[im.kind[cellKey(a.Addr.Is4(), im.among(f.identity.Networks))]].Addr
		}
	case im.today[a.Workload] != "":
		_, is = f.name()
		return im.today[a.Workload], is
	}
	return nameIn(im.space.world.Inventory(), &f)
}
