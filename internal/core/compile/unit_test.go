package compile

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

// TestPartitionAgreesWithContains compares the netset of addresses at the edges of every prefix with what each
// network says of itself.
func TestPartitionAgreesWithContains(t *testing.T) {
	checked := 0
	for seed := uint64(0); seed < 300; seed++ {
		docs, inv, _ := policytest.Generate(seed, policytest.Alternate(seed))
		rules, l := lower(docs, inv, policytest.Now)
		if len(l.errs) > 0 {
			t.Fatal(l.errs)
		}
		inOrder := rulePointers(&rules)
		p := newPartition(docs, &inOrder)
		probe := func(a netip.Addr) {
			if !a.IsValid() {
				return
			}
			checked++
			var want []string
			for _, name := range p.names {
				n := l.networks[name]
				if n == nil {
					n = literal(name)
				}
				if n.Contains(a) {
					want = append(want, name)
				}
			}
			if got := p.netsets[p.netsetOf(p.cellOf(a))].names; !slices.Equal(got, want) {
				t.Fatalf("seed %d: %s is in %v, networks say %v", seed, a, got, want)
			}
		}
		for i := range p.cells {
			first := p.cells[i].prefix.Addr()
			last := lastAddr(p.cells[i].prefix)
			for _, a := range []netip.Addr{first, first.Prev(), first.Next(), last, last.Prev(), last.Next()} {
				probe(a)
			}
		}
	}
	if checked < 10_000 {
		t.Errorf("only %d addresses probed", checked)
	}
}

