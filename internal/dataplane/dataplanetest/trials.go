package dataplanetest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// trial is a flow that is tried.
type trial struct {
	client, server netip.AddrPort
	proto          model.Proto
	ends           []trialEnd // the client's first, where that is on this host
	from, to       int        // sockets; -1 if there is none
}

type trialEnd struct {
	packet hostpolicy.Packet
	want   model.EndVerdict
	peer   model.IdentityID
}

// plan makes flows of which no two are alike in what denials are counted by.
func (l *referenceLab) plan(r *rand.Rand, h *RandomHost) (trials []*trial) {
	judge := hostpolicy.NewJudge(h.Policy.Isolated(h.Isolated...))
	type owned struct {
		proto  model.Proto
		server netip.AddrPort
	}
	owners := map[owned]string{} // whose server that is: one address has one
	var packets []hostpolicy.Packet
	served := map[uint16]bool{}
	for range flowsEach {
		pkt := h.Packet(r)
		if pkt.Port == 0 && (pkt.Proto == model.ProtoTCP || pkt.Proto == model.ProtoUDP) {
			continue // no socket has it
		}
		packets = append(packets, pkt)
		served[pkt.Port] = true
	}
	for _, pkt := range packets {
		tr := &trial{proto: pkt.Proto, from: -1, to: -1}
		client, server := pkt, opposite(&pkt)
		if pkt.Dir == model.Ingress {
			client, server = server, client
		}
		if server.Workload != "" {
			switch at := (owned{pkt.Proto, netip.AddrPortFrom(server.Local, pkt.Port)}); {
			case pkt.Proto != model.ProtoTCP && pkt.Proto != model.ProtoUDP:
				server.Workload = "near" // nobody else has a socket for it
			case owners[at] != "":
				server.Workload = owners[at]
			default:
				owners[at] = server.Workload
			}
		}
		if client.Workload != "" && server.Workload != "" {
			client.RemoteWorkload = server.Workload
		}
		source := uint16(0)
		if hasPorts(pkt.Proto) {
			for source = l.sources; served[source]; source++ {
			}
			if l.sources = source + 1; l.sources > 60000 {
				l.sources = 20000
			}
		}
		tr.client = netip.AddrPortFrom(client.Local, source)
		tr.server = netip.AddrPortFrom(server.Local, pkt.Port)
		fresh := true
		for _, p := range []hostpolicy.Packet{client, server} {
			if p.Workload == "" {
				continue
			}
			kind := endOfFlow{dir: p.Dir, proto: p.Proto, port: p.Port, remote: netip.AddrPortFrom(p.Remote, 0)}
			if !hasPorts(p.Proto) && !p.Proto.IsICMP() {
				kind.dir = 0 // what goes back is an answer
			}
			fresh = fresh && !l.used[kind]
			l.used[kind] = true
			e := trialEnd{packet: p}
			e.want, e.peer = judge.Judge(&p)
			tr.ends = append(tr.ends, e)
		}
		if fresh {
			trials = append(trials, tr)
		}
	}
	return trials
}

// opposite is the packet as the other end sees it.
func opposite(p *hostpolicy.Packet) hostpolicy.Packet {
	o := *p
	o.Workload, o.RemoteWorkload, o.Local, o.Remote = p.RemoteWorkload, p.Workload, p.Remote, p.Local
	o.Dir = model.Ingress
	if p.Dir == model.Ingress {
		o.Dir = model.Egress
	}
	return o
}

