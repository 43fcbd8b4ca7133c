package flowline_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

var comparable = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func end(s string) model.End {
	e := model.End{Workload: s}
	if a, err := netip.ParseAddr(s); err == nil {
		e.Addr = a.Unmap().WithZone("")
	}
	return e
}

func TestParse(t *testing.T) {
	tcp := model.Flow{From: end("a"), To: end("b"), Proto: model.ProtoTCP, Port: 443}
	with := func(change func(*model.Flow)) model.Flow {
		f := tcp
		change(&f)
		return f
	}
	for _, c := range []struct {
		line string
		want model.Flow
	}{
		{`{"from":"a","to":"b","proto":"tcp","port":443}`, tcp},
		{" { \"port\" : 443 ,\t\"proto\" : \"TCP\" , \"to\" : \"b\" , \"from\" : \"a\" } \r\n", tcp},
		{`{"from":"a","to":"b","proto":6,"port":443}`, tcp},
		{`{"from":"a","to":"b","proto":"6","port":443}`, tcp},
		{`{"from":"a","to":"b","proto":"tcp","port":443.0}`, tcp},
		{`{"from":"a","to":"b","proto":"tcp","port":4.43e2}`, tcp},
		{`{"from":"a","to":"b","proto":"tcp","port":4430E-1}`, tcp},
		{`{"fr\u006fm":"\u0061","to":"b","proto":"tcp","port":443}`, tcp},
		{`{"x":{"y":[1,-2.5e+3,{"z":null}],"w":{}},"from":"a","to":"b","proto":"tcp","port":443,"v":[],"t":true,"f":false}`, tcp},
		{`{"from":"a","to":"b","proto":"tcp","port":443,"icmp_type":null,"from_process":null}`, tcp},
		{`{"from":"a","to":"b","proto":"tcp","port":443,"connections":"not of a flow","verdict":3}`, tcp},
		{`{"from":"a","to":"b","proto":"tcp","port":0}`, with(func(f *model.Flow) { f.Port = 0 })},
		{`{"from":"a","to":"b","proto":"tcp","port":-0}`, with(func(f *model.Flow) { f.Port = 0 })},
		{`{"from":"a","to":"b","proto":"udp","port":65535}`, with(func(f *model.Flow) { f.Proto, f.Port = model.ProtoUDP, 65535 })},
		{`{"from":"a","to":"b","proto":"sctp","port":3868}`, with(func(f *model.Flow) { f.Proto, f.Port = model.ProtoSCTP, 3868 })},
		{`{"from":"a","to":"b","proto":"icmp","icmp_type":8}`, with(func(f *model.Flow) { f.Proto, f.Port = model.ProtoICMP, 0x800 })},
		{`{"from":"a","to":"b","proto":"icmpv6","icmp_code":3,"icmp_type":1,"port":null}`,
			with(func(f *model.Flow) { f.Proto, f.Port = model.ProtoICMPv6, 0x103 })},
		{`{"from":"a","to":"b","proto":"icmp","icmp_type":255,"icmp_code":255,"port":0}`,
			with(func(f *model.Flow) { f.Proto, f.Port = model.ProtoICMP, 0xffff })},
		{`{"from":"a","to":"b","proto":"47"}`, with(func(f *model.Flow) { f.Proto, f.Port = 47, 0 })},
		{`{"from":"10.0.1.4","to":"::ffff:10.0.3.7","proto":"tcp","port":443}`, with(func(f *model.Flow) {
			f.From = model.End{Workload: "10.0.1.4", Addr: netip.MustParseAddr("10.0.1.4")}
			f.To = model.End{Workload: "::ffff:10.0.3.7", Addr: netip.MustParseAddr("10.0.3.7")}
		})},
		{`{"from":"fe80::1%eth0","to":"b","proto":"tcp","port":443}`, with(func(f *model.Flow) {
			f.From = model.End{Workload: "fe80::1%eth0", Addr: netip.MustParseAddr("fe80::1")}
		})},
		{`{"from":"caf\u00e9/\"\\\/\b\f\n\r\t","to":"\ud83d\ude80é","proto":"tcp","port":443}`, with(func(f *model.Flow) {
			f.From, f.To = model.End{Workload: "café/\"\\/\b\f\n\r\t"}, model.End{Workload: "🚀é"}
		})},
		{`{"from":"a","to":"b","proto":"tcp","port":443,"from_process":{"unit":"x.service","path":"/bin/x","user":"x","pid":7},"to_process":{}}`,
			with(func(f *model.Flow) {
				f.FromProcess = &model.Process{Unit: "x.service", Path: "/bin/x", User: "x"}
				f.ToProcess = &model.Process{}
			})},
		{`{"from":"a","to":"b","proto":"tcp","port":443,"to_domain":"API.Example.org."}`,
			with(func(f *model.Flow) { f.ToDomain = "api.example.org" })},
	} {
		for _, p := range []interface {
			Parse([]byte, *model.Flow) error
		}{single{}, &flowline.Parser{}} {
			var got model.Flow
			if err := p.Parse([]byte(c.line), &got); err != nil {
				t.Errorf("%s: %v", c.line, err)
			} else if diff := cmp.Diff(c.want, got, comparable); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.line, diff)
			}
		}
	}
}

