package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/net/dns/dnsmessage"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

func TestPatternKeys(t *testing.T) {
	for _, p := range []string{"a", "*.a", "api.example.org", "*.example.org", "*." + strings.Repeat("x", 200)} {
		k := patternKeyOf(p, 7)
		if got := patternOf(&k); got != p || k.Epoch != 7 {
			t.Errorf("%s: back as %s, epoch %d", p, got, k.Epoch)
		}
	}
}

// TestMostSpecificPattern compares the kernel's search with the reference.
func TestMostSpecificPattern(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, nil)
	patterns := []string{"*.a.test", "a.test", "b.a.test", "*.b.a.test", "*.test", "test", "c.b.a.test", "*.ba.test"}
	slices.Sort(patterns)
	numbers := make([]uint32, len(patterns))
	for i := range numbers {
		numbers[i] = uint32(i)
	}
	if err := putAll(d.maps.Patterns, patternKeys(patterns, 9), numbers); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"test", "x.test", "a.test", "xa.test", "x.a.test", "b.a.test", "ba.test", "x.ba.test", "x.b.a.test", "c.b.a.test", "d.c.b.a.test", "org"} {
		k := patternKeyOf(name, 9)
		k.Bits = 8 * (4 + uint32(maxPattern))
		var number uint32
		got := -1
		if err := d.maps.Patterns.Lookup(&k, &number); err == nil {
			got = int(number)
		}
		if want := mostSpecific(patterns, name); got != want {
			t.Errorf("%s: pattern %d instead of %d", name, got, want)
		}
		k.Epoch = 8
		if err := d.maps.Patterns.Lookup(&k, &number); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("%s: found in another epoch: %v", name, err)
		}
	}
}

// reader runs the program that reads answers on packets that a test makes.
type reader struct {
	t      testing.TB
	d      *Dataplane
	server netip.Addr

	questions, answers *ebpf.Program
}

// read gives the program an answer to the question that a socket has asked, and returns what it has learnt: the addresses and
// until when, in seconds from now on.
func (r *reader) read(message []byte, asked string) map[netip.Addr]uint32 {
	r.t.Helper()
	d := r.d
	for _, m := range []*ebpf.Map{d.maps.Answers} {
		var keys []programsAnswerKey
		var key programsAnswerKey
		var value programsAnswer
		it := m.Iterate()
		for it.Next(&key, &value) {
			keys = append(keys, key)
		}
		if err := deleteAll(m, keys); err != nil {
			r.t.Fatal(err)
		}
	}
	p := udpPacket(r.server, netip.MustParseAddr("10.77.0.1"), 53, 40000, message)
	if _, err := r.answers.Run(&ebpf.RunOptions{Data: p}); err != nil {
		r.t.Fatal(err)
	}
	now := uint32(sinceBoot() / 1e9)
	out := map[netip.Addr]uint32{}
	var key programsAnswerKey
	var value programsAnswer
	it := d.maps.Answers.Iterate()
	for it.Next(&key, &value) {
		out[addrOf(key.Addr)] = value.Until - now
		text := value.Text[:bytes.IndexByte(value.Text[:], 0)]
		slices.Reverse(text)
		if string(text) != strings.ToLower(asked) {
			r.t.Fatalf("the name is kept as %q instead of %q", text, asked)
		}
	}
	if err := it.Err(); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// udpPacket makes a frame, as BPF_PROG_TEST_RUN wants it.
func udpPacket(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	b := make([]byte, 14+20+8, 42+len(payload))
	b[12], b[13] = 8, 0
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(ip[20:], sport)
	binary.BigEndian.PutUint16(ip[22:], dport)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload)))
	return append(b, payload...)
}

// reference says what an answer teaches, by another parser.
func reference(message []byte, asked string, floor, ceiling uint32) map[netip.Addr]uint32 {
	out := map[netip.Addr]uint32{}
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || !h.Response || h.OpCode != 0 || h.RCode != 0 {
		return out
	}
	qs, err := p.AllQuestions()
	if err != nil || len(qs) != 1 || !strings.EqualFold(qs[0].Name.String(), asked+".") {
		return out
	}
	current, least := strings.ToLower(asked)+".", ^uint32(0)
	learn := func(a netip.Addr, ttl uint32) {
		if ttl>>31 != 0 {
			ttl = 0
		}
		a = a.Unmap()
		if a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 224) {
			return
		}
		out[a] = max(out[a], min(max(min(ttl, least), floor), ceiling))
	}
	for range 128 {
		rh, err := p.AnswerHeader()
		if err != nil {
			return out
		}
		mine := rh.Class == dnsmessage.ClassINET && strings.EqualFold(rh.Name.String(), current)
		switch {
		case mine && rh.Type == dnsmessage.TypeA && rh.Length == 4:
			if r, err := p.AResource(); err == nil {
				learn(netip.AddrFrom4(r.A), rh.TTL)
				continue
			}
			return out
		case mine && rh.Type == dnsmessage.TypeAAAA && rh.Length == 16:
			if r, err := p.AAAAResource(); err == nil {
				learn(netip.AddrFrom16(r.AAAA), rh.TTL)
				continue
			}
			return out
		case mine && rh.Type == dnsmessage.TypeCNAME:
			r, err := p.CNAMEResource()
			if err != nil {
				return out
			}
			current = strings.ToLower(r.CNAME.String())
			ttl := rh.TTL
			if ttl>>31 != 0 {
				ttl = 0
			}
			least = min(least, ttl)
		default:
			if p.SkipAnswer() != nil {
				return out
			}
		}
	}
	return out
}

