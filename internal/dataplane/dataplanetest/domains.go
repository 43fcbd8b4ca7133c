package dataplanetest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// Identities of addresses that have names.
const (
	dnsID      model.IdentityID = 0x4001 // the resolver
	exampleID  model.IdentityID = 0x4002
	apiID      model.IdentityID = 0x4003
	evilID     model.IdentityID = 0x4004
	netNamedID model.IdentityID = 0x4005
)

// named are addresses of far that no workload owns, by their number from 1 on.
func named4(i int) string { return fmt.Sprintf("10.77.2.%d", i) }
func named6(i int) string { return fmt.Sprintf("fd77:2::%d", i) }

// addressesWithNames is how many of each there are.
const addressesWithNames = 8

// testDomains tries rules that name hosts, with a resolver at far.
func testDomains(t *testing.T, open Open) {
	whole := newHost(t, open)
	if !whole.d.Capabilities().Domains {
		t.Skip("this dataplane refuses rules that name hosts; RunPort tests that")
	}
	run := func(name string, f func(*names)) {
		t.Run(name, func(t *testing.T) {
			h := whole.with(t)
			h.apply(policy{}) // what an earlier situation has left is over, but for what was told
			n := &names{host: h, tcp: h.farP.Listen("tcp", "[::]:0")}
			t.Cleanup(n.tcp.Close)
			f(n)
		})
	}
	run("an exact name", (*names).exact)
	run("names under a suffix", (*names).wildcard)
	run("CNAMEs lead to the name that was asked for", (*names).aliases)
	run("capital letters", (*names).capitals)
	run("a name ends with its time", (*names).expiry)
	run("several names at one address", (*names).several)
	run("a name that is denied", (*names).denied)
	run("the most specific pattern counts", (*names).specific)
	run("forged answers teach nothing", (*names).forged)
	run("a name that was told before the rule", (*names).later)
	run("a workload's address has no name", (*names).owned)
	run("a name in a network", (*names).inNetwork)
	run("who asked does not matter", (*names).othersAsked)
	run("a resolver on the loopback interface", (*names).loopback)
	run("UDP to a name", (*names).datagrams)
	run("connections by name go on when policy changes", (*names).rejudged)
	run("connections are judged as soon as the answer is there", (*names).atOnce)
	run("names outlive the agent", (*names).reopened) // the last one: it opens the dataplane again
}

// names is the lab with a resolver.
type names struct {
	*host
	tcp *Socket // a server at all addresses of far
}

// follow applies a policy that knows patterns. Who the rules do not name is denied.
func (n *names) follow(domains []hostpolicy.Domain, rules ...Rule) {
	n.t.Helper()
	n.apply(n.policy(domains, rules...))
}

func (n *names) policy(domains []hostpolicy.Domain, rules ...Rule) policy {
	dns := Rule{Dir: model.Egress, Peer: dnsID, Ports: ports("udp/53"), Verdict: model.Allow, Name: model.RuleDNS}
	local := rule(model.Egress, nearID, "udp/53", model.Allow) // a resolver of the host's own, from a unit
	addresses := standard()
	addresses[Far4+"/32"] = hostpolicy.Address{Identity: dnsID}
	addresses[Far6+"/128"] = hostpolicy.Address{Identity: dnsID}
	addresses["127.0.0.53/32"] = hostpolicy.Address{Identity: dnsID}
	addresses["10.77.2.8/32"] = hostpolicy.Address{Identity: netID}
	addresses["fd77:2::8/128"] = hostpolicy.Address{Identity: netID}
	slices.SortFunc(domains, func(a, b hostpolicy.Domain) int { return hostpolicy.CompareDomains(&a, &b) })
	return policy{
		addresses: addresses, domains: domains,
		one:  append([]Rule{dns, local}, rules...),
		host: append([]Rule{dns, rule(model.Ingress, nobody, "udp/53", model.Allow)}, rules...),
	}
}

// resolver serves a zone at far until the situation ends.
func (n *names) resolver(zone Zone) string {
	n.t.Helper()
	s := n.farP.Resolve("udp4", at(Far4, 53), zone)
	n.t.(*testing.T).Cleanup(s.Close)
	return s.Addr
}

// goes checks whether a new connection to an address is allowed.
func (n *names) goes(addr string, allowed bool) {
	n.t.Helper()
	want := "EPERM"
	if allowed {
		want = ""
	}
	n.reaches(n.one, "tcp", at(addr, n.tcp.Port()), want)
}

