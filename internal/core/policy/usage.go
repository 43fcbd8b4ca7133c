package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// Usage finds allow rules that open more than recorded flows use: ports, sources and destinations that no flow needs, and
// rules that none needs at all. A flow that was denied at the time uses nothing. What is broader than its use may be so
// on purpose, so these findings are notices; what was seen is part of each. Rules that Hygiene calls pointless, and those
// that have expired at now, are left out. The findings are sorted by position.
func Usage(docs *model.Documents, inv *model.Inventory, flows []model.RecordedFlow, now time.Time) []Finding {
	h := newHygiene(docs, now)
	h.overlapping()
	h.findings = nil
	u := &usage{hygiene: h, inv: inv, byName: map[string]int{}, byAddr: map[netip.Addr][]int{}, matched: map[string][]bool{}}
	for i := range inv.Instances {
		u.byName[inv.Instances[i].Name] = i
		for _, a := range inv.Instances[i].Addresses {
			u.byAddr[a] = append(u.byAddr[a], i)
		}
	}
	for _, b := range h.boxes {
		if b.rule.Action == model.ActionAllow && !h.pointless[b.id] {
			u.rules = append(u.rules, &ruleUse{box: b, from: make([]peerUse, len(b.from)), to: make([]peerUse, len(b.to)), ports: map[usedPort]bool{}})
		}
	}
	u.read(flows)
	for _, r := range u.rules {
		u.report(r)
	}
	slices.SortStableFunc(h.findings, func(a, b Finding) int { return a.Pos.Compare(b.Pos) })
	return h.findings
}

type usage struct {
	*hygiene
	inv     *model.Inventory
	byName  map[string]int
	byAddr  map[netip.Addr][]int
	rules   []*ruleUse
	matched map[string][]bool // by what an end is: for each rule and each of its peers, source and destination, in a row
}

// ruleUse is what recorded flows use of a rule.
type ruleUse struct {
	*box
	from, to    []peerUse
	ports       map[usedPort]bool
	connections uint64
	last        time.Time
}

type usedPort struct {
	proto model.Proto
	port  uint16
}

// peerUse is who was seen as one peer of a rule.
type peerUse struct {
	workloads map[int]bool // indices into the inventory
	addresses map[netip.Addr]bool
}

func (p *peerUse) used() bool { return len(p.workloads)+len(p.addresses) > 0 }

// seen is one end of a flow: every workload that it may be, or an address that none owns.
type seen struct {
	workloads []int
	addr      netip.Addr
}

// read notes each flow at each rule that allows it.
func (u *usage) read(flows []model.RecordedFlow) {
	for i := range flows {
		f := &flows[i]
		if f.Verdict == model.Deny {
			continue
		}
		from, to := u.end(&f.From, f.FromAddr), u.end(&f.To, f.ToAddr)
		sources, destinations := u.meets(from, "from", ""), u.meets(to, "to", f.ToDomain)
		at := 0
		for _, r := range u.rules {
			nFrom, nTo := len(r.from), len(r.to)
			s, d := sources[at:at+nFrom], destinations[at+nFrom:at+nFrom+nTo]
			at += nFrom + nTo
			if !slices.Contains(s, true) || !slices.Contains(d, true) || !r.on.has(f.Proto, f.Port) {
				continue
			}
			r.connections += f.Connections
			if f.Last.After(r.last) {
				r.last = f.Last
			}
			r.ports[usedPort{f.Proto, f.Port}] = true
			note(r.from, s, from)
			note(r.to, d, to)
		}
	}
}

func note(peers []peerUse, meets []bool, end seen) {
	for i := range peers {
		p := &peers[i]
		if !meets[i] {
			continue
		}
		if p.workloads == nil {
			p.workloads, p.addresses = map[int]bool{}, map[netip.Addr]bool{}
		}
		for _, w := range end.workloads {
			p.workloads[w] = true
		}
		if end.addr.IsValid() {
			p.addresses[end.addr] = true
		}
	}
}

func (u *usage) end(e *model.End, addr netip.Addr) seen {
	if i, ok := u.byName[e.Workload]; ok {
		s := seen{workloads: []int{i}, addr: addr}
		if a := u.inv.Instances[i].Addresses; !addr.IsValid() && len(a) > 0 {
			s.addr = a[0]
		}
		return s
	}
	if e.Addr.IsValid() {
		addr = e.Addr
	}
	addr = addr.Unmap().WithZone("")
	return seen{u.byAddr[addr], addr}
}

