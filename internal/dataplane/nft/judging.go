package nft

import (
	"fmt"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// families are IPv4 and IPv6: what loads an address of the family, and the sets that have such addresses.
var families = []struct {
	key                             uint32
	owners, controllers, identities string
}{
	{ctSrcIP, "owners4", setControllers4, setIdentities4},
	{ctSrcIP6, "owners6", setControllers6, setIdentities6},
}

// addresses writes the maps that say whose an address is, and which are not in the policy sets.
func (w *writer) addresses() {
	m := w.content.addresses
	for _, h := range []hosts{m.hosts4, m.hosts6} {
		w.sets[h.baseID] = h.base
		if h.over != nil {
			w.sets[h.overID] = h.over
		}
	}
	w.sets["owners4"], w.sets["owners6"] = m.owners4, m.owners6
	w.sets[m.nets4Name], w.sets[m.nets6Name] = m.nets4, m.nets6
	four := w.set(setControllers4, &set{fields: []field{typeAddress4, typePort}})
	six := w.set(setControllers6, &set{fields: []field{typeAddress6, typePort}})
	for _, c := range w.content.policy.Controllers {
		e := element{key: string(append(append(c.Addr().AsSlice(), be16(c.Port())...), 0, 0))}
		if c.Addr().Is4() {
			four.put(e)
		} else {
			six.put(e)
		}
	}
	ids := w.set(setIdentities, &set{fields: []field{typeNumber}, value: typeIdentity})
	ids4 := w.set(setIdentities4, &set{fields: []field{typeNumber, typeAddress4}, value: typeIdentity})
	ids6 := w.set(setIdentities6, &set{fields: []field{typeNumber, typeAddress6}, value: typeIdentity})
	for _, s := range w.content.subjects {
		for _, dir := range model.Directions {
			_, is := w.layout.end(dir, s.number)
			ids.put(element{key: string(is), value: string(be64(uint64(s.Identity)))})
			for _, l := range s.Local {
				e := element{key: string(append(is[:4:4], l.Addr.AsSlice()...)), value: string(be64(uint64(l.Identity)))}
				if l.Addr.Is4() {
					ids4.put(e)
				} else {
					ids6.put(e)
				}
			}
		}
	}
	for _, dir := range model.Directions {
		marked := w.set("marked-"+letter(dir), &set{fields: []field{typeNumber}, value: verdicts})
		local := w.set("local-"+letter(dir), &set{fields: []field{typeNumber}, value: verdicts})
		for _, s := range w.content.subjects {
			_, is := w.layout.end(dir, s.number)
			marked.put(element{key: string(is), verdict: goTo(fmt.Sprintf("%s%d", letter(dir), s.number))})
			local.put(element{key: string(is), verdict: jump(fmt.Sprintf("l%s%d", letter(dir), s.number))})
		}
		for _, depth := range w.content.depths() {
			for _, kind := range []string{letter(dir), "m" + letter(dir)} {
				w.set(unitsName(kind, depth), &set{fields: []field{typeCgroup}, value: verdicts})
			}
		}
		for id, u := range w.content.units {
			for _, kind := range []string{letter(dir), "m" + letter(dir)} {
				w.sets[unitsName(kind, u.depth)].put(element{key: string(ne64(id)), verdict: goTo(fmt.Sprintf("%s%d", kind, u.subject))})
			}
		}
	}
}

// subject writes the chains of one subject.
func (w *writer) subject(s *subject) {
	for _, e := range ends {
		w.subjectEnd(s, e)
	}
	for _, dir := range model.Directions { // that only note whose the end of a flow is
		c := w.chain(fmt.Sprintf("m%s%d", letter(dir), s.number))
		c.add(w.note(s, dir)...)
	}
}

// note notes in the connection's mark whose that end is. If it was somebody else's, what was decided does not count.
func (w *writer) note(s *subject, dir model.Direction) []expression {
	mask, is := w.layout.end(dir, s.number)
	return []expression{
		loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(mask), ne32(0)), differs(mark, is),
		loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(^(mask | w.layout.generation())), is), setFlowMark(mark),
	}
}