// open makes the sockets of the flows. The function returned closes them.
func (l *referenceLab) open(trials []*trial) (done func()) {
	l.t.Helper()
	kinds, sockets := map[*Process][][3]int{}, map[*Process][]*int{}
	need := func(workload string, a netip.Addr, proto model.Proto, into *int) {
		kind := [3]int{unix.AF_INET, unix.SOCK_RAW, int(proto)}
		if a.Is6() {
			kind[0] = unix.AF_INET6
		}
		switch proto {
		case model.ProtoTCP:
			kind[1] = unix.SOCK_STREAM
		case model.ProtoUDP:
			kind[1] = unix.SOCK_DGRAM
		}
		p := l.processes[workload]
		kinds[p], sockets[p] = append(kinds[p], kind), append(sockets[p], into)
	}
	servers := map[string]*trial{}
	for _, tr := range trials {
		for _, e := range tr.ends {
			key := fmt.Sprint(tr.proto, tr.server)
			switch {
			case e.packet.Dir == model.Egress:
				need(e.packet.Workload, tr.client.Addr(), tr.proto, &tr.from)
			case tr.proto != model.ProtoTCP && tr.proto != model.ProtoUDP, servers[key] != nil:
			default:
				servers[key] = tr
				need(e.packet.Workload, tr.server.Addr(), tr.proto, &tr.to)
			}
		}
	}
	var all []int
	for p, k := range kinds {
		for i, fd := range p.plain(k) {
			*sockets[p][i] = fd
			all = append(all, fd)
		}
	}
	for _, tr := range trials {
		if tr.to < 0 {
			continue
		}
		err := unix.SetsockoptInt(tr.to, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil {
			err = unix.Bind(tr.to, sockaddrOf(tr.server))
		}
		if err == nil && tr.proto == model.ProtoTCP {
			err = unix.Listen(tr.to, 64)
		}
		if err != nil {
			l.t.Errorf("serve %s at %s: %v", tr.proto, tr.server, err)
		}
	}
	return func() {
		for _, fd := range all {
			_ = unix.Close(fd)
		}
	}
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// segment is the first packet of the flow from its transport header on. What near sends itself has no checksum yet, but of SCTP.
func (tr *trial) segment(sums bool) []byte {
	var b []byte
	at := -1
	switch tr.proto {
	case model.ProtoICMP, model.ProtoICMPv6:
		b, at = append(binary.BigEndian.AppendUint16(nil, tr.server.Port()), 0, 0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 2
	case model.ProtoSCTP: // an INIT (RFC 9260, 3.3.2)
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tr.client.Port()), tr.server.Port())
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	default:
		b = make([]byte, 16)
	}
	if at >= 0 && tr.proto == model.ProtoICMP {
		binary.BigEndian.PutUint16(b[at:], checksum(b))
	} else if at >= 0 && sums {
		binary.BigEndian.PutUint16(b[at:], transportSum(tr.client.Addr(), tr.server.Addr(), byte(tr.proto), b))
	}
	return b
}

// send sends the first packet of the flow.
func (l *referenceLab) send(tr *trial) error {
	if tr.ends[0].packet.Dir == model.Ingress { // from far
		var frame []byte
		switch tr.proto {
		case model.ProtoTCP:
			frame = datagram{srcMAC: l.mac, dstMAC: l.mac, src: tr.client, dst: tr.server, proto: byte(tr.proto), flags: tcpSYN}.frame()
		case model.ProtoUDP:
			frame = datagram{srcMAC: l.mac, dstMAC: l.mac, src: tr.client, dst: tr.server, data: "hello"}.frame()
		default:
			frame = append(slices.Concat(l.mac, net.HardwareAddr{2, 0, 0, 0, 0, 9}), network(tr.client.Addr(), tr.server.Addr(), byte(tr.proto), tr.segment(true))...)
		}
		return unix.Sendto(l.wire, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.port, Protocol: binary.NativeEndian.Uint16(frame[12:])})
	}
	local := tr.client
	if !hasPorts(tr.proto) || tr.proto == model.ProtoSCTP {
		local = netip.AddrPortFrom(local.Addr(), 0)
	}
	if err := unix.SetsockoptInt(tr.from, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(tr.from, sockaddrOf(local)); err != nil {
		return fmt.Errorf("bind %s: %w", local, err)
	}
	var err error
	switch tr.proto {
	case model.ProtoTCP:
		err = unix.Connect(tr.from, sockaddrOf(tr.server))
	case model.ProtoUDP:
		err = unix.Sendto(tr.from, []byte("hello"), 0, sockaddrOf(tr.server))
	default:
		err = unix.Sendto(tr.from, tr.segment(false), 0, sockaddrOf(netip.AddrPortFrom(tr.server.Addr(), 0)))
	}
	switch err {
	case nil, unix.EINPROGRESS, unix.EPERM, unix.ECONNREFUSED: // what it is worth, events and arrivals say
		return nil
	}
	return fmt.Errorf("send: %w", err)
}