// lookup asks for both kinds of addresses of a name.
func (n *names) lookup(resolver, name string) {
	n.t.Helper()
	n.one.Lookup("udp4", resolver, name, false)
	n.one.Lookup("udp4", resolver, name, true)
}

// zone of one name with addresses.
func hostOf(name string, ttl uint32, numbers ...int) Zone {
	var z []Record
	for _, i := range numbers {
		z = append(z, Record{Name: name, Addr: named4(i), TTL: ttl}, Record{Name: name, Addr: named6(i), TTL: ttl})
	}
	return Zone{name: z}
}

func merge(zones ...Zone) Zone {
	out := Zone{}
	for _, z := range zones {
		for name, records := range z {
			out[name] = records
		}
	}
	return out
}

// pattern is what the names that it covers make of addresses in no network.
func pattern(p string, id model.IdentityID) hostpolicy.Domain {
	return hostpolicy.Domain{Pattern: p, Identity: id}
}

func allowed(id model.IdentityID) Rule {
	r := rule(model.Egress, id, "any", model.Allow)
	r.Name = model.RuleID(fmt.Sprintf("lab/allow-%x", uint64(id)))
	return r
}

func (n *names) exact() {
	dns := n.resolver(merge(hostOf("api.exact.test", 3600, 1, 2), hostOf("other.exact.test", 3600, 3), hostOf("x.api.exact.test", 3600, 4)))
	n.follow([]hostpolicy.Domain{pattern("api.exact.test", apiID)}, allowed(apiID))
	n.goes(named4(1), false)
	for _, name := range []string{"other.exact.test", "x.api.exact.test", "api.exact.test"} {
		n.lookup(dns, name)
	}
	n.events.clear()
	for _, a := range []string{named4(1), named4(2), named6(1), named6(2)} {
		n.goes(a, true)
		e := n.events.one("the flow", all(kind(dataplane.EventOpen), workload("near/one"), port(n.tcp.Port()), to(a)))
		if e.Rule != allowed(apiID).Name || e.RemoteIdentity != apiID || e.Verdict != model.Allow {
			n.t.Errorf("%s", describe(&e))
		}
	}
	for _, i := range []int{3, 4, 5} {
		n.goes(named4(i), false)
		n.goes(named6(i), false)
	}
}

// to matches events of flows to an address.
func to(addr string) match {
	a := netip.MustParseAddr(addr)
	return func(e *dataplane.Event) bool { return e.Remote.Addr() == a }
}

func (n *names) wildcard() {
	dns := n.resolver(merge(hostOf("a.wild.test", 3600, 1), hostOf("a.b.wild.test", 3600, 2), hostOf("wild.test", 3600, 3),
		hostOf("xwild.test", 3600, 4)))
	n.follow([]hostpolicy.Domain{pattern("*.wild.test", exampleID)}, allowed(exampleID))
	for _, name := range []string{"a.wild.test", "a.b.wild.test", "wild.test", "xwild.test"} {
		n.lookup(dns, name)
	}
	for i, ok := range []bool{true, true, false, false} {
		n.goes(named4(i+1), ok)
		n.goes(named6(i+1), ok)
	}
}

func (n *names) aliases() {
	chain := func(name string, i int) []Record {
		return []Record{
			{Name: name, Target: "edge.cdn.test", TTL: 3600}, {Name: "edge.cdn.test", Target: "e7.cdn.test", TTL: 3600},
			{Name: "e7.cdn.test", Addr: named4(i), TTL: 3600}, {Name: "e7.cdn.test", Addr: named6(i), TTL: 3600},
			{Name: "unrelated.test", Addr: named4(5), TTL: 3600}, {Name: "unrelated.test", Addr: named6(5), TTL: 3600},
		}
	}
	dns := n.resolver(Zone{"shop.alias.test": chain("shop.alias.test", 1), "other.alias.test": chain("other.alias.test", 2)})
	n.follow([]hostpolicy.Domain{pattern("*.cdn.test", exampleID), pattern("shop.alias.test", apiID), pattern("unrelated.test", evilID)},
		allowed(apiID), allowed(exampleID), allowed(evilID))
	n.lookup(dns, "shop.alias.test")
	n.lookup(dns, "other.alias.test")
	n.goes(named4(1), true)
	n.goes(named6(1), true)
	n.goes(named4(2), false) // names on the way are not what was asked for
	n.goes(named4(5), false) // nor is what nothing leads to
}

