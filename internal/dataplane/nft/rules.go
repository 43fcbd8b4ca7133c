package nft

import (
	"fmt"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// hookPriority is when our chains are asked: after those of the customary filters, before source NAT, so that what we
// tell as open is what the others have let through, and addresses are those of the sockets.
const hookPriority = 10

// Registers. A rule that judges has the peer's address from address on (behind a zero, as prefixes want it), then its
// identity, its function, protocol and port, and the verdict. What look finds takes the register before, too.
const (
	zeroed   register = 0
	address  register = 1
	scratch  register = 5
	identity register = 8 // and 9
	function register = 10
	protocol register = 11
	port     register = 12
	outcome  register = 13
	mark     register = 14
	saved    register = 15
)

// layout is where in the mark of a connection our bits are: generation, client and server, a byte each.
type layout struct{ shift uint }

func (l layout) generation() uint32      { return 0xff << l.shift }
func (l layout) client() uint32          { return 0xff << (l.shift + 8) }
func (l layout) server() uint32          { return 0xff << (l.shift + 16) }
func (l layout) all() uint32             { return l.generation() | l.client() | l.server() }
func (l layout) gen(g uint8) uint32      { return uint32(g) << l.shift }
func (l layout) clientIs(n uint8) []byte { return ne32(uint32(n) << (l.shift + 8)) }
func (l layout) serverIs(n uint8) []byte { return ne32(uint32(n) << (l.shift + 16)) }

// end returns the bits that say who is at that end of a flow, and what they are for a subject.
func (l layout) end(dir model.Direction, n uint8) (mask uint32, is []byte) {
	if dir == model.Egress {
		return l.client(), l.clientIs(n)
	}
	return l.server(), l.serverIs(n)
}

// writer writes the rules for what is to be in force.
type writer struct {
	*table
	content *content
	layout  layout
	gen     uint8
	group   uint16
	reopens bool // the kernel can give up a socket in TIME_WAIT
}

// ends of flows that are judged: those of flows with other hosts, and those of flows within this one. The latter are both
// judged where the packet arrives, for only there are both known.
type end struct {
	dir   model.Direction
	local bool
}

func (e end) String() string {
	if e.local {
		return "l" + letter(e.dir)
	}
	return letter(e.dir)
}

var ends = []end{{model.Egress, false}, {model.Ingress, false}, {model.Egress, true}, {model.Ingress, true}}

func opposite(d model.Direction) model.Direction {
	if d == model.Egress {
		return model.Ingress
	}
	return model.Egress
}

func isProto(p model.Proto) []expression {
	return []expression{loadMeta(unix.NFT_META_L4PROTO, protocol), equal(protocol, []byte{byte(p)})}
}

func isDirection(d byte) []expression {
	return []expression{loadFlow(unix.NFT_CT_DIRECTION, scratch), equal(scratch, []byte{d})}
}

// isNew ends the rule unless the packet may be the first of its connection.
func isNew() []expression {
	return []expression{loadFlow(unix.NFT_CT_STATE, scratch), combine(scratch, ne32(ctStateNew), ne32(0)), differs(scratch, ne32(0))}
}

// isEstablished ends the rule unless packets of the connection have been seen both ways.
func isEstablished() []expression {
	return []expression{loadFlow(unix.NFT_CT_STATE, scratch), combine(scratch, ne32(ctStateEstablished), ne32(0)), differs(scratch, ne32(0))}
}

// NF_CT_STATE_BIT of IP_CT_ESTABLISHED and IP_CT_NEW.
const ctStateEstablished, ctStateNew = 2, 8

func join(parts ...[]expression) (all []expression) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func one(e expression) []expression { return []expression{e} }

// write writes everything.
func (w *writer) write() {
	w.counters = []string{counterJudged, counterAllowed, counterWould, counterDenied, counterDropped, counterSuppressed}
	w.constants()
	w.hooks()
	for _, dir := range model.Directions {
		w.whose(dir)
	}
	w.localFlows()
	for _, e := range ends {
		w.outcomes(e)
	}
	c := w.content
	if c == nil {
		return
	}
	w.addresses()
	for i := range c.policy.Sets {
		w.policySet(&c.policy.Sets[i])
	}
	for _, s := range c.subjects {
		w.subject(s)
	}
}

// The counters, which outlive the agent.
const (
	counterJudged     = "judged"
	counterAllowed    = "allowed"
	counterWould      = "would-deny"
	counterDenied     = "denied"
	counterDropped    = "dropped"
	counterSuppressed = "not-told"
)

// Names of sets.
const (
	setEssentialICMP  = "essential-icmp"
	setEssentialPorts = "essential-ports"
	setAlive          = "alive"
	setGlass          = "glass"
	setIdentities     = "identities"
	setIdentities4    = "identities4"
	setIdentities6    = "identities6"
	setControllers4   = "controllers4"
	setControllers6   = "controllers6"
)

func (w *writer) set(name string, s *set) *set {
	s.members = map[string]element{}
	w.sets[name] = s
	return s
}

// constants are the sets that no policy changes.
func (w *writer) constants() {
	icmp := w.set(setEssentialICMP, &set{fields: []field{typeProtocol, typeICMP}})
	ports := w.set(setEssentialPorts, &set{fields: []field{typeProtocol, typePort}})
	for _, e := range essential.Fixed {
		if e.Ports.Proto.IsICMP() {
			for typ := e.Ports.Lo >> 8; typ <= e.Ports.Hi>>8; typ++ {
				icmp.put(element{key: string([]byte{byte(e.Ports.Proto), 0, 0, 0, byte(typ), 0, 0, 0})})
			}
			continue
		}
		for p := int(e.Ports.Lo); p <= int(e.Ports.Hi); p++ {
			ports.put(element{key: string(append(append([]byte{byte(e.Ports.Proto), 0, 0, 0}, be16(uint16(p))...), 0, 0))})
		}
	}
	// What ends by itself the kernel alone knows: the members of these two are not ours to compare.
	w.set(setAlive, &set{fields: []field{typeNumber}, timeouts: true})
	w.set(setGlass, &set{fields: []field{typeNumber}, timeouts: true})
	if w.content == nil {
		return
	}
	for _, e := range ends {
		v := w.set("verdict-"+e.String(), &set{fields: []field{typeNumber}, value: verdicts})
		for verdict, chain := range map[model.Verdict]string{model.Deny: "deny-", model.WouldDeny: "would-", model.Allow: "allow-"} {
			v.put(element{key: string(ne32(uint32(verdict))), verdict: goTo(chain + e.String())})
		}
	}
}

// theKey is the only key of the sets alive and glass.
var theKey = []byte{0, 0, 0, 1}

// alive ends the rule when the agent is lost, if that matters to somebody.
func (w *writer) alive() []expression {
	if w.content == nil || !w.content.lossMatters() {
		return nil
	}
	return []expression{loadValue(theKey, scratch), find(setAlive, scratch)}
}

// current ends the rule unless the connection has been judged in this generation.
func (w *writer) current() []expression {
	return join(w.alive(), []expression{
		loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(w.layout.generation()), ne32(0)), equal(mark, ne32(w.layout.gen(w.gen))),
	})
}