// newReader opens a dataplane with a policy that names hosts, and a resolver.
func newReader(t *testing.T, change func(*Config)) *reader {
	t.Helper()
	d, _ := openForTest(t, change)
	server := netip.MustParseAddr("10.77.0.2")
	pol := namesPolicy(server, "*.test", "*.org")
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: pol}); err != nil {
		t.Fatal(err)
	}
	r := &reader{t: t, d: d, server: server}
	spec, err := loadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	d.resize(spec)
	if err := spec.Variables["one_socket"].Set(true); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]**ebpf.Program{programsProgBulkheadQuestions: &r.questions, programsProgBulkheadAnswers: &r.answers} {
		if *p, err = loadOne(spec, name, d.mapsByName()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*p).Close() })
	}
	return r
}

// namesPolicy allows nothing but DNS, and what the patterns cover.
func namesPolicy(server netip.Addr, patterns ...string) *hostpolicy.Policy {
	cell := func(v model.Verdict, rule model.RuleID) hostpolicy.Func {
		return hostpolicy.Func{{Ports: model.AnyPort, Verdict: v, Rule: rule}}
	}
	deny := cell(model.Deny, model.RuleDefaultDeny)
	set := hostpolicy.PolicySet{
		Ingress: hostpolicy.Table{Funcs: []hostpolicy.Func{deny}},
		Egress: hostpolicy.Table{
			Funcs: []hostpolicy.Func{deny, cell(model.Allow, model.RuleDNS), cell(model.Allow, "p/names")},
			Peers: []hostpolicy.PeerFunc{{Peer: 5, Func: 1}, {Peer: 6, Func: 2}},
		},
	}
	set.ID = set.ContentID()
	p := &hostpolicy.Policy{
		Host: "h", Sets: []hostpolicy.PolicySet{set},
		Subjects:  []hostpolicy.Subject{{Workload: "h", Identity: 3, Set: set.ID, Isolation: set.ID}},
		Addresses: []hostpolicy.Address{{Prefix: netip.PrefixFrom(server, server.BitLen()), Identity: 5}},
	}
	for _, name := range patterns {
		p.Domains = append(p.Domains, hostpolicy.Domain{Pattern: name, Identity: 6})
	}
	slices.SortFunc(p.Domains, func(a, b hostpolicy.Domain) int { return hostpolicy.CompareDomains(&a, &b) })
	return p
}

// ask has the other program see the question.
func (r *reader) ask(name string, id uint16) {
	r.t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		r.t.Fatal(err)
	}
	p := udpPacket(netip.MustParseAddr("10.77.0.1"), r.server, 40000, 53, b)
	if _, err := r.questions.Run(&ebpf.RunOptions{Data: p}); err != nil {
		r.t.Fatal(err)
	}
}

