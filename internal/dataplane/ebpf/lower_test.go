package ebpf

import (
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

func cells(cs ...hostpolicy.Cell) hostpolicy.Func { return cs }

func cell(on string, v model.Verdict, rule model.RuleID) hostpolicy.Cell {
	p, err := model.ParsePortRange(on)
	if err != nil {
		panic(err)
	}
	return hostpolicy.Cell{Ports: p, Verdict: v, Rule: rule}
}

// TestLower looks every port up in the rows of generated policy sets as find_row in bpf/judge.h does.
func TestLower(t *testing.T) {
	ranges, judged := 0, 0
	for seed := range uint64(60) {
		docs, inv, _ := policytest.Generate(seed, policytest.Alternate(seed))
		w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range w.Hosts() {
			p, _ := w.HostPolicy(host)
			if p.ProcessRule() != "" {
				continue // refused before it is lowered
			}
			for i := range p.Sets {
				l := lower(&p.Sets[i], 7)
				rows, lpm := map[rowKey]row{}, map[rangeKey]row{}
				for _, e := range l.rows {
					if _, twice := rows[e.key]; twice {
						t.Fatalf("seed %d: two rows with key %+v", seed, e.key)
					}
					rows[e.key] = e.row
				}
				for _, e := range l.ranges {
					lpm[e.key] = e.row
				}
				ranges += len(lpm)
				for _, dir := range model.Directions {
					judged += compareTable(t, p.Sets[i].Table(dir), dir, rows, lpm)
				}
			}
		}
	}
	if ranges < 1_500 || judged < 40_000 {
		t.Errorf("%d ranges, %d ports looked up: the worlds test little", ranges, judged)
	}
}

// compareTable looks up every port at which something may change, for one peer of each function.
func compareTable(t *testing.T, table *hostpolicy.Table, dir model.Direction, rows map[rowKey]row, lpm map[rangeKey]row) (judged int) {
	t.Helper()
	peers := make([]uint64, len(table.Funcs)) // 0 is nobody's
	for _, p := range table.Peers {
		peers[p.Func] = uint64(p.Peer)
	}
	for i, f := range table.Funcs {
		for _, c := range f {
			proto := c.Ports.Proto
			if proto == model.ProtoAny {
				proto = 99
			}
			for _, port := range []uint16{c.Ports.Lo, c.Ports.Lo + (c.Ports.Hi-c.Ports.Lo)/3, c.Ports.Hi} {
				judged++
				got, want := findRow(rows, lpm, peers[i], dir, uint8(proto), port), f.Cell(proto, port)
				if got.Rule != ruleNumber(want.Rule) || got.Verdict != uint8(want.Verdict) {
					t.Fatalf("%s/%d of peer %d: row %+v, want %+v", proto, port, peers[i], got, want)
				}
			}
		}
	}
	return judged
}

// findRow is find_row in bpf/judge.h.
func findRow(rows map[rowKey]row, lpm map[rangeKey]row, peer uint64, dir model.Direction, proto uint8, port uint16) row {
	any, ok := rows[rowKey{Peer: peer, Pset: 7, Kind: rowAny | uint8(dir)}]
	if !ok {
		any = rows[rowKey{Pset: 7, Kind: rowAny | uint8(dir)}]
	}
	function := uint64(any.Function)
	if any.Has&hasPort != 0 {
		if r, ok := rows[rowKey{Peer: function, Pset: 7, Port: port, Proto: proto, Kind: rowPort | uint8(dir)}]; ok {
			return r
		}
	}
	for bits := 16; bits > 0 && any.Has&hasRange != 0; bits-- {
		block := port & (^uint16(0) << (16 - bits))
		if r, ok := lpm[rangeKey{Bits: uint32(80 + bits), Pset: 7, Function: any.Function, Dir: uint8(dir), Proto: proto, Port: networkOrder(block)}]; ok {
			return r
		}
	}
	if any.Has&hasProto != 0 {
		if r, ok := rows[rowKey{Peer: function, Pset: 7, Proto: proto, Kind: rowProto | uint8(dir)}]; ok {
			return r
		}
	}
	return any
}

// TestRuleNumbers checks that no rule gets a number that stands for something else.
func TestRuleNumbers(t *testing.T) {
	seen := map[uint64]model.RuleID{}
	for _, r := range []model.RuleID{
		model.RuleOpen, model.RuleSameWorkload, model.RuleController, model.RuleDHCP, model.RuleND, model.RuleICMPError,
		model.RuleDefaultDeny, model.RuleIsolate, model.RuleDNS, model.RuleTime, "a/b", "a/c", "",
	} {
		n := ruleNumber(r)
		if other, ok := seen[n]; ok || n == 0 {
			t.Errorf("%q has number %d, like %q", r, n, other)
		}
		seen[n] = r
		fixed := n < uint64(len(fixedRules))
		if fixed && fixedRules[n] != r {
			t.Errorf("%q has the number of %q", r, fixedRules[n])
		}
	}
}