// hooks are the chains that packets enter.
func (w *writer) hooks() {
	for _, h := range []struct {
		name           string
		hook           uint32
		original       model.Direction // whose end a packet concerns that belongs to the one who opened the flow
		device, during string
		key            uint32
	}{
		{"input", unix.NF_INET_LOCAL_IN, model.Ingress, "local-in", "glass-in", unix.NFT_META_IIF},
		{"output", unix.NF_INET_LOCAL_OUT, model.Egress, "local-out", "glass-out", unix.NFT_META_OIF},
	} {
		c := w.chain(h.name)
		c.hook = &h.hook
		if w.content == nil { // before any policy everything passes; that connections are tracked is all that is needed
			c.add(join(isDirection(ctReply), one(accept.expression()))...)
			continue
		}
		if h.hook == unix.NF_INET_LOCAL_OUT {
			w.routed(c)
		}
		c.add(join(isProto(model.ProtoTCP), w.current(), one(accept.expression()))...)
		c.add(loadMeta(unix.NFT_META_L4PROTO, scratch), loadTransport(0, 1, scratch+1), find(setEssentialICMP, scratch), accept.expression())
		// Whoever resets connections that are denied has it told to the other end.
		c.add(join(isProto(model.ProtoTCP), []expression{loadTransport(13, 1, scratch), combine(scratch, []byte{4}, []byte{0}),
			differs(scratch, []byte{0}), accept.expression()})...)
		if w.content.glass {
			c.add(loadValue(theKey, scratch), find(setGlass, scratch), goTo(h.during).expression())
		}
		c.add(loadMeta(h.key, scratch), equal(scratch, ne32(1)), goTo(h.device).expression())
		c.add(join(isDirection(ctOriginal), one(goTo("whose-"+letter(h.original)).expression()))...)
		c.add(join(isDirection(ctReply), one(goTo("whose-"+letter(opposite(h.original))).expression()))...)
		w.untracked(c)
	}
	w.underGlass()
	w.reopened()
}