// meets returns, for each rule and each of its peers in a row, whether the end meets it; those of the other side are
// false.
func (u *usage) meets(end seen, side, domain string) []bool {
	key := fmt.Sprint(side, end.workloads, end.addr, domain)
	if known, ok := u.matched[key]; ok {
		return known
	}
	var out []bool
	for _, r := range u.rules {
		for _, p := range r.box.from {
			out = append(out, side == "from" && u.meetsPeer(&p, end, ""))
		}
		for _, p := range r.box.to {
			out = append(out, side == "to" && u.meetsPeer(&p, end, domain))
		}
	}
	u.matched[key] = out
	return out
}

// meetsPeer leaves processes out: recorded flows seldom name them, and a rule may well be used by what it constrains.
func (u *usage) meetsPeer(p *peerSet, end seen, domain string) bool {
	switch p.peer.Kind {
	case model.PeerAny:
		return true
	case model.PeerWorkloads:
		return slices.ContainsFunc(end.workloads, func(i int) bool { return p.peer.Workloads.Matches(u.inv.Instances[i].Labels) })
	case model.PeerDomain:
		return domain != "" && coverDomain(p.peer.Domain, domain)
	case model.PeerCIDR:
		return end.addr.IsValid() && p.peer.CIDR.Contains(end.addr)
	}
	n := u.networks[p.peer.Network]
	return n != nil && (end.addr.IsValid() && n.Contains(end.addr) ||
		domain != "" && slices.ContainsFunc(n.Domains, func(d string) bool { return coverDomain(d, domain) }))
}

// has reports whether the set holds the port.
func (s portSet) has(p model.Proto, port uint16) bool {
	within := func(r [2]int) bool { return r[0] <= int(port) && int(port) <= r[1] }
	return s.every() || slices.ContainsFunc(s.of(p), within)
}

func (u *usage) report(r *ruleUse) {
	if r.connections == 0 {
		u.add(r.rule.Pos, Notice, CodeNotUsed, "remove it, or give it an expires", "no recorded flow uses the rule %s", r.id)
		return
	}
	u.reportPorts(r)
	for i := range r.from {
		u.reportPeer(r, "source", r.rule.From, i, &r.from[i])
	}
	for i := range r.to {
		u.reportPeer(r, "destination", r.rule.To, i, &r.to[i])
	}
}

// evidence says what was seen of a rule.
func (r *ruleUse) evidence() string {
	text := fmt.Sprintf("%d connections", r.connections)
	if r.connections == 1 {
		text = "1 connection"
	}
	if !r.last.IsZero() {
		text += ", the last on " + r.last.UTC().Format(time.DateOnly)
	}
	return text
}

// fewPorts is up to how many ports a range may be narrowed to; more than that are chosen anew each time.
const fewPorts = 8

func (u *usage) reportPorts(r *ruleUse) {
	for i := range r.rule.On {
		ref := &r.rule.On[i]
		own := u.portSet([]model.PortRef{*ref})
		var used []string
		for p := range r.ports {
			if own.has(p.proto, p.port) {
				used = append(used, usedPortText(p))
			}
		}
		slices.Sort(used)
		used = slices.Compact(used)
		switch text := portRefText(ref); {
		case len(used) == 0:
			u.add(ref.Pos, Notice, CodeBroaderThan, "remove it", "the rule %s allows %s, which recorded flows do not use (%s)", r.id, text, r.evidence()).remove()
		case len(used) <= fewPorts && own.size() > len(used) && own.size() > 1:
			f := u.add(ref.Pos, Notice, CodeBroaderThan, "write "+strings.Join(used, ", "),
				"the rule %s allows %s, of which recorded flows use only %s (%s)", r.id, text, both(used), r.evidence())
			if len(used) == 1 {
				f.replace(used[0])
			}
		}
	}
}

// usedPortText returns the port as documents spell it; ICMP as its type, which is what documents name.
func usedPortText(p usedPort) string {
	if p.proto.IsICMP() {
		return model.PortRange{Proto: p.proto, Lo: p.port &^ 0xff, Hi: p.port | 0xff}.String()
	}
	return model.PortRange{Proto: p.proto, Lo: p.port, Hi: p.port}.String()
}

// size is how many ports the set holds; of ICMP, how many types.
func (s portSet) size() int {
	n := 0
	for _, p := range s {
		for _, r := range p.ranges {
			if p.proto.IsICMP() {
				n += r[1]>>8 - r[0]>>8 + 1
			} else {
				n += r[1] - r[0] + 1
			}
		}
	}
	return n
}

