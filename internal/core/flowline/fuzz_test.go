package flowline_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"testing"
	"unicode/utf8"

	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
)

var seeds = []string{
	`{"from":"portal-1","to":"pay-db-1","proto":"tcp","port":5432}`,
	`{"from":"10.0.1.4","to":"::ffff:10.0.3.7","proto":"icmp","icmp_type":8,"icmp_code":0}`,
	`{"fr\u006fm":"\ud83d\ude80","to":"é","proto":47,"port":4.43e2,"x":[{},[],null,true,-0.5e-7]}`,
	`{"from":"a","to":"b","proto":"tcp","port":443,"from_process":{"unit":"x","path":"/y","user":"z"},"connections":3}`,
	`{"from":"a","to":"b","proto":"udp","port":53,"first":"2026-01-02T03:04:05Z","last":"2026-01-02T03:04:06+01:00","verdict":"deny"}`,
	`{"from":"a","to":"b","proto":"tcp","port":1,"from_addr":"fe80::1%eth0","to_process_name":"\"\\"}`,
	`{"from":1}`, `{"a":`, `[]`, ``,
}

// FuzzParse compares with encoding/json: whatever is read is JSON, and says what encoding/json says.
func FuzzParse(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	var p flowline.Parser
	f.Fuzz(func(t *testing.T, line []byte) {
		var got, again model.Flow
		err := p.Parse(line, &got)
		if errAlone := flowline.Parse(line, &again); (err == nil) != (errAlone == nil) || err != nil && err.Error() != errAlone.Error() {
			t.Fatalf("with a table of names: %v; without: %v", err, errAlone)
		}
		if err != nil {
			if !json.Valid(flowline.AppendError(nil, err)) {
				t.Fatalf("the error %q is no JSON", err)
			}
			return
		}
		if !json.Valid(line) || !utf8.Valid(line) {
			t.Fatalf("read %+v from what is no JSON", got)
		}
		fields := decode(t, line)
		for name, e := range map[string]model.End{"from": got.From, "to": got.To} {
			if text(t, fields[name]) != e.Workload || e.Workload == "" {
				t.Fatalf("%s: read %q from %s", name, e.Workload, fields[name])
			}
		}
		if got.Proto == model.ProtoAny {
			t.Fatal("a flow of every protocol")
		}
		port := got.Port
		switch {
		case got.Proto.IsICMP():
			same(t, fields["icmp_type"], uint64(port>>8))
			same(t, fields["icmp_code"], uint64(port&0xff))
		default:
			same(t, fields["port"], uint64(port))
		}
	})
}

// decode reads the object by encoding/json. Keys there match whatever their case, so it goes through a map.
func decode(t *testing.T, line []byte) map[string]json.RawMessage {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		t.Fatalf("encoding/json: %v", err)
	}
	return fields
}

func text(t *testing.T, raw json.RawMessage) string {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return s
}

// same compares a numeral with a number, exactly. A field that is absent or null counts as 0.
func same(t *testing.T, raw json.RawMessage, n uint64) {
	if raw == nil || string(raw) == "null" {
		raw = json.RawMessage("0")
	}
	if e := bytes.IndexAny(raw, "eE"); e >= 0 && len(raw)-e > 5 {
		return // big.Rat would compute 10 to that power
	}
	r, ok := new(big.Rat).SetString(string(raw))
	if !ok || r.Cmp(new(big.Rat).SetUint64(n)) != 0 {
		t.Fatalf("read %d from %s", n, raw)
	}
}

// FuzzParseRecord checks that whatever is read can be written and read again.
func FuzzParseRecord(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	var p flowline.Parser
	f.Fuzz(func(t *testing.T, line []byte) {
		var got, again model.RecordedFlow
		if err := p.ParseRecord(line, &got); err != nil {
			return
		}
		out := flowline.AppendRecord(nil, &got)
		if !json.Valid(out) {
			t.Fatalf("wrote %s, which is no JSON", out)
		}
		if err := flowline.ParseRecord(out, &again); err != nil {
			t.Fatalf("wrote %s, and cannot read it: %v", out, err)
		}
		if twice := flowline.AppendRecord(nil, &again); !bytes.Equal(twice, out) {
			t.Fatalf("wrote %s, then %s", out, twice)
		}
	})
}

// FuzzAppendError checks that any text is one line of JSON that says the same.
func FuzzAppendError(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := flowline.AppendError(nil, message(s))
		var got struct {
			Error string `json:"error"`
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if want := string([]rune(s)); got.Error != want { // each byte that is not UTF-8 is one U+FFFD
			t.Fatalf("wrote %q as %s", s, out)
		}
		if bytes.ContainsAny(out, "\n\r") {
			t.Fatalf("more than one line: %q", out)
		}
	})
}

type message string

func (m message) Error() string { return string(m) }