// single reads by the functions of the package.
type single struct{}

func (single) Parse(line []byte, f *model.Flow) error { return flowline.Parse(line, f) }

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{``, `the line is empty; a flow is a JSON object`},
		{"  \r\n", `the line is empty; a flow is a JSON object`},
		{`x`, `not JSON at column 1: a flow is an object that begins with '{', not 'x'`},
		{`[]`, `not JSON at column 1: a flow is an object that begins with '{', not '['`},
		{`{}`, `from is missing`},
		{`{"from":null,"to":"b","proto":"tcp","port":1}`, `from is missing`},
		{`{"from":"a"}`, `to is missing`},
		{`{"from":"a","to":"b"}`, `proto is missing`},
		{`{"from":"a","to":"b","proto":"tcp"}`, `port is required for tcp`},
		{`{"from":"a","to":"b","proto":"sctp","port":null}`, `port is required for sctp`},
		{`{"from":"a","to":"b","proto":"icmp"}`, `icmp_type is required for icmp`},
		{`{"from":"a","to":"b","proto":"icmpv6","icmp_code":0}`, `icmp_type is required for icmpv6`},
		{`{"from":"a","to":"b","proto":"icmp","port":8}`, `icmp has no port; give icmp_type and icmp_code`},
		{`{"from":"","to":"b","proto":"tcp","port":1}`, `from is empty`},
		{`{"from":7,"to":"b","proto":"tcp","port":1}`, `from must be text in quotes, not 7`},
		{`{"from":["a"],"to":"b","proto":"tcp","port":1}`, `from must be text in quotes, not ["a"]`},
		{`{"from":"a","to":"b","proto":"tcp","port":70000}`, `port 70000 is out of range`},
		{`{"from":"a","to":"b","proto":"tcp","port":-1}`, `port -1 is out of range`},
		{`{"from":"a","to":"b","proto":"tcp","port":1e300}`, `port 1e300 is out of range`},
		{`{"from":"a","to":"b","proto":"tcp","port":99999999999999999999999}`, `port 99999999999999999999999 is out of range`},
		{`{"from":"a","to":"b","proto":"tcp","port":1.5}`, `port 1.5 is not a whole number`},
		{`{"from":"a","to":"b","proto":"tcp","port":"443"}`, `port must be a number, not "443"`},
		{`{"from":"a","to":"b","proto":"tcp","port":true}`, `port must be a number, not true`},
		{`{"from":"a","to":"b","proto":"icmp","icmp_type":256}`, `icmp_type 256 is out of range`},
		{`{"from":"a","to":"b","proto":"tpc","port":1}`, `unknown protocol "tpc": use tcp, udp, sctp, icmp, icmpv6 or a number from 1 to 255`},
		{`{"from":"a","to":"b","proto":"any","port":1}`, `unknown protocol "any": use tcp, udp, sctp, icmp, icmpv6 or a number from 1 to 255`},
		{`{"from":"a","to":"b","proto":0,"port":1}`, `proto 0 is no protocol of a flow; name it, such as tcp`},
		{`{"from":"a","to":"b","proto":256,"port":1}`, `proto 256 is out of range`},
		{`{"from":"a","from":"c","to":"b","proto":"tcp","port":1}`, `from is there twice`},
		{`{"from":"a","fr\u006fm":null,"to":"b","proto":"tcp","port":1}`, `from is there twice`},
		{`{"from":"a","to":"b","proto":"tcp","port":1,"from_process":"curl"}`, `from_process must be an object, not "curl"`},
		{`{"from":"a","to":"b","proto":"tcp","port":1,"to_process":{"unit":1}}`, `unit of a process must be text in quotes, not 1`},
		{`{"from":"a","to":"b","proto":"tcp","port":1,"to_process":{"unit":"a","unit":"b"}}`, `unit is there twice in to_process`},
		{`{"from":"a","to":"b","proto":"tcp","port":1`, `not JSON at column 44: expected ',' or '}', not the end of the line`},
		{`{"from":"a","to":"b","proto":"tcp","port":1}}`, `not JSON at column 45: '}' stands after the object`},
		{`{"from":"a","to":"b","proto":"tcp","port":1,}`, `not JSON at column 45: expected a field name in quotes, not '}'`},
		{`{"from":"a" "to":"b"}`, `not JSON at column 13: expected ',' or '}', not '"'`},
		{`{"from" "a"}`, `not JSON at column 9: expected ':' after a field name, not '"'`},
		{`{from:"a"}`, `not JSON at column 2: expected a field name in quotes, not 'f'`},
		{`{"from":"a`, `not JSON at column 11: the text is not closed by a quote`},
		{`{"from":"a\`, `not JSON at column 12: the text is not closed by a quote`},
		{`{"from":"a\"`, `not JSON at column 13: the text is not closed by a quote`},
		{`{"from":"a\x"}`, `not JSON at column 11: unknown escape in text`},
		{`{"from":"\u12g4"}`, `not JSON at column 10: \u takes four hexadecimal digits`},
		{`{"from":"\ud83d"}`, `not JSON at column 10: half of a surrogate pair is no character`},
		{`{"from":"\ud83d\u0061"}`, `not JSON at column 10: half of a surrogate pair is no character`},
		{"{\"from\":\"a\tb\"}", `not JSON at column 11: a control character in text must be escaped`},
		{"{\"from\":\"\xff\"}", `not JSON at column 10: the text is not UTF-8`},
		{"{\"from\":\"\xff\\n\"}", `not JSON at column 10: the text is not UTF-8`},
		{`{"port":01}`, `not JSON at column 9: a number does not begin with 0`},
		{`{"port":-}`, `not JSON at column 10: a digit is missing in a number`},
		{`{"port":1.}`, `not JSON at column 11: a digit is missing after the point of a number`},
		{`{"port":1e}`, `not JSON at column 11: a digit is missing in the exponent of a number`},
		{`{"x":nul}`, `not JSON at column 6: expected a value, not 'n'`},
		{`{"x":[1 2]}`, `not JSON at column 9: expected ',' or ']', not '2'`},
		{`{"x":` + strings.Repeat("[", 200), `not JSON at column 107: lists and objects are nested too deeply`},
	} {
		var f model.Flow
		err := flowline.Parse([]byte(c.line), &f)
		if err == nil {
			t.Errorf("%s: accepted", c.line)
		} else if err.Error() != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.line, err, c.want)
		}
	}
}