// literal returns the network that a literal CIDR, with what is left out of it, or a domain stands for.
func literal(name string) *model.Network {
	n := &model.Network{}
	for i, part := range strings.Split(name, "!") {
		switch p, err := netip.ParsePrefix(part); {
		case err != nil: // a domain has no address by itself
		case i == 0:
			n.CIDRs = append(n.CIDRs, p)
		default:
			n.Except = append(n.Except, p)
		}
	}
	return n
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func TestUnmapPrefix(t *testing.T) {
	for in, want := range map[string]string{
		"::ffff:198.51.100.77/120": "198.51.100.0/24",
		"::ffff:0.0.0.0/96":        "0.0.0.0/0",
		"10.1.2.3/8":               "10.0.0.0/8",
		"fd00::1/64":               "fd00::/64",
	} {
		if got := unmapPrefix(netip.MustParsePrefix(in)); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// op is something that a table asks: a stroke for every process or for some, or a pass over the rest of its stage.
type op struct {
	stroke
	process *model.Process
	pass    bool
	staged  bool
}

var somebody = []*model.Process{nil, {Unit: "a"}, {Unit: "b"}, {User: "x"}, {Unit: "a", User: "x"}, {Unit: "a", User: "y"}}

func randomOps(r *rand.Rand) []op {
	protos := []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoICMP}
	edges := []uint16{0, 1, 2, 100, 101, 65534, 65535}
	var out []op
	for i := range r.IntN(12) {
		lo, hi := edges[r.IntN(len(edges))], edges[r.IntN(len(edges))]
		o := op{staged: i < 5, stroke: stroke{model.PortRange{Proto: protos[r.IntN(3)], Lo: min(lo, hi), Hi: max(lo, hi)}, model.Verdict(r.IntN(3)), uint32(r.IntN(3)), noAlternative}}
		if r.IntN(10) == 0 {
			o.ports = model.AnyPort
		}
		if r.IntN(3) == 0 {
			o.process = somebody[r.IntN(len(somebody))]
		}
		o.pass = o.staged && o.process == nil && r.IntN(3) == 0
		out = append(out, o)
	}
	return append(out, op{stroke: stroke{model.AnyPort, model.Deny, 0, noAlternative}})
}

func paintAll(f *functionBuilder, p *painter, ops []op) int32 {
	p.start()
	for _, o := range ops {
		if !o.staged {
			p.resume()
		}
		switch {
		case o.pass:
			p.pass(o.ports)
		case o.process != nil:
			p.paintFor(f.process(*o.process), o.stroke)
		default:
			p.paint(o.stroke)
		}
	}
	return f.intern(p.finish())
}

// ask asks one after the other.
func ask(ops []op, proto model.Proto, port uint16, process *model.Process) *op {
	passed := false
	for i := range ops {
		o := &ops[i]
		if !o.ports.Contains(proto, port) || o.staged && passed || o.process != nil && !o.process.Admits(process) {
			continue
		}
		if !o.pass {
			return o
		}
		passed = true
	}
	return nil
}

var (
	probedProtos = []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoICMP, model.ProtoSCTP}
	probedPorts  = []uint16{0, 1, 2, 3, 99, 100, 101, 102, 65533, 65534, 65535}
)

// judgeOf returns what judges by one function.
func judgeOf(f *functionBuilder, fn int32) func(model.Proto, uint16, *model.Process) (model.Verdict, uint32) {
	one := &functions{cells: f.of(fn), start: []uint32{0, uint32(len(f.of(fn)))}, funcs: f.funcs[fn : fn+1], alternatives: f.alternatives}
	j, starts := newJudges(one)
	return func(proto model.Proto, port uint16, process *model.Process) (model.Verdict, uint32) {
		return decide(j, f.functions, starts[0], proto, port, process)
	}
}

// decide returns what the function that begins there comes to.
func decide(j *judges, f *functions, fn int32, proto model.Proto, port uint16, process *model.Process) (model.Verdict, uint32) {
	if j.byPort(fn) != 0 {
		fn = j.find(fn, proto, port)
	}
	return j.decide(f, fn, process)
}

// TestPainterKeepsTheFirst compares painted functions with asking one by one.
func TestPainterKeepsTheFirst(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	f := newFunctionBuilder()
	p := painter{functions: f}
	for i := range 3 {
		f.name(model.RuleID(fmt.Sprint("rule-", i)))
	}
	for range 20_000 {
		ops := randomOps(r)
		fn := paintAll(f, &p, ops)
		judge := judgeOf(f, fn)
		for _, proto := range probedProtos {
			for _, port := range probedPorts {
				for _, process := range somebody {
					want := ask(ops, proto, port, process)
					v, rule := judge(proto, port, process)
					public := f.funcs[fn].Cell(proto, port).For(process)
					if v != want.verdict || rule != want.rule || public.Verdict != v || public.Rule != f.names[rule] {
						t.Fatalf("%+v\n%s/%d %v: %v %v and %v, want %+v", ops, proto, port, process, v, rule, public, want)
					}
				}
			}
		}
		for i, c := range f.of(fn) { // nothing is said twice
			if i > 1 && c.ports.Proto == f.of(fn)[i-1].ports.Proto && c.says(&f.of(fn)[i-1]) {
				t.Fatalf("cells %v are not merged", f.of(fn))
			}
		}
	}
}

func TestMostPermissiveIsPointwise(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	f := newFunctionBuilder()
	b := &tableBuilder{functions: f, paint: painter{functions: f}, maxOf: map[[2]int32]int32{}}
	for i := range 3 {
		f.name(model.RuleID(fmt.Sprint("rule-", i)))
	}
	for range 10_000 {
		x, y := paintAll(f, &b.paint, randomOps(r)), paintAll(f, &b.paint, randomOps(r))
		if x == y {
			continue
		}
		max := b.mostPermissive(x, y)
		if again := b.mostPermissive(x, y); again != max {
			t.Fatalf("the second answer is another")
		}
		ofX, ofY, ofMax := judgeOf(f, x), judgeOf(f, y), judgeOf(f, max)
		for _, proto := range probedProtos {
			for _, port := range probedPorts {
				for _, process := range somebody {
					v, rule := ofX(proto, port, process)
					if w, other := ofY(proto, port, process); w > v {
						v, rule = w, other
					}
					if got, by := ofMax(proto, port, process); got != v || by != rule {
						t.Fatalf("%s/%d %v: %v by %d, want %v by %d", proto, port, process, got, by, v, rule)
					}
				}
			}
		}
	}
}

// TestLookup holds the evaluator's form of tables, some of which resemble each other, to their rows.
func TestLookup(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	shared, grouped := 0, [mostGroups]int{} // tables by what they have in common with others, and rows beside
	for range 300 {
		identities := 1 + r.IntN(3000)
		var tables []table
		var families []int32
		for range 1 + r.IntN(12) {
			families = append(families, int32(r.IntN(3)-1))

			tab := table{def: int32(r.IntN(20) / 19)}
			share, skewed, kinds := r.Float64(), r.IntN(2) == 0, 1+r.IntN(3)
			var like []row // what most rows are taken from
			if len(tables) > 0 && r.IntN(8) > 0 {
				like = tables[r.IntN(len(tables))].rows
			}
			for p := range identities {
				at, found := slices.BinarySearchFunc(like, uint32(p), func(a row, p uint32) int { return cmp.Compare(a.peer, p) })
				switch {
				case found && r.IntN(40) > 0:
					tab.rows = append(tab.rows, like[at])
				case like == nil && r.Float64() < share && (!skewed || p < identities/8), like != nil && r.IntN(200) == 0:
					tab.rows = append(tab.rows, row{uint32(p), int32(2 + r.IntN(kinds))})
				}
			}
			tables = append(tables, tab)
		}
		l := newLookup(tables, families, identities)
		for i := range tables {
			l.addClass(&Seat{}, &policySet{tables: [2]int32{int32(i), int32(i)}}, 0)
		}
		for i := range tables {
			out := &l.tables[i]
			switch {
			case out.common == 0 || out.slots == 0:
			case l.whole[out.common] != inGroups:
				shared++
			case l.groups[out.groups].last:
				grouped[0]++
			default:
				grouped[1]++
			}
			want := map[int32]int32{}
			for _, row := range tables[i].rows {
				want[int32(row.peer)] = row.fn
			}
			for p := int32(-1); p < int32(identities); p++ {
				w, ok := want[p]
				if !ok {
					w = tables[i].def
				}
				var q Question
				l.ask(&q, uint32(i), model.Directions[r.IntN(2)], l.peer(p))
				l.look(&q)
				if q.More() != 0 {
					l.seek(&q)
				}
				if got := q.fn; got != w {
					t.Fatalf("table %d of %d, %d identities, %d rows: peer %d gives %d, want %d", i, len(tables), identities, len(tables[i].rows), p, got, w)
				}
			}
		}
	}
	if shared < 30 || slices.Min(grouped[:]) < 30 {
		t.Errorf("%d tables have a common table and rows of their own, %v have groups: one, two", shared, grouped)
	}
}

// TestIndexes holds the indexes of names and addresses to a map.
func TestIndexes(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for range 200 {
		n := r.IntN(300)
		var workloads []Workload
		var points []int32
		owners := newIPv4Claims(n)
		byName, byAddr := map[string]int32{}, map[uint32]int32{}
		for i := range int32(n) {
			name := strings.Repeat("host-", r.IntN(4)) + strconv.Itoa(r.IntN(4*n))
			if _, ok := byName[name]; !ok {
				byName[name] = i
				workloads, points = append(workloads, Workload{Instance: &model.Instance{Name: name}}), append(points, i)
			}
			addr := uint32(r.IntN(4 * n)) // the address that is all zeros too
			owner := int32(r.IntN(20) - 10)
			byAddr[addr] = owner
			owners.set(addr, owner)
		}
		names, addrs := newNameIndex(workloads, points), newAddrIndex(&owners)
		if addrs.n != len(byAddr) || len(names.left)+len(addrs.left) > 0 {
			t.Fatalf("%d addresses, want %d; %d names and %d addresses found no place", addrs.n, len(byAddr), len(names.left), len(addrs.left))
		}
		for i := range 4*n + 1 {
			for _, name := range []string{"", strconv.Itoa(i), "host-" + strconv.Itoa(i), "host-host-host-" + strconv.Itoa(i)} {
				want, there := byName[name]
				if got, ok := names.find(name); got != want || ok != there {
					t.Fatalf("%s is at %d %v, want %d %v", name, got, ok, want, there)
				}
			}
			want, there := byAddr[uint32(i)]
			if got, ok := addrs.find(uint32(i)); ok != there || ok && got != want {
				t.Fatalf("address %d is of %d %v, want %d %v", i, got, ok, want, there)
			}
		}
	}
}

// TestNamesOfOneHash: no index tells names apart whose hashes are equal, which whoever names workloads may bring about; they
// are found all the same.
func TestNamesOfOneHash(t *testing.T) {
	names := []string{"0123456789abcdef"}
	seed := uint64(len(names[0])) * hashFactor
	first, last := eightBytes(names[0]), eightBytes(names[0][8:])
	for i := range uint64(100) {
		b := binary.LittleEndian.AppendUint64(nil, first+1+i)
		b = binary.LittleEndian.AppendUint64(b, last^mixHash(seed, first)^mixHash(seed, first+1+i))
		names = append(names, string(b))
	}
	inv := &model.Inventory{}
	for _, name := range names {
		if hashName(name) != hashName(names[0]) {
			t.Fatalf("%q has another hash", name)
		}
		inv.Instances = append(inv.Instances, model.Instance{Name: name, Managed: true})
	}
	slices.SortFunc(inv.Instances, func(a, b model.Instance) int { return compareNames(a.Name, b.Name) })
	w, err := Compile(&model.Documents{}, inv, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if wl, seat := w.Workload(name), w.Find(name); wl == nil || wl.Name != name || seat == nil || w.Of(seat) != wl {
			t.Errorf("%q is not found", name)
		}
		if s := w.SpotOfName(w.PlaceOfName(name), name); s != (Spot{}) && w.lookup.classes[s.class].traits&needsALook != 0 {
			t.Errorf("%q has a spot that is nobody's", name)
		}
	}
	if w.Workload("0123456789abcdeg") != nil {
		t.Error("a name that nobody has is found")
	}
}

// TestPerfect holds that keys have places of their own, and that only keys which nothing tells apart have none.
func TestPerfect(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for n := range 400 {
		hashes := make([]uint64, n*n/20)
		seen, alike := map[uint64]int{}, 0
		for i := range hashes {
			hashes[i] = r.Uint64()
			switch {
			case i > 0 && n%4 == 1:
				hashes[i] &= 0xffff // many a hash is another's too, and all are one pilot's
			case i > 0 && n%4 == 2 && r.IntN(3) == 0:
				hashes[i] = hashes[r.IntN(i)]
			}
			if seen[hashes[i]]++; seen[hashes[i]] > 1 {
				alike++
			}
		}
		p, places := newPerfect(hashes)
		again, same := newPerfect(hashes)
		if !slices.Equal(places, same) || !slices.Equal(p.pilots, again.pilots) {
			t.Fatalf("%d keys get other places the second time", len(hashes))
		}
		taken, left := map[uint32]bool{}, 0
		for i, at := range places {
			switch {
			case at == noPlace:
				left++
			case taken[at] || uint64(at) >= p.places || p.at(hashes[i]) != at:
				t.Fatalf("key %d of %d is at %d of %d, found at %d, taken %v", i, len(hashes), at, p.places, p.at(hashes[i]), taken[at])
			default:
				taken[at] = true
			}
		}
		if n%4 != 1 && left != alike {
			t.Fatalf("%d of %d keys have no place, %d have the hash of another", left, len(hashes), alike)
		}
		for range 100 {
			if at := p.at(r.Uint64()); uint64(at) >= p.places {
				t.Fatalf("place %d of %d", at, p.places)
			}
		}
	}
}

func TestLabelIndexFindsWhatMatches(t *testing.T) {
	for seed := uint64(0); seed < 100; seed++ {
		docs, inv, _ := policytest.Generate(seed, policytest.Small)
		var sets []model.Labels
		for i := range inv.Instances {
			sets = append(sets, inv.Instances[i].Labels)
		}
		x := newLabelIndex(sets)
		for i := range docs.Segments {
			s := &docs.Segments[i].Selector
			var want []int32
			for k, l := range sets {
				if s.Matches(l) {
					want = append(want, int32(k))
				}
			}
			if got := x.find(s); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %q selects %v, want %v", seed, s, got, want)
			}
		}
	}
}

