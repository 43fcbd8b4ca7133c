package config

import (
	"log/slog"
	"testing"
	"time"
)

type sample struct {
	name  string
	wait  time.Duration
	level slog.Level
}

var sampleKeys = Keys[sample]{
	"name":  Text(func(s *sample) *string { return &s.name }),
	"wait":  Duration(func(s *sample) *time.Duration { return &s.wait }, "5s"),
	"level": Level(func(s *sample) *slog.Level { return &s.level }),
}

func checkSample(s *sample, p *Problems) {
	if s.name == "" {
		p.Add("name", "is missing")
	}
	if s.wait > time.Hour {
		p.Add("wait", "%v is too long", s.wait)
	}
}

func TestParse(t *testing.T) {
	got := sample{wait: time.Second}
	if err := Parse("f", []byte("name: a\nlevel: debug\n"), &got, sampleKeys, checkSample); err != nil {
		t.Fatal(err)
	}
	if want := (sample{"a", time.Second, slog.LevelDebug}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseNamesEveryPlace(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "f: name: is missing",
		"name: a\nwait: 2h":           "f:2:7: wait: 2h0m0s is too long",
		"name: {}\nwait: soon":        "f:1:7: name: must be a text\nf:2:7: wait: must be a duration, such as 5s",
		"level: loud":                 "f:1:8: level: must be debug, info, warn or error",
		"name: a\nnmae: b":            "f:2:1: nmae: unknown key; known are level, name, wait",
		"name: a\nname: b":            "f:2:1: name: is there twice",
		"[name]":                      "f:1:1: file: must be a mapping of keys to values",
		"name: a\n---\nname: b\n":     "f: there must be one document, not several",
		"name: [a":                    "f: line 1: did not find expected ',' or ']'",
		"name: null\nwait: {}\n# end": "f:1:7: name: must be a text\nf:2:7: wait: must be a duration, such as 5s",
	} {
		if err := Parse("f", []byte(text), &sample{}, sampleKeys, checkSample); err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s", text, err, want)
		}
	}
}