// TestAnswersAreReadLikeTheReference gives the program answers of all kinds, whole and damaged in all kinds of ways, and
// compares what it learns with what another parser finds.
func TestAnswersAreReadLikeTheReference(t *testing.T) {
	t.Parallel()
	r := newReader(t, nil)
	rounds := 20000
	if testing.Short() {
		rounds = 2000
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	taught, damaged := 0, 0
	for i := range rounds {
		name := randomHost(rnd)
		id := uint16(rnd.Uint32())
		message := randomAnswer(rnd, name, id)
		if i%2 == 1 {
			message = damage(rnd, message)
		}
		r.ask(name, id)
		if len(message) >= 2 && binary.BigEndian.Uint16(message) != id {
			binary.BigEndian.PutUint16(message, id)
		}
		got := r.read(message, name)
		want := reference(message, name, 60, 86400)
		for a, ttl := range got {
			if w, ok := want[a]; ok && ttl+2 >= w && ttl <= w {
				got[a] = w // a second may have begun
			}
		}
		if i%2 == 0 && !maps.Equal(got, want) || i%2 == 1 && !within(got, want) {
			t.Fatalf("round %d, %s: learnt %v, the reference %v\n%x", i, name, got, want, message)
		}
		if len(got) > 0 {
			taught++
			if i%2 == 1 {
				damaged++
			}
		}
	}
	t.Logf("%d answers, %d taught something, %d of those were damaged", rounds, taught, damaged)
	if taught < rounds/4 || damaged < rounds/50 {
		t.Error("the test shows little")
	}
}

// within reports whether everything learnt of a damaged answer is what the reference finds too: the program may stop where a
// name is none of a host.
func within(got, want map[netip.Addr]uint32) bool {
	for a, ttl := range got {
		if w, ok := want[a]; !ok || w != ttl {
			return false
		}
	}
	return true
}

func randomHost(r *rand.Rand) string {
	labels := []string{"a", "api", "x-1", "EU", "Long" + strings.Repeat("g", r.IntN(50)), "_s"}
	var out []string
	for range 1 + r.IntN(4) {
		out = append(out, labels[r.IntN(len(labels))])
	}
	return strings.Join(append(out, []string{"test", "org", "ORG", "other"}[r.IntN(4)]), ".")
}

// randomAnswer makes a well-formed answer, compressed or not.
func randomAnswer(r *rand.Rand, name string, id uint16) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, Response: true, RCode: dnsmessage.RCode(r.IntN(20) / 19 * 3)})
	if r.IntN(3) != 0 {
		b.EnableCompression()
	}
	must := func(err error) {
		if err != nil {
			panic(err) // a mistake in the test
		}
	}
	must(b.StartQuestions())
	must(b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}))
	must(b.StartAnswers())
	current := name
	for range r.IntN(12) {
		owner := current
		switch r.IntN(10) {
		case 0:
			owner = "unrelated.test"
		case 1:
			owner = name
		case 2:
			owner = strings.ToUpper(current)
		}
		h := dnsmessage.ResourceHeader{
			Name: dnsmessage.MustNewName(owner + "."), Class: dnsmessage.ClassINET,
			TTL: []uint32{0, 1, 59, 61, 3600, 100000, 1 << 31, 1<<32 - 1}[r.IntN(8)],
		}
		if r.IntN(20) == 0 {
			h.Class = dnsmessage.ClassCHAOS
		}
		switch r.IntN(6) {
		case 0:
			next := randomHost(r)
			must(b.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(next + ".")}))
			if strings.EqualFold(owner, current) && h.Class == dnsmessage.ClassINET {
				current = next
			}
		case 1:
			must(b.TXTResource(h, dnsmessage.TXTResource{TXT: []string{"text"}}))
		case 2, 3:
			var a [16]byte
			binary.BigEndian.PutUint64(a[8:], r.Uint64()>>r.IntN(64))
			a[0], a[1] = []byte{0x20, 0xfe, 0xff, 0xfd, 0}[r.IntN(5)], []byte{0x01, 0x80, 0xbf, 0xc0}[r.IntN(4)]
			if r.IntN(8) == 0 {
				a = netip.MustParseAddr("::ffff:203.0.113.7").As16()
			}
			must(b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a}))
		default:
			first := []byte{10, 203, 127, 169, 0, 224, 255, 192}[r.IntN(8)]
			must(b.AResource(h, dnsmessage.AResource{A: [4]byte{first, byte(254 - r.IntN(2)), byte(r.IntN(4)), byte(r.IntN(256))}}))
		}
	}
	out, err := b.Finish()
	must(err)
	return out
}

// damage changes a message as somebody might who means harm.
func damage(r *rand.Rand, m []byte) []byte {
	m = slices.Clone(m)
	for range 1 + r.IntN(3) {
		switch r.IntN(6) {
		case 0:
			m = m[:r.IntN(len(m)+1)]
		case 1:
			m = append(m, make([]byte, r.IntN(40))...)
		default:
			if len(m) == 0 {
				return m
			}
			at := r.IntN(len(m))
			switch r.IntN(4) {
			case 0:
				m[at] = byte(r.Uint32())
			case 1:
				m[at] = 0
			case 2:
				m[at] ^= 1 << r.IntN(8)
			case 3: // a pointer to somewhere, perhaps itself
				m[at] = 0xc0
				if at+1 < len(m) {
					m[at+1] = byte(r.IntN(len(m)))
				}
			}
		}
	}
	return m
}

