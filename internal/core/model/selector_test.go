package model

import (
	"strings"
	"testing"
)

func TestSelectorMatches(t *testing.T) {
	labels := Labels{"app": "pay", "env": "prod", "empty": ""}
	for sel, want := range map[string]bool{
		"":                              true,
		"app=pay":                       true,
		"app==pay,env=prod":             true,
		"app!=pay":                      false,
		"app in (web, pay)":             true,
		"env notin (prod,stage)":        false,
		"role notin (db)":               true, // as in Kubernetes, an absent key is in no list
		"role!=db":                      true,
		"app":                           true,
		"!app":                          false,
		"!role":                         true,
		"empty=":                        true,
		"empty":                         true,
		"app=pay,!legacy,env in (prod)": true,
	} {
		s, err := ParseSelector(sel)
		if err != nil {
			t.Errorf("%q: %v", sel, err)
			continue
		}
		if got := s.Matches(labels); got != want {
			t.Errorf("%q matches %v = %v, want %v", sel, labels, got, want)
		}
	}
}

func TestSelectorIsCanonical(t *testing.T) {
	for in, want := range map[string]string{
		" env = prod , app=pay ":      "app=pay,env=prod",
		"app in (b,a,b)":              "app in (a,b)",
		"app in (a)":                  "app=a",
		"app==a,app=a":                "app=a",
		"!legacy,app":                 "app,!legacy",
		"bulkhead/quarantine=isolate": "bulkhead/quarantine=isolate",
	} {
		s, err := ParseSelector(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got := s.String(); got != want {
			t.Errorf("%q is written %q, want %q", in, got, want)
		}
		if again, err := ParseSelector(s.String()); err != nil || again.String() != s.String() {
			t.Errorf("%q does not survive a round trip: %q, %v", in, again, err)
		}
	}
}

func TestSelectorErrorsNameTheirColumn(t *testing.T) {
	for in, want := range map[string]string{
		"app=pay ments":                  "column 9",
		"app=pay,":                       "column 9",
		",app=pay":                       "column 1",
		"app in pay":                     "column 8",
		"app in (pay":                    "column 12",
		"=pay":                           "column 1",
		"app=-pay":                       "column 5",
		"a b c":                          "column 3",
		"app=" + strings.Repeat("x", 64): "column 5",
		"APP/x=1":                        "column 1",
		"a:b=1":                          "column 1",
		"app=a,namespace:=1":             "column 7",
		"namespace:namespace:a":          "column 1",
		"node:=1":                        "column 1",
		"node:namespace:a":               "column 1",
	} {
		_, err := ParseSelector(in)
		if err == nil {
			t.Errorf("%q is accepted", in)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %q does not say %q", in, err, want)
		}
	}
}

func TestSelectorContradiction(t *testing.T) {
	for in, never := range map[string]bool{
		"app=a,app=b":                  true,
		"app=a,app!=a":                 true,
		"app,!app":                     true,
		"app=a,!app":                   true,
		"app in (a,b),app notin (a,b)": true,
		"app in (a,b),app=b":           false,
		"app in (a,b),app!=a":          false,
		"app!=a,app!=b":                false,
		"app!=a,!app":                  false,
		"app=a,env=b":                  false,
		"":                             false,
	} {
		s := MustParseSelector(in)
		if got := s.Contradiction(); (got != "") != never {
			t.Errorf("%q: contradiction %q, want one: %v", in, got, never)
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"", "a=b", "a in (b,c),!d", "a notin (b)", "a!=b", "a in (", "!!a", "a==b,", "namespace:env=prod", "node:env=prod", "namespace:kubernetes.io/metadata.name in (a,b)", "bulkhead/quarantine"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := ParseSelector(in)
		if err != nil {
			return
		}
		again, err := ParseSelector(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q parses to %q, which parses to %q, %v", in, s, again, err)
		}
	})
}