func (n *names) capitals() {
	dns := n.resolver(hostOf("big.capital.test", 3600, 1))
	n.follow([]hostpolicy.Domain{pattern("big.capital.test", apiID)}, allowed(apiID))
	n.lookup(dns, "BIG.Capital.tEST")
	n.goes(named4(1), true)
}

func (n *names) expiry() {
	dns := n.resolver(hostOf("short.expiry.test", 0, 1)) // less than the least
	domains := []hostpolicy.Domain{pattern("short.expiry.test", apiID)}
	n.follow(domains, allowed(apiID))
	n.one.Lookup("udp4", dns, "short.expiry.test", false)
	s, err := n.one.Dial("tcp4", at(named4(1), n.tcp.Port()))
	if err == "" {
		err = s.Exchange("x", "")
	}
	if err != "" {
		n.t.Fatal(err)
	}
	n.events.wait("its end", func() bool {
		s, err := n.one.Dial("tcp4", at(named4(1), n.tcp.Port()))
		if err == "" {
			s.Close()
		}
		return err == "EPERM"
	})
	if err := s.Exchange("x", ""); err != "" {
		n.t.Errorf("a live connection ends with the name: %s", err)
	}
	// Policy changes: what the connection was judged by still counts for it.
	n.follow(domains, allowed(apiID), allowed(evilID))
	if err := s.Exchange("x", ""); err != "" {
		n.t.Errorf("after a change of rules: %s", err)
	}
	n.follow(append(domains, pattern("*.another.test", evilID)), allowed(apiID), allowed(evilID))
	if err := s.Exchange("x", ""); err != "" {
		n.t.Errorf("after a change of patterns: %s", err)
	}
	n.goes(named4(1), false)
	n.one.Lookup("udp4", dns, "short.expiry.test", false)
	n.goes(named4(1), true)
	n.follow(append(domains, pattern("*.another.test", evilID)), allowed(evilID))
	if err := s.Exchange("x", ""); err == "" {
		n.t.Error("the connection outlives its rule")
	}
}

func (n *names) several() {
	dns := n.resolver(merge(hostOf("a.several.test", 3600, 1), hostOf("b.several.test", 3600, 1, 2), hostOf("unknown.test", 3600, 1, 2)))
	no := rule(model.Egress, evilID, "any", model.Deny)
	n.follow([]hostpolicy.Domain{pattern("a.several.test", apiID), pattern("b.several.test", evilID)}, no, allowed(apiID))
	n.lookup(dns, "unknown.test")
	n.lookup(dns, "b.several.test")
	n.goes(named4(1), false)
	n.lookup(dns, "a.several.test")
	n.goes(named4(1), true)
	n.goes(named6(1), true)
	n.goes(named4(2), false)
}

func (n *names) denied() {
	dns := n.resolver(hostOf("c2.evil.test", 3600, 1))
	no := rule(model.Egress, evilID, "any", model.Deny)
	no.Name = "lab/no-evil"
	n.follow([]hostpolicy.Domain{pattern("*.evil.test", evilID)}, append([]Rule{no}, everything(model.Allow)...)...)
	n.goes(named4(1), true)
	live := n.one.MustDial("tcp4", at(named4(1), n.tcp.Port()))
	n.one.Lookup("udp4", dns, "c2.evil.test", false)
	n.events.clear()
	n.goes(named4(1), false)
	e := n.events.one("the denial", all(kind(dataplane.EventDeny), workload("near/one"), to(named4(1))))
	if e.Rule != "lab/no-evil" || e.RemoteIdentity != evilID {
		n.t.Errorf("%s", describe(&e))
	}
	n.goes(named4(2), true)
	if err := live.Exchange("x", ""); err != "" {
		n.t.Errorf("a connection that was there before the name: %s", err)
	}
}

func (n *names) specific() {
	dns := n.resolver(merge(hostOf("api.specific.test", 3600, 1), hostOf("x.specific.test", 3600, 2), hostOf("y.eu.specific.test", 3600, 3)))
	no := rule(model.Egress, apiID, "any", model.Deny)
	n.follow([]hostpolicy.Domain{pattern("*.specific.test", exampleID), pattern("api.specific.test", apiID), pattern("*.eu.specific.test", evilID)},
		no, allowed(exampleID))
	for _, name := range []string{"api.specific.test", "x.specific.test", "y.eu.specific.test"} {
		n.lookup(dns, name)
	}
	n.goes(named4(1), false)
	n.goes(named4(2), true)
	n.goes(named4(3), false)
}

