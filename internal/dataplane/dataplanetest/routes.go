package dataplanetest

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// routed sends Data to To by way of Local: the packet's header says Local, its option or extension header To.
func routed(r request) error {
	to, err := netip.ParseAddrPort(r.To)
	if err != nil {
		return err
	}
	hop, err := netip.ParseAddr(r.Local)
	if err != nil {
		return err
	}
	domain, end := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		domain, end = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if to.Addr().Is4() {
		// A loose source route (RFC 791, 3.1), and an end of options to fill the word.
		err = unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(append([]byte{131, 7, 4}, hop.AsSlice()...))+"\x00")
	} else {
		// A segment routing header (RFC 8754, 2) of two addresses, the last one first; the kernel fills that in.
		h := append(append([]byte{0, 4, 4, 1, 1, 0, 0, 0}, make([]byte, 16)...), hop.AsSlice()...)
		err = unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_RTHDR, string(h))
	}
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte(r.Data), 0, end)
}

// routes sends by way of what is allowed to what is not, and the other way round: both must be allowed.
func (h *host) routes() {
	for _, f := range families {
		addresses := standard()
		for _, a := range []string{f.far, f.other} {
			addresses[netip.PrefixFrom(netip.MustParseAddr(a), netip.MustParseAddr(a).BitLen()).String()] = hostpolicy.Address{Identity: map[string]model.IdentityID{f.far: farID, f.other: otherID}[a]}
		}
		far, other := rule(model.Egress, farID, "udp/8700", model.Allow), rule(model.Egress, otherID, "udp/8700", model.Allow)
		for _, tt := range []struct {
			name    string
			rules   []Rule
			hop, to string
			denied  string // where the denial says that it went
		}{
			{"over what is allowed", []Rule{far}, f.far, f.other, f.other},
			{"over what is denied", []Rule{far}, f.other, f.far, f.other},
			{"both are allowed", []Rule{far, other}, f.far, f.other, ""},
		} {
			h.apply(policy{addresses: addresses, one: tt.rules})
			h.events.clear()
			want := ""
			if tt.denied != "" || !h.d.Capabilities().Routes {
				want = "EPERM"
			}
			if a := h.one.ask(request{Do: "routed", Local: tt.hop, To: at(tt.to, 8700), Data: "x"}); a.Err != want {
				h.t.Errorf("%s, %s: %q instead of %q", f.name, tt.name, a.Err, want)
			}
			if !h.d.Capabilities().Routes {
				continue
			}
			if tt.denied == "" {
				h.events.none(tt.name, kind(dataplane.EventDeny))
				continue
			}
			e := h.events.one(f.name+", "+tt.name, all(kind(dataplane.EventDeny), workload("near/one"), port(8700)))
			if e.Remote.Addr().String() != tt.denied || e.Dir != model.Egress || !h.isOf(&e, h.one) {
				h.t.Errorf("%s, %s: %s", f.name, tt.name, describe(&e))
			}
		}
	}
	// What is only observed is not stopped.
	h.apply(policy{one: everything(model.WouldDeny), two: everything(model.WouldDeny), host: everything(model.WouldDeny), late: everything(model.WouldDeny)})
	for _, f := range families {
		if a := h.one.ask(request{Do: "routed", Local: f.far, To: at(f.other, 8700), Data: "x"}); a.Err != "" {
			h.t.Errorf("%s, observed: %q", f.name, a.Err)
		}
	}
}