// untracked says what becomes of packets that belong to no connection that the kernel can follow.
func (w *writer) untracked(c *chain) {
	if w.content.deniesAnything() {
		c.add(add(counterDropped), drop.expression())
	} else {
		c.always(accept)
	}
}

// routed says what becomes of packets that say by themselves where they go on from their destination: a source route of IPv4, a
// routing header of IPv6 with something left. Rules know the destination only, so they are like what cannot be followed.
func (w *writer) routed(c *chain) {
	if !w.content.deniesAnything() {
		return
	}
	family := func(f byte) []expression {
		return []expression{loadMeta(unix.NFT_META_NFPROTO, scratch), equal(scratch, []byte{f})}
	}
	const chain = "source-routed"
	for _, option := range []byte{optionLooseRoute, optionStrictRoute} {
		c.add(join(family(unix.NFPROTO_IPV4), []expression{hasOption(option, scratch), equal(scratch, []byte{1}), goTo(chain).expression()})...)
	}
	c.add(join(family(unix.NFPROTO_IPV6), []expression{loadExtension(unix.IPPROTO_ROUTING, 3, scratch), differs(scratch, []byte{0}),
		goTo(chain).expression()})...)
	to := w.chain(chain)
	if w.content.glass {
		to.add(loadValue(theKey, scratch), find(setGlass, scratch), accept.expression())
	}
	to.add(add(counterDropped), drop.expression())
}

// Options of IPv4 (RFC 791, 3.1).
const optionLooseRoute, optionStrictRoute = 131, 137

// known ends the rule unless it is known who is at that end of the flow.
func (w *writer) known(dir model.Direction) []expression {
	mask, none := w.layout.end(dir, 0)
	return []expression{loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(mask), ne32(0)), differs(mark, none)}
}

// byCgroup goes where the map of that kind says for the socket's unit, the deepest first.
func (w *writer) byCgroup(c *chain, kind string) {
	for _, depth := range w.content.depths() {
		c.add(loadCgroup(depth, scratch), decide(unitsName(kind, depth), scratch))
	}
}

func unitsName(kind string, depth uint32) string { return fmt.Sprintf("units-%s-%d", kind, depth) }

// whose finds out whose end of a flow with another host the packet concerns, and has it judged: the unit whose socket it
// is, or the host.
func (w *writer) whose(dir model.Direction) {
	if w.content == nil {
		return
	}
	c := w.chain("whose-" + letter(dir))
	w.byCgroup(c, letter(dir))
	host := goTo(fmt.Sprintf("%s%d", letter(dir), hostNumber)).expression()
	c.add(loadSocket(socketMark, scratch), host)
	// Half-open and dying connections have sockets that do not say whose they are: their flow does.
	half := w.chain("half-" + letter(dir))
	mask, _ := w.layout.end(dir, 0)
	half.add(loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(mask), ne32(0)), decide("marked-"+letter(dir), mark))
	half.add(host)
	c.add(loadSocket(socketTransparent, scratch), goTo("half-"+letter(dir)).expression())
	// Nobody gets what has no socket: the kernel answers it with a reset, which ends what is left of the connection.
	c.add(join(isProto(model.ProtoTCP), one(accept.expression()))...)
	c.always(goTo("half-" + letter(dir)))

	m := w.chain("mark-" + letter(dir))
	w.byCgroup(m, "m"+letter(dir))
	m.add(loadSocket(socketMark, scratch), goTo(fmt.Sprintf("m%s%d", letter(dir), hostNumber)).expression())
}

// localFlows judges what stays on this host.
func (w *writer) localFlows() {
	if w.content == nil {
		return
	}
	out := w.chain("local-out")
	out.add(join(isDirection(ctOriginal), one(jump("mark-e").expression()))...)
	out.add(join(isDirection(ctReply), one(jump("mark-i").expression()))...)
	out.always(accept)

	in := w.chain("local-in")
	in.add(join(isDirection(ctOriginal), one(goTo("local-original").expression()))...)
	in.add(join(isDirection(ctReply), one(goTo("local-reply").expression()))...)
	w.untracked(in)
	for chain, marks := range map[string]string{"local-original": "mark-i", "local-reply": "mark-e"} {
		c := w.chain(chain)
		c.always(jump(marks))
		c.add(loadSocket(socketTransparent, scratch), goTo("local-judge").expression())
		c.add(join(isNew(), one(goTo("local-judge").expression()))...)
		c.add(join(isProto(model.ProtoTCP), one(accept.expression()))...) // nobody gets it; see whose
		c.always(goTo("local-judge"))
	}
	j := w.chain("local-judge")
	j.add(join(w.current(), one(accept.expression()))...)
	for _, dir := range []model.Direction{model.Egress, model.Ingress} {
		mask, _ := w.layout.end(dir, 0)
		j.add(loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(mask), ne32(0)), decide("local-"+letter(dir), mark))
	}
	j.add(join(w.alive(), w.judged())...)
	j.always(accept)
}

