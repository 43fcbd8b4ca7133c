package model

import (
	"strings"
	"testing"
)

func TestParsePortRange(t *testing.T) {
	for in, want := range map[string]PortRange{
		"tcp/443":       {ProtoTCP, 443, 443},
		"TCP/443":       {ProtoTCP, 443, 443},
		"udp/53":        {ProtoUDP, 53, 53},
		"tcp/8000-8100": {ProtoTCP, 8000, 8100},
		"tcp":           {ProtoTCP, 0, 65535},
		"sctp/3868":     {ProtoSCTP, 3868, 3868},
		"icmp":          {ProtoICMP, 0, 65535},
		"icmp/8":        {ProtoICMP, 0x0800, 0x08ff},
		"icmp/8/0":      {ProtoICMP, 0x0800, 0x0800},
		"icmpv6/255":    {ProtoICMPv6, 0xff00, 0xffff},
		"any":           AnyPort,
	} {
		got, err := ParsePortRange(in)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", in, got, err, want)
			continue
		}
		if again, err := ParsePortRange(got.String()); err != nil || again != got {
			t.Errorf("%q is written %q, which is %+v, %v", in, got, again, err)
		}
	}
}

func TestParsePortRangeErrors(t *testing.T) {
	for in, want := range map[string]string{
		"tcp/70000":  "out of range 0–65535",
		"tcp/x":      "not a number",
		"tcp/-1":     "not a number",
		"tcp/9-8":    "ends before it begins",
		"icmp/256":   "out of range 0–255",
		"icmp/8/256": "out of range 0–255",
		"any/5":      "any takes no port",
		"http":       "unknown protocol",
		"":           "unknown protocol",
		"443":        "unknown protocol",
	} {
		_, err := ParsePortRange(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one that says %q", in, err, want)
		}
	}
}

func FuzzParsePortRange(f *testing.F) {
	for _, s := range []string{"tcp/443", "icmp/8/0", "any", "udp/1-2", "icmpv6"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ParsePortRange(in)
		if err != nil {
			return
		}
		if again, err := ParsePortRange(r.String()); err != nil || again != r {
			t.Fatalf("%q is %+v, written %q, which is %+v, %v", in, r, r.String(), again, err)
		}
	})
}