func TestParseRecord(t *testing.T) {
	first := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	line := `{"from":"a","to":"10.0.0.9","proto":"tcp","port":443,"connections":12,"first":"2026-01-02T03:04:05.000000678Z",` +
		`"last":"2026-01-02T05:04:06+01:00","from_addr":"10.0.0.1","to_addr":"::ffff:10.0.0.9","from_process_name":"curl",` +
		`"to_process_name":"ngi\u006ex","verdict":"would-deny","host":"h"}`
	want := model.RecordedFlow{
		Flow:        model.Flow{From: end("a"), To: end("10.0.0.9"), Proto: model.ProtoTCP, Port: 443},
		FromAddr:    netip.MustParseAddr("10.0.0.1"),
		ToAddr:      netip.MustParseAddr("10.0.0.9"),
		Connections: 12, First: first, Last: time.Date(2026, 1, 2, 4, 4, 6, 0, time.UTC),
		Verdict: model.WouldDeny, FromName: "curl", ToName: "nginx",
	}
	var got model.RecordedFlow
	if err := flowline.ParseRecord([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, comparable); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := flowline.ParseRecord([]byte(`{"from":"a","to":"b","proto":"tcp","port":1,"last":"2026-01-02T03:04:05Z"}`), &got); err != nil {
		t.Fatal(err)
	}
	if got.Connections != 1 || got.Verdict != model.Allow || !got.First.Equal(got.Last) || got.FromName != "" || got.FromAddr.IsValid() {
		t.Errorf("defaults: %+v", got)
	}
}

func TestParseRecordErrors(t *testing.T) {
	for _, c := range []struct{ fields, want string }{
		{`"connections":0`, `connections must be at least 1`},
		{`"connections":18446744073709551616`, `connections 18446744073709551616 is out of range`},
		{`"first":"0000-01-01T00:00:00+01:00"`, `first "0000-01-01T00:00:00+01:00" is no moment; write it as 2026-12-31T23:59:59Z`},
		{`"first":"yesterday"`, `first "yesterday" is no moment; write it as 2026-12-31T23:59:59Z`},
		{`"first":"2026-01-02T00:00:00Z","last":"2026-01-01T00:00:00Z"`, `last is before first`},
		{`"from_addr":"a"`, `from_addr "a" is no address`},
		{`"to_addr":""`, `to_addr "" is no address`},
		{`"verdict":"maybe"`, `unknown verdict "maybe": use allow, deny or would-deny`},
		{`"from_process_name":{}`, `from_process_name must be text in quotes, not {}`},
	} {
		var r model.RecordedFlow
		err := flowline.ParseRecord([]byte(`{"from":"a","to":"b","proto":"tcp","port":1,`+c.fields+`}`), &r)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", c.fields, err, c.want)
		}
	}
}

