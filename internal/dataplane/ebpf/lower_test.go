package ebpf

import (
	"math/rand/v2"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// TestCut checks that blocks cover a range exactly, for all short ranges and random long ones.
func TestCut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	check := func(lo, hi uint16) {
		next := uint32(lo)
		blocks := cut(lo, hi)
		for _, b := range blocks {
			size := uint32(1) << (16 - b.bits)
			if uint32(b.port) != next || next%size != 0 {
				t.Fatalf("%d-%d: block %+v does not follow at %d", lo, hi, b, next)
			}
			next += size
		}
		if next != uint32(hi)+1 {
			t.Fatalf("%d-%d: blocks end at %d", lo, hi, next)
		}
		if len(blocks) > 30 {
			t.Fatalf("%d-%d: %d blocks", lo, hi, len(blocks))
		}
	}
	for range 20000 {
		lo, hi := uint16(r.IntN(65536)), uint16(r.IntN(65536))
		check(min(lo, hi), max(lo, hi))
	}
	check(0, 65535)
	check(65535, 65535)
	check(0, 0)
}

func cells(cs ...hostpolicy.Cell) hostpolicy.Func { return cs }

func cell(on string, v model.Verdict, rule model.RuleID) hostpolicy.Cell {
	p, err := model.ParsePortRange(on)
	if err != nil {
		panic(err)
	}
	return hostpolicy.Cell{Ports: p, Verdict: v, Rule: rule}
}

// TestLowerFunc checks which rows a function costs.
func TestLowerFunc(t *testing.T) {
	deny := func(on string) hostpolicy.Cell { return cell(on, model.Deny, model.RuleDefaultDeny) }
	allow := func(on string) hostpolicy.Cell { return cell(on, model.Allow, "p/r") }
	for _, tt := range []struct {
		name                     string
		f                        hostpolicy.Func
		any, proto, port, ranges int
	}{
		{"nothing but the default", cells(deny("any")), 1, 0, 0, 0},
		{"one port", cells(deny("any"), deny("tcp/0-442"), allow("tcp/443"), deny("tcp/444-65535")), 1, 0, 1, 0},
		{"a whole protocol", cells(deny("any"), allow("tcp")), 1, 1, 0, 0},
		{"a whole protocol as the default", cells(deny("any"), deny("tcp")), 1, 0, 0, 0},
		{"all but one port", cells(deny("any"), allow("tcp/0-442"), deny("tcp/443"), allow("tcp/444-65535")), 1, 1, 1, 0},
		{"an aligned range", cells(deny("any"), deny("tcp/0-8191"), allow("tcp/8192-8447"), deny("tcp/8448-65535")), 1, 0, 0, 1},
		{"a range", cells(deny("any"), deny("tcp/0-7999"), allow("tcp/8000-8100"), deny("tcp/8101-65535")), 1, 0, 1, 3},
		{"an ICMP type", cells(deny("any"), deny("icmp/0"), allow("icmp/1"), hostpolicy.Cell{
			Ports: model.PortRange{Proto: model.ProtoICMP, Lo: 0x200, Hi: 65535}, Rule: model.RuleDefaultDeny,
		}), 1, 0, 0, 1},
		{"a rule of another name is another row", cells(deny("any"), cell("udp", model.Deny, "p/other")), 1, 1, 0, 0},
	} {
		var got [4]int
		for _, p := range lowerFunc(tt.f) {
			switch {
			case p.bits > 0:
				got[3]++
			case p.kind == rowPort:
				got[2]++
			case p.kind == rowProto:
				got[1]++
			default:
				got[0]++
			}
		}
		if want := [4]int{tt.any, tt.proto, tt.port, tt.ranges}; got != want {
			t.Errorf("%s: rows for any, protocol, port, range: %v instead of %v", tt.name, got, want)
		}
	}
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
