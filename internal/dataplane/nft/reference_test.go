package nft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane/dataplanetest"
)

// The cgroups of units in this test: one in another.
var testCgroups = map[string][]uint64{"": {1}, "one": {1, 10}, "two": {1, 20}, "inner": {1, 20, 21}}

// simulated is a host whose table a machine runs.
type simulated struct {
	*machine
	content *content
	layout  layout
	gen     uint8
	judge   *hostpolicy.Judge
}

func simulate(t testing.TB, h *dataplanetest.RandomHost, before *simulated) *simulated {
	t.Helper()
	p := h.Policy
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	c := &content{policy: p, units: map[uint64]unitCgroup{}, beaten: true, glass: true}
	known, gen := numbers{}, uint8(1)
	var addresses *addressMaps
	if before != nil {
		for _, s := range before.content.subjects {
			known[s.Workload] = numbered{s.number, false}
		}
		addresses, gen = before.content.addresses, before.gen%255+1
	}
	if err := c.number(known); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.subjects {
		s.isolated = slices.Contains(h.Isolated, s.Workload)
		if s.Unit != "" {
			at := testCgroups[s.Unit]
			c.units[at[len(at)-1]] = unitCgroup{depth: uint32(len(at) - 1), subject: s.number}
		}
	}
	c.addresses = lowerAddresses(p, addresses)
	w := writer{table: newTable(), content: c, layout: layout{8}, gen: gen, group: 1}
	w.write()
	return &simulated{newMachine(w.table), c, w.layout, gen, hostpolicy.NewJudge(c.effective())}
}

// flowOf makes the connection that a packet opens.
func flowOf(client, server netip.Addr, proto model.Proto, port uint16) *tracked {
	c := &tracked{src: [2][]byte{client.AsSlice(), server.AsSlice()}, dst: [2][]byte{server.AsSlice(), client.AsSlice()}}
	switch proto {
	case model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP:
		c.from, c.to = [2]uint16{40000, port}, [2]uint16{port, 40000}
	case model.ProtoICMP, model.ProtoICMPv6: // where a port would be, the kernel has what tells questions apart
		c.from, c.to = [2]uint16{7, 7}, [2]uint16{port, port &^ 0xff00}
	}
	return c
}

func passingOf(pkt *hostpolicy.Packet, flow *tracked, alive, glass bool) *passing {
	p := &passing{family: unix.NFPROTO_IPV4, proto: byte(pkt.Proto), flow: flow, alive: alive, glass: glass, counted: map[string]int{}, in: 2, out: 2}
	if pkt.Local.Is6() {
		p.family = unix.NFPROTO_IPV6
	}
	p.transport = make([]byte, 20)
	copy(p.transport, append(be16(flow.from[0]), be16(flow.to[0])...))
	if pkt.Proto.IsICMP() {
		copy(p.transport, be16(pkt.Port))
	}
	if pkt.Proto == model.ProtoTCP {
		p.transport[13] = tcpFlagSYN
	}
	if pkt.RemoteWorkload != "" {
		p.in, p.out = 1, 1
	}
	return p
}

// socketOf returns a socket of the workload. What the kernel answers by itself has none, and is the host's.
func (s *simulated) socketOf(workload string, pkt *hostpolicy.Packet, receives bool) *owned {
	if receives && pkt.Proto != model.ProtoTCP && pkt.Proto != model.ProtoUDP {
		return nil
	}
	for _, sub := range s.content.subjects {
		if sub.Workload == workload {
			return &owned{testCgroups[sub.Unit], true}
		}
	}
	panic("no workload " + workload)
}

// answered is what one end of a flow has come to.
type answered struct {
	verdict model.EndVerdict
	peer    model.IdentityID
}

// ask sends the first packet of a flow through the table. What is told of an end by the log is completed as Events does. passes reports
// whether the packet comes through; rest is what the same connection's next packet would tell.
func (s *simulated) ask(t testing.TB, pkt *hostpolicy.Packet, alive, glass bool) (told map[model.Direction]string, found map[model.Direction]answered, passes bool) {
	t.Helper()
	client, server := *pkt, *pkt
	if pkt.Dir == model.Egress {
		server = opposed(pkt)
	} else {
		client = opposed(pkt)
	}
	flow := flowOf(client.Local, server.Local, pkt.Proto, pkt.Port)
	var all []string
	passes = true
	send := func(hook string, socket *owned) {
		if !passes {
			return
		}
		p := passingOf(pkt, flow, alive, glass)
		p.socket = socket
		s.run(hook, p)
		passes = !p.decided || p.verdict.code == accept.code
		all = append(all, p.told...)
		if p.mark != 0 {
			t.Errorf("a packet keeps the mark %08x", p.mark)
		}
	}
	here := pkt.RemoteWorkload != ""
	if here || pkt.Dir == model.Egress {
		send("output", s.socketOf(client.Workload, pkt, false))
	}
	if here || pkt.Dir == model.Ingress {
		send("input", s.socketOf(server.Workload, pkt, true))
	}
	told, found = map[model.Direction]string{}, map[model.Direction]answered{}
	for _, line := range all {
		var gen int
		var end, what string
		var mark uint32
		if n, err := fmt.Sscanf(line, "bulkhead %d %s %s %x", &gen, &end, &what, &mark); n != 4 || gen != int(s.gen) {
			t.Fatalf("told %q, %v", line, err)
		}
		l := logged{local: len(end) == 2, dir: directionOf(end[len(end)-1]), decided: what[0], mark: mark}
		if told[l.dir] != "" {
			t.Errorf("told twice: %q", all)
		}
		l.flow = flowKey{pkt.Proto, netip.AddrPortFrom(client.Local, flow.from[0]), netip.AddrPortFrom(server.Local, pkt.Port)}
		p := packetOf(&l)
		whose := map[model.Direction]uint8{model.Egress: uint8(mark >> (s.layout.shift + 8)), model.Ingress: uint8(mark >> (s.layout.shift + 16))}
		p.Workload = s.content.name(whose[l.dir])
		if l.local {
			p.RemoteWorkload = s.content.name(whose[opposite(l.dir)])
		}
		v, peer := s.judge.Judge(&p)
		told[l.dir], found[l.dir] = what[:1], answered{v, peer}
	}
	return told, found, passes
}