func (u *usage) reportPeer(r *ruleUse, what string, list []model.Peer, i int, use *peerUse) {
	p := &list[i]
	if !use.used() {
		u.add(p.Pos, Notice, CodeBroaderThan, "remove it", "the rule %s has %s as %s, which is in no recorded flow (%s)", r.id, peerText(p), what, r.evidence()).remove()
		return
	}
	switch p.Kind {
	case model.PeerWorkloads:
		u.reportSelector(r, what, p, use)
	case model.PeerAny:
		if s := u.common(use); len(use.workloads) > 0 && !s.Empty() && !u.strangers(use) {
			u.add(p.Pos, Notice, CodeBroaderThan, "write "+selectorText(&s), "the rule %s means every endpoint as %s, but recorded flows have only workloads with %s (%s)",
				r.id, what, s.String(), r.evidence()).replace(selectorText(&s))
		}
	case model.PeerCIDR:
		if narrow := span(use.addresses); narrow.IsValid() && narrow.Bits() >= p.CIDR.Bits()+8 {
			u.add(p.Pos, Notice, CodeBroaderThan, "write {cidr: "+address(narrow.String())+"}", "the rule %s means %s as %s, but recorded flows have only addresses within %s (%s)",
				r.id, p.CIDR, what, narrow, r.evidence()).replace("{cidr: " + address(narrow.String()) + "}")
		}
	}
}

// strangers reports whether an address that no workload owns was seen.
func (u *usage) strangers(use *peerUse) bool {
	for a := range use.addresses {
		if len(u.byAddr[a]) == 0 {
			return true
		}
	}
	return false
}

// reportSelector finds a label that every workload seen has, and others that the selector means have not.
func (u *usage) reportSelector(r *ruleUse, what string, p *model.Peer, use *peerUse) {
	meant, best, fewest := 0, "", 0
	left := map[string]int{} // workloads that the selector with the label would mean
	shared := u.shared(use)
	for i := range u.inv.Instances {
		l := u.inv.Instances[i].Labels
		if !p.Workloads.Matches(l) {
			continue
		}
		meant++
		for _, k := range shared.Keys() {
			if v, ok := l[k]; ok && v == shared[k] {
				left[k]++
			}
		}
	}
	fewest = meant
	for _, k := range preferred(shared) {
		if left[k] < fewest {
			best, fewest = k, left[k]
		}
	}
	if best == "" {
		return
	}
	s := model.MustParseSelector(strings.TrimPrefix(p.Workloads.String()+","+best+"="+shared[best], ","))
	narrowed := *p
	narrowed.Workloads = s
	text := peersText([]model.Peer{narrowed})
	u.add(p.Pos, Notice, CodeBroaderThan, "write "+text, "the rule %s means %d workloads as %s by %q, but recorded flows have only the %d with %s=%s (%s)",
		r.id, meant, what, p.Workloads.String(), fewest, best, shared[best], r.evidence()).replace(text)
}

// shared returns the labels that every workload seen has, but those of the system.
func (u *usage) shared(use *peerUse) model.Labels {
	var out model.Labels
	for i := range use.workloads {
		l := u.inv.Instances[i].Labels
		if out == nil {
			out = l.With(nil)
			continue
		}
		for k, v := range out {
			if w, ok := l[k]; !ok || w != v {
				delete(out, k)
			}
		}
	}
	for k := range out {
		if strings.HasPrefix(k, model.SystemLabelPrefix) {
			delete(out, k)
		}
	}
	return out
}

// common returns the customary labels that every workload seen has, as a selector.
func (u *usage) common(use *peerUse) model.Selector {
	shared := u.shared(use)
	var parts []string
	for _, k := range customary {
		if v, ok := shared[k]; ok && v != "" {
			parts = append(parts, k+"="+v)
		}
	}
	return model.MustParseSelector(strings.Join(parts, ","))
}

// customary are the labels by which people mostly tell workloads apart, the most telling first.
var customary = []string{"app", "role", "env", "loc"}

// preferred returns the keys, customary ones first.
func preferred(l model.Labels) []string {
	keys := l.Keys()
	slices.SortStableFunc(keys, func(a, b string) int { return rank(a) - rank(b) })
	return keys
}

func rank(key string) int {
	if i := slices.Index(customary, key); i >= 0 {
		return i
	}
	return len(customary)
}

// span returns the longest prefix around all addresses; the zero prefix if they are of both families or there are none.
func span(addrs map[netip.Addr]bool) netip.Prefix {
	var out netip.Prefix
	for a := range addrs {
		switch {
		case !out.IsValid():
			out = netip.PrefixFrom(a, a.BitLen())
		case out.Addr().BitLen() != a.BitLen():
			return netip.Prefix{}
		default:
			for !out.Contains(a) {
				out = netip.PrefixFrom(out.Addr(), out.Bits()-1).Masked()
			}
		}
	}
	return out
}
