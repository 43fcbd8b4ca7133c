package reach_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// everyProcess lists what processes may be, as far as the constraints of these tests tell them apart.
func everyProcess() []*model.Process {
	out := []*model.Process{nil}
	for _, unit := range []string{"", "a", "b", "else"} {
		for _, path := range []string{"", "/a", "/b"} {
			for _, user := range []string{"", "a", "root"} {
				out = append(out, &model.Process{Unit: unit, Path: path, User: user})
			}
		}
	}
	return out
}

// TestProcessesAreExact makes sets of processes in all ways, and reads what is said about them back: the parts are disjoint,
// mean the set and nothing else, and equal sets are one.
func TestProcessesAreExact(t *testing.T) {
	u := reach.New(world(t, &model.Documents{}, &model.Inventory{}))
	all := everyProcess()
	pairs := len(all) * len(all)
	known := map[string]reach.Who{}
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 7))
		who, in := random(u, rng, all, 3)
		bits := fmt.Sprint(in)
		if before, ok := known[bits]; ok && before != who {
			t.Fatalf("seed %d: two numbers for one set: %v", seed, u.Processes(who))
		}
		known[bits] = who
		parts := u.Processes(who)
		for i := range pairs {
			from, to := all[i/len(all)], all[i%len(all)]
			if got := u.Holds(who, from, to); got != in[i] {
				t.Fatalf("seed %d: %v and %v in the set: %v", seed, from, to, got)
			}
			said := 0
			for k := range parts {
				if means(t, parts[k].From, from) && means(t, parts[k].To, to) {
					said++
				}
				if u.Holds(parts[k].Who, from, to) != (means(t, parts[k].From, from) && means(t, parts[k].To, to)) {
					t.Fatalf("seed %d: %q and %q are not what they say", seed, parts[k].From, parts[k].To)
				}
			}
			if want := map[bool]int{true: 1}[in[i]]; said != want {
				t.Fatalf("seed %d: %v and %v are meant by %d of %v", seed, from, to, said, parts)
			}
		}
		if who == reach.Nobody {
			continue
		}
		if from, to := u.Sample(who); !u.Holds(who, from, to) {
			t.Fatalf("seed %d: %v and %v are no sample of %v", seed, from, to, parts)
		}
	}
	if len(known) < 150 {
		t.Fatalf("only %d sets", len(known))
	}
}

// random returns a set and, for each pair of processes, whether it is in it.
func random(u *reach.Universe, rng *rand.Rand, all []*model.Process, depth int) (reach.Who, []bool) {
	in := make([]bool, len(all)*len(all))
	if depth == 0 {
		var ends [2]*model.Process
		for i := range ends {
			if p := all[rng.IntN(len(all))]; p != nil && rng.IntN(2) == 0 && p.Unit != "else" {
				ends[i] = p
			}
		}
		for i := range in {
			from, to := all[i/len(all)], all[i%len(all)]
			in[i] = (ends[0] == nil || ends[0].Admits(from)) && (ends[1] == nil || ends[1].Admits(to))
		}
		return u.Running(ends[0], ends[1]), in
	}
	a, inA := random(u, rng, all, depth-1)
	b, inB := random(u, rng, all, depth-1)
	switch rng.IntN(3) {
	case 0:
		for i := range in {
			in[i] = inA[i] && inB[i]
		}
		return u.And(a, b), in
	case 1:
		for i := range in {
			in[i] = inA[i] || inB[i]
		}
		return u.Or(a, b), in
	}
	for i := range in {
		in[i] = inA[i] && !inB[i]
	}
	return u.And(a, u.Others(b)), in
}

// means reads alternatives as people do.
func means(t *testing.T, alternatives []string, p *model.Process) bool {
	t.Helper()
	if p == nil {
		p = &model.Process{}
	}
	if alternatives == nil {
		return true
	}
	if rest, ok := strings.CutPrefix(alternatives[0], "every process but "); ok && len(alternatives) == 1 {
		return !means(t, strings.Split(rest, " or "), p)
	}
	return slices.ContainsFunc(alternatives, func(s string) bool {
		for _, part := range strings.Split(s, " and ") {
			part, not := strings.CutPrefix(part, "not ")
			field, value, ok := strings.Cut(part, " ")
			is, known := map[string]string{"unit": p.Unit, "path": p.Path, "user": p.User}[field]
			if !ok || !known {
				t.Fatalf("%q cannot be read", s)
			}
			if (is == value) == not {
				return false
			}
		}
		return true
	})
}

// TestProcessesAreShort: what people call one thing is said in one.
func TestProcessesAreShort(t *testing.T) {
	u := reach.New(world(t, &model.Documents{}, &model.Inventory{}))
	is := func(unit, path, user string) reach.Who {
		return u.Running(&model.Process{Unit: unit, Path: path, User: user}, nil)
	}
	for _, c := range []struct {
		who  reach.Who
		want string
	}{
		{reach.Everybody, "[]"},
		{is("a", "", ""), "[unit a]"},
		{is("a", "/a", "root"), "[unit a and path /a and user root]"},
		{u.Or(is("a", "", ""), is("", "/a", "")), "[path /a unit a]"},
		{u.Or(is("a", "", ""), u.Or(is("a", "/a", ""), is("b", "", ""))), "[unit a unit b]"},
		{u.Others(is("a", "", "")), "[every process but unit a]"},
		{u.Others(u.Or(is("a", "", ""), is("", "", "root"))), "[every process but unit a or user root]"},
		{u.And(is("a", "", ""), u.Others(is("", "", "root"))), "[unit a and not user root]"},
	} {
		parts := u.Processes(c.who)
		if len(parts) != 1 || parts[0].To != nil {
			t.Fatalf("%v: several parts", parts)
		}
		if got := fmt.Sprint(parts[0].From); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