func TestMayBeAddress(t *testing.T) {
	for name, want := range map[string]bool{
		"10.0.0.1": true, "fd00::1": true, "::": true, "::ffff:10.0.0.1": true, "ab.cd": true,
		"web-1": false, "cafe": false, "node-1/x.service": false, "": false, "10": false,
		"host-000123": false, "0123456789ab": false, "10.0.0.1-b": false, "db1.eu-west": false, "default/web-0": false, "10.0.0.\xb1": false,
	} {
		if got := MayBeAddress(name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
	r := rand.New(rand.NewPCG(9, 9))
	for range 10_000 {
		var b [16]byte
		for i := range r.IntN(17) {
			b[15-i] = byte(r.IntN(256))
		}
		for _, a := range []netip.Addr{netip.AddrFrom16(b), netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom16(b).Unmap()} {
			for _, text := range []string{a.String(), a.StringExpanded(), strings.ToUpper(a.String())} {
				if !MayBeAddress(text) {
					t.Fatalf("%q is an address", text)
				}
			}
		}
	}
}

// TestJudgesOfManyCells holds the search of a function in its compact form to the one that hosts use, for functions with few
// and with many ranges, one after the other.
func TestJudgesOfManyCells(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	f := newFunctionBuilder()
	f.name("rule-0")
	p := painter{functions: f}
	for i := range 300 {
		p.start()
		for k := range 1 + i%60 {
			proto := probedProtos[r.IntN(len(probedProtos))]
			lo := uint16(r.IntN(65536))
			p.paint(stroke{model.PortRange{Proto: proto, Lo: lo, Hi: lo + uint16(r.IntN(int(65535-lo)+1))}, model.Verdict(k % 3), f.name(model.RuleID(fmt.Sprint("rule-", k))), noAlternative})
		}
		p.paint(stroke{model.AnyPort, model.Deny, 0, noAlternative})
		f.intern(p.finish())
	}
	j, starts := newJudges(f.functions)
	for fn, at := range starts {
		if size := len(f.funcs[fn]); size <= lineOfCells && int(at)/lineOfCells != (int(at)+size-1)/lineOfCells {
			t.Fatalf("function %d of %d cells is in two lines of memory", fn, size)
		}
		check := func(proto model.Proto, port uint16) {
			v, rule := decide(j, f.functions, at, proto, port, nil)
			want := f.funcs[fn].Cell(proto, port)
			if v != want.Verdict || f.names[rule] != want.Rule {
				t.Fatalf("function %d, %d/%d: %v by %s, want %v", fn, proto, port, v, f.names[rule], want)
			}
		}
		for _, c := range f.funcs[fn] {
			for _, port := range []uint16{c.Ports.Lo - 1, c.Ports.Lo, c.Ports.Lo + 1, c.Ports.Hi, c.Ports.Hi + 1} {
				check(c.Ports.Proto, port)
			}
		}
		for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP, 255} {
			check(proto, 0)
			check(proto, 65535)
		}
	}
}