func TestAppendVerdict(t *testing.T) {
	v := model.Join(model.EndVerdict{Verdict: model.Allow, Rule: "payments/api-reads-db"}, model.EndVerdict{Verdict: model.WouldDeny, Rule: "a\"b"})
	want := `x{"verdict":"would-deny","egress":{"verdict":"allow","rule":"payments/api-reads-db"},"ingress":{"verdict":"would-deny","rule":"a\"b"}}`
	if got := string(flowline.AppendVerdict([]byte("x"), v)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAppendError(t *testing.T) {
	texts := []string{"", "plain", "quote \" backslash \\ slash /", "line\nfeed\ttab\rreturn\x00\x1f\x7f", "ünï→🚀", "broken \xff\xc3 bytes", "\u2028<&>"}
	for _, s := range texts {
		out := flowline.AppendError(nil, errors.New(s))
		var got map[string]string
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%q: %v: %s", s, err, out)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); got["error"] != want && s != "broken \xff\xc3 bytes" {
			t.Errorf("%q: got %q", s, got["error"])
		}
		if bytes.ContainsAny(out, "\n\r") {
			t.Errorf("%q: more than one line: %s", s, out)
		}
	}
	if got := string(flowline.AppendError(nil, nil)); got != `{"error":""}` {
		t.Errorf("nil error: %s", got)
	}
}

// record makes a recorded flow with everything in it of a generated one.
func record(i int, f model.Flow) model.RecordedFlow {
	at := policytest.Now.Add(time.Duration(i) * time.Second)
	r := model.RecordedFlow{Flow: f, Connections: uint64(i + 1), First: at, Last: at.Add(time.Duration(i)), Verdict: model.Verdict(i % 3)}
	if i%2 == 0 {
		r.FromAddr, r.ToAddr = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
		r.FromProcess = &model.Process{Path: "/usr/bin/cürl", User: "www"}
	}
	if i%3 == 0 {
		r.FromName, r.ToName = "curl", `a "b"`
		r.ToProcess = &model.Process{}
	}
	return r
}

// TestRecordRoundTrip is the property that a recorded flow survives being written and read.
func TestRecordRoundTrip(t *testing.T) {
	var p flowline.Parser
	for seed := range uint64(20) {
		_, _, flows := policytest.Generate(seed, policytest.Small)
		for i, f := range flows {
			want := record(i, f)
			line := flowline.AppendRecord(nil, &want)
			if !json.Valid(line) {
				t.Fatalf("not JSON: %s", line)
			}
			var got model.RecordedFlow
			if err := p.ParseRecord(line, &got); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			want.From, want.To = end(want.From.String()), end(want.To.String())
			if f.From.Workload == "" && f.From.Addr.Is4In6() {
				want.From = end(f.From.Addr.Unmap().String())
			}
			if f.To.Workload == "" && f.To.Addr.Is4In6() {
				want.To = end(f.To.Addr.Unmap().String())
			}
			if diff := cmp.Diff(want, got, comparable); diff != "" {
				t.Fatalf("%s (-written +read):\n%s", line, diff)
			}
		}
	}
}

func TestNoAllocation(t *testing.T) {
	var lines [][]byte
	for _, l := range []string{
		`{"from":"portal-1","to":"pay-db-1","proto":"tcp","port":5432}`,
		`{"from":"10.0.1.4","to":"fd00::3:7","proto":"udp","port":53,"note":{"a":[1,2]}}`,
		`{"from":"portal-1","to":"10.0.3.7","proto":"icmp","icmp_type":8,"icmp_code":0,"from_process":{"path":"/bin/ping"}}`,
		`{"from":"portal-1","to":"caf\u00e9","proto":"tcp","port":80}`,
	} {
		lines = append(lines, []byte(l))
	}
	var p flowline.Parser
	var f model.Flow
	out := make([]byte, 0, 4096)
	v := model.FlowVerdict{Egress: model.EndVerdict{Rule: "payments/api-reads-db"}, Ingress: model.EndVerdict{Rule: model.RuleDefaultDeny}}
	run := func() {
		for _, l := range lines {
			if err := p.Parse(l, &f); err != nil {
				t.Fatal(err)
			}
			out = flowline.AppendVerdict(out[:0], v)
		}
	}
	run() // the first time, names are new
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations for lines whose names are known", n)
	}
}