// judged notes in the connection's mark that this generation has judged it.
func (w *writer) judged() []expression {
	return []expression{loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(^w.layout.generation()), ne32(w.layout.gen(w.gen))), setFlowMark(mark)}
}

// tell tells the agent of the packet: the generation, the end, what was decided and whether the packet is one of who opened
// the flow or an answer. Meanwhile the packet has the mark of its connection, which says whose both ends are.
func (w *writer) tell(e string, decided, direction byte) []expression {
	return []expression{
		loadMeta(unix.NFT_META_MARK, saved), loadFlow(unix.NFT_CT_MARK, mark), setPacketMark(mark),
		tell(w.group, fmt.Sprintf("%s%d %s %c%c", prefixStart, w.gen, e, decided, direction)),
		setPacketMark(saved),
	}
}

const prefixStart = "bulkhead "

// outcomes are the chains in which judging a packet at one end comes to its end.
func (w *writer) outcomes(e end) {
	if w.content == nil {
		return
	}
	directions := map[byte][]expression{'o': isDirection(ctOriginal), 'r': isDirection(ctReply)}
	notYet := []expression{loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(w.layout.generation()), ne32(0)),
		differs(mark, ne32(w.layout.gen(w.gen)))}
	for _, o := range []struct {
		chain, counter string
		decided        byte
	}{{"allow-", counterAllowed, '2'}, {"would-", counterWould, '1'}} {
		c := w.chain(o.chain + e.String())
		c.add(add(counterJudged))
		c.add(join(isNew(), one(add(o.counter)))...)
		for _, d := range []byte{'o', 'r'} {
			c.add(join(directions[d], notYet, w.tell(e.String(), o.decided, d))...)
		}
		if !e.local { // else the other end is still to be judged
			c.add(w.judged()...)
			c.always(accept)
		}
	}
	w.denials("deny-", e, '0', add(counterJudged), add(counterDropped))
	if w.content.lossMatters() {
		w.denials("closed-", e, 'c', add(counterDropped))
		c := w.chain("open-" + e.String())
		c.add(join(directions['o'], isNew(), w.tell(e.String(), 'l', 'o'))...)
		if !e.local {
			c.always(accept)
		}
	}
	r := w.chain("refuse-" + e.String())
	// The other end of a connection that was open is reset by what it sends. Resetting ours tells it too, unless data of ours has
	// been dropped: then that reset is out of sequence, and the other end asks back (RFC 5961), which a listener of ours, judged
	// like any socket, would never hear.
	from := isDirection(ctOriginal)
	if e.dir == model.Egress {
		from = isDirection(ctReply)
	}
	r.add(join(isProto(model.ProtoTCP), from, isEstablished(), one(rejectTCP()))...)
	if e.dir == model.Egress { // who asked learns of it
		r.add(join(isProto(model.ProtoTCP), isDirection(ctOriginal), isNew(), one(rejectTCP()))...)
		if e.local {
			r.add(join(isProto(model.ProtoUDP), isDirection(ctOriginal), one(rejectOther()))...)
		}
	}
	r.always(drop)
}

// tellAtMost is how many denials are told in a second at one end; others are only counted.
const tellAtMost = 20000

func (w *writer) denials(name string, e end, decided byte, counters ...expression) {
	c := w.chain(name + e.String())
	for _, n := range counters {
		c.add(n)
	}
	c.add(join(isNew(), one(add(counterDenied)))...)
	refuse := goTo("refuse-" + e.String()).expression()
	for _, d := range []struct {
		letter byte
		is     []expression
	}{{'o', isDirection(ctOriginal)}, {'r', isDirection(ctReply)}} {
		c.add(join(d.is, one(atMost(tellAtMost)), w.tell(e.String(), decided, d.letter), one(refuse))...)
	}
	c.add(add(counterSuppressed), refuse)
}