// forged sends what a host that is no resolver, or a resolver that was not asked, may send.
func (n *names) forged() {
	dns := n.resolver(hostOf("real.forged.test", 3600, 2))
	spare := n.farP.Bind("udp4", at(Far4, 5353)) // the resolver's address, another port
	elsewhere := n.farP.Bind("udp4", at(Other4, 53))
	silent := n.farP.Bind("udp4", at(Far4+"", 0))
	defer spare.Close()
	defer elsewhere.Close()
	defer silent.Close()
	p := n.policy([]hostpolicy.Domain{pattern("*.forged.test", apiID)}, allowed(apiID), rule(model.Ingress, nobody, "udp", model.Allow),
		rule(model.Egress, otherID, "udp", model.Allow))
	n.apply(p)
	c := n.one.Bind("udp4", at(Near4, 0))
	defer c.Close()
	got := func(what string) {
		n.t.Helper()
		if _, err := c.Read(patience); err != "" {
			n.t.Fatalf("%s does not even arrive: %s", what, err)
		}
		n.goes(named4(1), false)
	}
	elsewhere.Answer(c.Addr, "a.forged.test", 7, named4(1))
	got("an answer that nobody asked for")
	c.Question(dns, "a.forged.test", 7) // which the resolver does not know
	elsewhere.Answer(c.Addr, "a.forged.test", 7, named4(1))
	got("an answer of somebody else")
	spare.Answer(c.Addr, "a.forged.test", 7, named4(1))
	got("an answer from another port")
	c.Question(at(Other4, 53), "b.forged.test", 8)
	elsewhere.Answer(c.Addr, "b.forged.test", 8, named4(1))
	got("an answer of a resolver that policy does not name")
	n.one.Lookup("udp4", dns, "real.forged.test", false)
	n.goes(named4(2), true)
}

func (n *names) later() {
	dns := n.resolver(merge(hostOf("first.later.test", 3600, 1), hostOf("second.later.test", 3600, 2)))
	first := pattern("first.later.test", apiID)
	n.follow([]hostpolicy.Domain{first}, allowed(apiID))
	n.lookup(dns, "first.later.test")
	n.lookup(dns, "second.later.test")
	n.goes(named4(1), true)
	n.goes(named4(2), false)
	n.follow([]hostpolicy.Domain{first, pattern("*.later.test", exampleID)}, allowed(apiID), allowed(exampleID))
	n.goes(named4(1), true)
	n.goes(named4(2), true)
	n.goes(named6(2), true)
	n.follow([]hostpolicy.Domain{first}, allowed(apiID))
	n.goes(named4(1), true)
	n.goes(named4(2), false)
}

func (n *names) owned() {
	dns := n.resolver(Zone{"mine.owned.test": {
		{Name: "mine.owned.test", Addr: Other4, TTL: 3600}, {Name: "mine.owned.test", Addr: named4(1), TTL: 3600},
	}})
	n.follow([]hostpolicy.Domain{pattern("mine.owned.test", apiID)}, allowed(apiID))
	n.one.Lookup("udp4", dns, "mine.owned.test", false)
	n.goes(named4(1), true)
	n.goes(Other4, false)
}

func (n *names) inNetwork() {
	dns := n.resolver(merge(hostOf("both.net.test", 3600, 8), hostOf("one.net.test", 3600, 1)))
	n.follow([]hostpolicy.Domain{pattern("*.net.test", exampleID), {Pattern: "*.net.test", Base: netID, Identity: netNamedID}}, allowed(netNamedID))
	n.goes(named4(8), false)
	n.lookup(dns, "both.net.test")
	n.lookup(dns, "one.net.test")
	n.goes(named4(8), true)
	n.goes(named6(8), true)
	n.goes(named4(1), false)
}

func (n *names) othersAsked() {
	dns := n.resolver(hostOf("shared.asked.test", 3600, 1))
	n.follow([]hostpolicy.Domain{pattern("shared.asked.test", apiID)}, allowed(apiID))
	n.own.Lookup("udp4", dns, "shared.asked.test", false)
	n.goes(named4(1), true)
}

// loopback has a resolver that listens on this host, as systemd-resolved does.
func (n *names) loopback() {
	s := n.own.Resolve("udp4", "127.0.0.53:53", hostOf("stub.loopback.test", 3600, 1))
	defer s.Close()
	n.follow([]hostpolicy.Domain{pattern("stub.loopback.test", apiID)}, allowed(apiID))
	n.one.Lookup("udp4", s.Addr, "stub.loopback.test", false)
	n.goes(named4(1), true)
}

