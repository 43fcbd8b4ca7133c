package essential

import (
	"testing"

	"bulkhead/internal/core/model"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		proto model.Proto
		port  uint16
		want  model.RuleID
	}{
		{model.ProtoUDP, 67, model.RuleDHCP}, {model.ProtoUDP, 547, model.RuleDHCP},
		{model.ProtoUDP, 53, ""}, {model.ProtoTCP, 67, ""},
		{model.ProtoICMP, model.ICMPPort(3, 4), model.RuleICMPError}, {model.ProtoICMP, model.ICMPPort(8, 0), ""},
		{model.ProtoICMPv6, model.ICMPPort(135, 0), model.RuleND}, {model.ProtoICMPv6, model.ICMPPort(2, 0), model.RuleICMPError},
		{model.ProtoICMPv6, model.ICMPPort(128, 0), ""}, {model.ProtoICMP, model.ICMPPort(135, 0), ""},
	} {
		if got, ok := Match(c.proto, c.port); got != c.want || ok != (c.want != "") {
			t.Errorf("%s %d: %q, %v, want %q", c.proto, c.port, got, ok, c.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { Match(model.ProtoICMPv6, 0) }); n != 0 {
		t.Errorf("a match allocates %v times", n)
	}
}