func TestParserForgets(t *testing.T) {
	var p flowline.Parser
	var f model.Flow
	for i := range 300_000 { // more names than the table takes
		line := fmt.Appendf(nil, `{"from":"host-%d","to":"10.%d.%d.%d","proto":"tcp","port":1}`, i, i>>16, i>>8&255, i&255)
		if err := p.Parse(line, &f); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("host-%d", i); f.From.Workload != want || f.To.Addr.As4() != [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)} {
			t.Fatalf("%s: read as %+v", line, f)
		}
	}
}

// TestLineMayBeReused shows that a flow keeps nothing of the buffer that it was read from.
func TestLineMayBeReused(t *testing.T) {
	line := []byte(`{"from":"portal-1","to":"caf\u00e9","proto":"tcp","port":80,"from_process":{"user":"www"}}`)
	for _, p := range []interface {
		Parse([]byte, *model.Flow) error
	}{single{}, &flowline.Parser{}} {
		var f model.Flow
		buffer := bytes.Clone(line)
		if err := p.Parse(buffer, &f); err != nil {
			t.Fatal(err)
		}
		clear(buffer)
		if f.From.Workload != "portal-1" || f.To.Workload != "café" || f.FromProcess.User != "www" {
			t.Errorf("read as %+v", f)
		}
	}
}