func (n *names) datagrams() {
	dns := n.resolver(hostOf("udp.datagram.test", 3600, 1))
	l := n.farP.Listen("udp4", at(named4(1), 0))
	defer l.Close()
	n.follow([]hostpolicy.Domain{pattern("udp.datagram.test", apiID)}, allowed(apiID))
	n.reaches(n.one, "udp4", l.Addr, "EPERM")
	s := n.one.Bind("udp4", at(Near4, 0))
	defer s.Close()
	if err := s.Exchange("x", l.Addr); err != "EPERM" {
		n.t.Errorf("before the answer: %q", err)
	}
	n.one.Lookup("udp4", dns, "udp.datagram.test", false)
	n.reaches(n.one, "udp4", l.Addr, "")
	if err := s.Exchange("x", l.Addr); err != "" {
		n.t.Errorf("the same socket after the answer: %q", err)
	}
}

func (n *names) rejudged() {
	dns := n.resolver(hostOf("live.rejudged.test", 3600, 1))
	domains := []hostpolicy.Domain{pattern("live.rejudged.test", apiID)}
	n.follow(domains, allowed(apiID))
	n.lookup(dns, "live.rejudged.test")
	var open []*Socket
	for _, a := range []string{named4(1), named6(1)} {
		s, err := n.one.Dial("tcp", at(a, n.tcp.Port()))
		if err == "" {
			err = s.Exchange("x", "")
		}
		if err != "" {
			n.t.Fatal(err)
		}
		open = append(open, s)
	}
	works := func(want bool) {
		n.t.Helper()
		for _, s := range open {
			if err := s.Exchange("x", ""); (err == "") != want {
				n.t.Errorf("%s: %q", s.Addr, err)
			}
		}
	}
	if st := n.apply(n.policy(domains, allowed(apiID), allowed(farID))); st.Reset != 0 {
		n.t.Errorf("%+v", st)
	}
	works(true)
	// Another identity by the same name, by a wider pattern.
	if st := n.apply(n.policy([]hostpolicy.Domain{pattern("*.rejudged.test", exampleID)}, allowed(exampleID))); st.Reset != 0 {
		n.t.Errorf("%+v", st)
	}
	works(true)
	if st := n.apply(n.policy([]hostpolicy.Domain{pattern("*.rejudged.test", exampleID)}, allowed(apiID))); st.Reset != 2 {
		n.t.Errorf("%+v", st)
	}
	works(false)
}

// atOnce connects in the moment in which the answer is there, to addresses that had no name before.
func (n *names) atOnce() {
	zone := Zone{}
	for i := 1; i < addressesWithNames; i++ {
		zone = merge(zone, hostOf(fmt.Sprintf("h%d.once.test", i), 3600, i))
	}
	dns := n.resolver(zone)
	n.follow([]hostpolicy.Domain{pattern("*.once.test", apiID)}, allowed(apiID))
	for i := 1; i < addressesWithNames; i++ {
		for _, v6 := range []bool{false, true} {
			if err := n.one.LookupAndDial("udp4", dns, fmt.Sprintf("h%d.once.test", i), v6, n.tcp.Port()); err != "" {
				n.t.Errorf("address %d, IPv6 %t: %s", i, v6, err)
			}
		}
	}
}

func (n *names) reopened() {
	dns := n.resolver(merge(hostOf("before.reopen.test", 3600, 1), hostOf("between.reopen.test", 3600, 2), hostOf("after.reopen.test", 3600, 3)))
	p := n.policy([]hostpolicy.Domain{pattern("*.reopen.test", apiID)}, allowed(apiID))
	n.apply(p)
	n.lookup(dns, "before.reopen.test")
	n.goes(named4(1), true)
	n.events.stop()
	if err := n.d.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.goes(named4(1), true)
	n.lookup(dns, "between.reopen.test") // without an agent
	n.goes(named4(2), true)
	n.d = n.Open(n.open)
	n.goes(named4(1), true)
	n.goes(named4(2), true)
	if st := n.apply(p); st.Changed {
		n.t.Errorf("the policy is not there any more: %+v", st)
	}
	n.lookup(dns, "after.reopen.test")
	n.goes(named4(3), true)
	// Names that were told to the agent before are known to a pattern that comes after it.
	n.follow([]hostpolicy.Domain{pattern("before.reopen.test", exampleID)}, allowed(exampleID))
	n.goes(named4(1), true)
	n.goes(named4(2), false)
}