// TestAnswersThatCount tries what must fit together for an answer to teach something.
func TestAnswersThatCount(t *testing.T) {
	t.Parallel()
	r := newReader(t, nil)
	answer := func(name string, id uint16) []byte {
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, Response: true})
		q := dnsmessage.Question{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 100}
		if err := errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers(), b.AResource(h, dnsmessage.AResource{A: [4]byte{203, 0, 113, 1}})); err != nil {
			t.Fatal(err)
		}
		out, err := b.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	r.ask("a.test", 7)
	for what, m := range map[string][]byte{"another identifier": answer("a.test", 8), "another name": answer("b.test", 7)} {
		if got := r.read(m, "a.test"); len(got) > 0 {
			t.Errorf("%s: %v", what, got)
		}
	}
	server := r.server
	r.server = netip.MustParseAddr("10.77.0.9")
	if got := r.read(answer("a.test", 7), "a.test"); len(got) > 0 {
		t.Errorf("from elsewhere: %v", got)
	}
	r.ask("elsewhere.test", 9)
	r.server = server
	if got := r.read(answer("elsewhere.test", 9), "elsewhere.test"); len(got) > 0 {
		t.Errorf("a question to somebody else: %v", got)
	}
	if got := r.read(answer("a.test", 7), "a.test"); len(got) != 1 {
		t.Errorf("the answer itself: %v", got)
	}
	if got := r.read(answer("a.test", 7), "a.test"); len(got) != 0 {
		t.Errorf("the answer once more: %v", got)
	}
}

// TestNamesThatDoNotFit counts what is lost by bounds, and goes on.
func TestNamesThatDoNotFit(t *testing.T) {
	t.Parallel()
	r := newReader(t, func(c *Config) { c.MaxNamed = 16 })
	var records []netip.Addr
	for i := range 24 {
		records = append(records, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 1, Response: true})
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("many.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	if err := errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers()); err != nil {
		t.Fatal(err)
	}
	for _, a := range records {
		if err := b.AResource(dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 100}, dnsmessage.AResource{A: a.As4()}); err != nil {
			t.Fatal(err)
		}
	}
	m, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	r.ask("many.test", 1)
	if got := r.read(m, "many.test"); len(got) != len(records) {
		t.Errorf("%d names are kept", len(got))
	}
	if err := r.d.flush(true); err != nil {
		t.Fatal(err)
	}
	c := r.d.mustCount(t)
	if c.NamesLost != uint64(len(records))-16 || c.NamedAddresses != 16 || c.Names != uint64(len(records)) {
		t.Errorf("%+v", c)
	}
	// Another list of patterns: what was learnt under the first makes room.
	if _, err := r.d.Apply(t.Context(), &dataplane.State{Policy: namesPolicy(r.server, "*.many.test")}); err != nil {
		t.Fatal(err)
	}
	if err := r.d.flush(true); err != nil {
		t.Fatal(err)
	}
	if c := r.d.mustCount(t); c.NamedAddresses != 0 {
		t.Errorf("%+v", c)
	}
}

// TestNamesComeAndGo attaches the programs that read answers while rules name hosts, and no longer.
func TestNamesComeAndGo(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, nil)
	server := netip.MustParseAddr("10.77.0.2")
	there := func() (n int) {
		for _, a := range following {
			if d.links[a.program] != nil {
				n++
			}
		}
		return n
	}
	for i, patterns := range [][]string{nil, {"a.test"}, {"a.test", "b.test"}, nil, {"*.test"}, nil} {
		if _, err := d.Apply(t.Context(), &dataplane.State{Policy: namesPolicy(server, patterns...)}); err != nil {
			t.Fatal(err)
		}
		want := 0
		if len(patterns) > 0 {
			want = len(following)
		}
		if there() != want || (d.held.epoch != 0) != (want > 0) {
			t.Errorf("step %d: %d programs, epoch %d", i, there(), d.held.epoch)
		}
		n := 0
		var key patternKey
		var number uint32
		for it := d.maps.Patterns.Iterate(); it.Next(&key, &number); {
			n++
		}
		if n != len(patterns) {
			t.Errorf("step %d: %d patterns in the kernel instead of %d", i, n, len(patterns))
		}
	}
}

// TestKernelWithoutLoops has names of hosts refused where the kernel cannot read answers.
func TestKernelWithoutLoops(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, func(c *Config) { c.withoutLoop = true })
	if caps := d.Capabilities(); caps.Domains || !slices.Contains(caps.Limits, withoutNames) {
		t.Errorf("%+v", caps)
	}
	_, err := d.Apply(t.Context(), &dataplane.State{Policy: namesPolicy(netip.MustParseAddr("10.77.0.2"), "*.test")})
	if !errors.Is(err, dataplane.ErrRefused) || !strings.Contains(fmt.Sprint(err), "*.test") {
		t.Error(err)
	}
}
