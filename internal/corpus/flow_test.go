package corpus_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/corpus"
)

func TestParseFlowLine(t *testing.T) {
	end := func(name string) model.End {
		e := model.End{Workload: name}
		if a, err := netip.ParseAddr(name); err == nil {
			e.Addr = a
		}
		return e
	}
	verdict := func(form corpus.ExpectForm, v model.Verdict) corpus.Expect {
		return corpus.Expect{Form: form, Verdict: model.FlowVerdict{Verdict: v}}
	}
	for text, want := range map[string]corpus.FlowLine{
		"a -> b on tcp/5432": {Flow: model.Flow{From: end("a"), To: end("b"), Proto: model.ProtoTCP, Port: 5432}},
		"a  ->\tb on udp/53: allow": {
			Flow: model.Flow{From: end("a"), To: end("b"), Proto: model.ProtoUDP, Port: 53}, Expect: verdict(corpus.ExpectVerdict, model.Allow),
		},
		"10.0.0.1 -> fd00::1 on icmp/8: deny by p/r": {
			Flow:   model.Flow{From: end("10.0.0.1"), To: end("fd00::1"), Proto: model.ProtoICMP, Port: 0x800},
			Expect: corpus.Expect{Form: corpus.ExpectBy, By: "p/r"},
		},
		"a -> b on 47: would-deny egress=allow:open ingress=would-deny:default-deny": {
			Flow: model.Flow{From: end("a"), To: end("b"), Proto: 47},
			Expect: corpus.Expect{Form: corpus.ExpectEnds, Verdict: model.Join(
				model.EndVerdict{Verdict: model.Allow, Rule: "open"}, model.EndVerdict{Verdict: model.WouldDeny, Rule: "default-deny"})},
		},
		`a [process unit=x.service path="/opt/my app/x" user=u] -> ns/b [process user="]"] [domain api.stripe.com] on sctp/1: error no workload`: {
			Flow: model.Flow{
				From: end("a"), FromProcess: &model.Process{Unit: "x.service", Path: "/opt/my app/x", User: "u"},
				To: end("ns/b"), ToProcess: &model.Process{User: "]"}, ToDomain: "api.stripe.com", Proto: model.ProtoSCTP, Port: 1,
			},
			Expect: corpus.Expect{Form: corpus.ExpectError, Error: "no workload"},
		},
	} {
		got, err := corpus.ParseFlowLine(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(&want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
}

// TestFlowLineErrors holds what a writer of tests is told.
func TestFlowLineErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  `"" stands where a workload or an address is expected`,
		"a b":                               `"b" stands where -> is expected`,
		"a -> on tcp/1":                     `"on" stands where a workload or an address is expected`,
		"a -> b tcp/1: allow":               `"tcp/1:" stands where on is expected`,
		"a -> b on tcp: allow":              `"tcp" is more than one port`,
		"a -> b on icmp: allow":             `"icmp" is more than one port`,
		"a -> b on tcp/x: allow":            `"x" is not a number`,
		"a -> b on tcp/1 allow":             "after the port stand a colon",
		"a -> b on tcp/1:":                  "after the port stand a colon",
		"a -> b on tcp/1: maybe":            `verdict "maybe": use allow, deny or would-deny`,
		"a -> b on tcp/1: allow p/r":        `"p/r": write by RULE`,
		"a -> b on tcp/1: error":            "error stands alone",
		"a -> b on tcp/1: allow egress=a:b": "write by RULE",
		"a -> b on tcp/1: allow egress=allow:a ingress=deny:b": "the verdict over these ends is not allow",
		"a -> b on tcp/1: allow egress=allow: ingress=allow:b": "write VERDICT:RULE",
		"a [process] -> b on tcp/1":                            "[process] says nothing",
		"a [process exe=/x] -> b on tcp/1":                     `"exe=/x": a process is told by`,
		"a [process unit=x unit=y] -> b on tcp/1":              `"unit=y": a process is told by`,
		"a [domain x.org] -> b on tcp/1":                       "[domain …] cannot stand there",
		"a -> b [domain x.org y.org] on tcp/1":                 "[domain …] cannot stand there",
		"a [process unit=x -> b on tcp/1":                      "a ] is missing",
		`a [process unit="x -> b] on tcp/1`:                    "are not closed",
	} {
		_, err := corpus.ParseFlowLine(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q in it", text, err, want)
		}
	}
}

// FuzzFlowLine checks that any line is refused, or comes back from its written form as what it was read as.
func FuzzFlowLine(f *testing.F) {
	for _, s := range []string{
		"a -> b on tcp/5432: allow by p/r", "a -> 10.0.0.1 on icmp/8: deny egress=deny:default-deny ingress=allow:open",
		`a [process unit=x path="/a b" user=u] -> b [domain x.org] on 47: error "quoted"`, "fd00::1 -> b on icmpv6/128/0", "a -> b on udp/1: would-deny",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := corpus.ParseFlowLine(text)
		if err != nil {
			return
		}
		again, err := corpus.ParseFlowLine(l.String())
		if err != nil {
			t.Fatalf("%q is written as %q, which is refused: %v", text, l, err)
		}
		if diff := cmp.Diff(l, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("%q is written as %q, which says something else:\n%s", text, l, diff)
		}
	})
}