// opposed is the packet as the other end sees it.
func opposed(p *hostpolicy.Packet) hostpolicy.Packet {
	o := *p
	o.Workload, o.RemoteWorkload, o.Local, o.Remote, o.Dir = p.RemoteWorkload, p.Workload, p.Remote, p.Local, opposite(p.Dir)
	return o
}

// expected returns what is to be told of the end, as the letter that the log has for it.
func (s *simulated) expected(pkt *hostpolicy.Packet, alive bool) (letter string, want answered) {
	want.verdict, want.peer = s.judge.Judge(pkt)
	letter = strconv.Itoa(int(want.verdict.Verdict))
	if alive {
		return letter, want
	}
	_, always := essential.Match(pkt.Proto, pkt.Port)
	if always || want.verdict.Rule == model.RuleSameWorkload || want.verdict.Rule == model.RuleController {
		return letter, want
	}
	for _, sub := range s.content.subjects {
		if sub.Workload != pkt.Workload || sub.isolated {
			continue
		}
		switch sub.OnAgentLoss {
		case model.LossOpen:
			return "l", want
		case model.LossClosed:
			return "c", want
		}
	}
	return letter, want
}

// TestTableJudgesLikeTheReference has a machine of our own do what the tables of random policies say, and asks hostpolicy.Judge about the
// same packets. Policies follow each other as in a kernel: subjects keep their numbers, maps of addresses are laid over each other.
func TestTableJudgesLikeTheReference(t *testing.T) {
	t.Parallel()
	worlds, packets := 300, 300
	if testing.Short() {
		worlds = 40
	}
	asked, verdicts := 0, map[string]int{}
	rules := map[model.RuleID]bool{}
	overlaid := 0
	first := dataplanetest.FirstSeed(t)
	for seed := first; seed < first+uint64(worlds); seed++ {
		r := rand.New(rand.NewPCG(seed, 7))
		h := dataplanetest.MakeRandomHost(r, int(seed))
		var s *simulated
		for round := range 2 {
			if round > 0 {
				h.Change(r)
			}
			s = simulate(t, h, s)
			if s.content.addresses.hosts4.over != nil || s.content.addresses.hosts6.over != nil {
				overlaid++
			}
			for range packets / 2 {
				pkt := h.Packet(r)
				alive, glass := r.IntN(6) != 0, r.IntN(20) == 0
				if pkt.Dir == model.Ingress && pkt.RemoteWorkload == "" && pkt.Proto != model.ProtoTCP && pkt.Proto != model.ProtoUDP {
					pkt.Workload = "near" // nobody else has a socket for it
				}
				where := fmt.Sprintf("%s=%d, round %d, isolated %v, agent there %v, glass broken %v, %+v", dataplanetest.SeedVariable, seed, round, h.Isolated, alive, glass, pkt)
				told, found, passes := s.ask(t, &pkt, alive, glass)
				ends := []hostpolicy.Packet{pkt}
				if pkt.RemoteWorkload != "" {
					ends = append(ends, opposed(&pkt))
					if pkt.Dir == model.Ingress {
						slices.Reverse(ends)
					}
				}
				through := true
				for _, end := range ends {
					asked++
					letter, want := s.expected(&end, alive)
					if glass {
						letter = "g"
					}
					if !through {
						letter, want = "", answered{} // the flow never came that far
					}
					if told[end.Dir] != letter || found[end.Dir] != want {
						t.Fatalf("%s\n%s: told %q, %+v\nreference %q, %+v", where, end.Dir, told[end.Dir], found[end.Dir], letter, want)
					}
					verdicts[letter]++
					rules[want.verdict.Rule] = true
					through = through && letter != "0" && letter != "c"
				}
				if passes != through {
					t.Fatalf("%s\npasses: %v", where, passes)
				}
			}
		}
	}
	t.Logf("%d ends of flows, verdicts %v, %d rules, %d policies with overlaid addresses", asked, verdicts, len(rules), overlaid)
	if testing.Short() {
		return
	}
	if asked < 100_000 || overlaid < worlds/10 {
		t.Errorf("%d ends, %d overlaid: the test shows little", asked, overlaid)
	}
	for _, letter := range []string{"0", "1", "2", "l", "c", "g"} {
		if verdicts[letter] < asked/100 {
			t.Errorf("only %d of %d were %q: the test shows little", verdicts[letter], asked, letter)
		}
	}
}