func (w *writer) subjectEnd(s *subject, e end) {
	c := w.chain(fmt.Sprintf("%s%d", e, s.number))
	if e.local {
		mask, is := w.layout.end(opposite(e.dir), s.number)
		c.add(loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(mask), ne32(0)), equal(mark, is), goTo("allow-"+e.String()).expression())
	} else {
		c.add(w.note(s, e.dir)...)
		c.always(jump("current"))
		if cur := w.chain("current"); len(cur.rules) == 0 {
			cur.add(join(w.current(), one(accept.expression()))...)
		}
	}
	allow := goTo("allow-" + e.String()).expression()
	c.add(loadMeta(unix.NFT_META_L4PROTO, scratch), loadTuple(unix.NFT_CT_PROTO_SRC, ctReply, scratch+1), find(setEssentialPorts, scratch), allow)
	if e.dir == model.Ingress || s.number == hostNumber {
		for _, f := range families {
			if len(w.sets[f.controllers].members) == 0 {
				continue
			}
			c.add(join(isProto(model.ProtoTCP), []expression{
				loadTuple(f.key, ctReply, address), loadTuple(unix.NFT_CT_PROTO_SRC, ctReply, behind(f.key)), find(f.controllers, address), allow,
			})...)
		}
	}
	if chain, ok := w.content.whenLost(s); ok {
		c.add(loadValue(theKey, scratch), miss(setAlive, scratch), goTo(chain+e.String()).expression())
	}
	c.always(goTo(fmt.Sprintf("switch-%s%d", e, s.number)))

	kind := "policy"
	if s.isolated {
		kind = "isolation"
	}
	w.chain(fmt.Sprintf("switch-%s%d", e, s.number)).always(goTo(fmt.Sprintf("%s-%s%d", kind, e, s.number)))
	w.chain(fmt.Sprintf("isolation-%s%d", e, s.number)).always(goTo(setChain(s.Isolation, e)))
	own := w.chain(fmt.Sprintf("policy-%s%d", e, s.number))
	for _, l := range s.Local {
		key := uint32(ctSrcIP)
		if l.Addr.Is6() {
			key = ctSrcIP6
		}
		direction := uint8(ctOriginal) // where this end's address is in the connection
		if e.dir == model.Ingress {
			direction = ctReply
		}
		own.add(loadTuple(key, direction, address), equal(address, l.Addr.AsSlice()), goTo(setChain(l.Set, e)).expression())
	}
	own.always(goTo(setChain(s.Set, e)))
}

// behind returns the register behind an address of that family.
func behind(key uint32) register {
	if key == ctSrcIP6 {
		return address + 4
	}
	return address + 1
}

func setChain(id hostpolicy.PolicySetID, e end) string {
	return fmt.Sprintf("set-%016x-%s", uint64(id), e)
}

// portOf says, for a kind of protocol, where a connection's destination port is.
type portOf struct {
	proto     model.Proto // ProtoAny: every other
	key       uint32
	direction uint8
}

var portsOf = []portOf{
	{model.ProtoICMP, unix.NFT_CT_PROTO_DST, ctOriginal}, // type and code
	{model.ProtoICMPv6, unix.NFT_CT_PROTO_DST, ctOriginal},
	{model.ProtoAny, unix.NFT_CT_PROTO_SRC, ctReply}, // where the answers come from, also behind NAT
}

// policySet writes a policy set's maps and the chains that look into them.
func (w *writer) policySet(set *hostpolicy.PolicySet) {
	for _, dir := range model.Directions {
		w.sets[peersName(set.ID, dir)], w.sets[cellsName(set.ID, dir)] = lowerTable(set.Table(dir))
	}
	for _, e := range ends {
		c := w.chain(setChain(set.ID, e))
		for _, p := range portsOf {
			for _, peer := range w.peers(e, p) {
				var steps []expression
				if p.proto != model.ProtoAny {
					steps = isProto(p.proto)
				}
				steps = append(steps, peer...)
				steps = append(steps, look(peersName(set.ID, e.dir), identity, function))
				steps = append(steps, loadMeta(unix.NFT_META_L4PROTO, protocol), loadTuple(p.key, p.direction, port),
					look(cellsName(set.ID, e.dir), function, outcome), decide("verdict-"+e.String(), outcome))
				c.add(steps...)
			}
		}
		// Not reached: the last of the above has an answer for every address.
		c.always(goTo("deny-" + e.String()))
	}
}

// peers returns the ways to find the identity of the other end, the first that has an answer counts.
func (w *writer) peers(e end, p portOf) (ways [][]expression) {
	if e.local {
		mask, _ := w.layout.end(opposite(e.dir), 0)
		who := []expression{loadFlow(unix.NFT_CT_MARK, address), combine(address, ne32(mask), ne32(0))}
		for _, f := range families {
			if len(w.sets[f.identities].members) > 0 {
				ways = append(ways, join(who, []expression{loadTuple(f.key, remote(e.dir), address+1), look(f.identities, address, identity)}))
			}
		}
		ways = append(ways, join(who, one(look(setIdentities, address, identity))))
	}
	m := w.content.addresses
	nets := map[uint32]string{ctSrcIP: m.nets4Name, ctSrcIP6: m.nets6Name}
	single := map[uint32]hosts{ctSrcIP: m.hosts4, ctSrcIP6: m.hosts6}
	for _, f := range families {
		load := loadTuple(f.key, remote(e.dir), address)
		if e.dir == model.Egress && p.proto == model.ProtoAny && len(w.sets[f.owners].members) > 0 {
			ways = append(ways, []expression{load, loadMeta(unix.NFT_META_L4PROTO, behind(f.key)),
				loadTuple(p.key, p.direction, behind(f.key)+1), look(f.owners, address, identity)})
		}
		if h := single[f.key]; h.over != nil {
			ways = append(ways, []expression{load, look(h.overID, address, identity)})
		}
		ways = append(ways, []expression{load, look(single[f.key].baseID, address, identity)})
		ways = append(ways, []expression{loadValue([]byte{0, 0, 0, 0}, zeroed), load, look(nets[f.key], zeroed, identity)})
	}
	return ways
}

// remote returns in which direction of a connection the other end's address is the source.
func remote(dir model.Direction) uint8 {
	if dir == model.Egress {
		return ctReply
	}
	return ctOriginal
}
