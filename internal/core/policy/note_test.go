package policy_test

import (
	"strings"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// TestNotesOfSeveralLines: they are written as they are read, and come back as they were.
func TestNotesOfSeveralLines(t *testing.T) {
	for _, note := range []string{
		"one line", "two\nlines", "- a\n# b\n--- c\n% d\n*x\n&y\nkey: value\n\"q\"\n|-\n{\n]", "...\n---\n!tag", "é ü →\n界",
		"ends with a break\n", "\nbegins with one", "an\n\nempty line", " a\nb", "a \nb", "a\n\tb", "a\u2028b\nc", "a\u0085\nb",
	} {
		docs := &model.Documents{Services: []model.Service{{
			Meta: model.Meta{Name: "s", Owner: "team", Note: note}, Ports: []model.PortRange{{Proto: model.ProtoTCP, Lo: 1, Hi: 1}},
		}}}
		text := policy.Marshal(docs)
		again, err := policy.Parse([]policy.File{{Name: "x.yaml", Data: text}})
		if err != nil {
			t.Errorf("%q: %v\n%s", note, err, text)
			continue
		}
		if got := again.Services[0]; got.Note != note || got.Name != "s" || got.Owner != "team" {
			t.Errorf("%q came back as %+v\n%s", note, got.Meta, text)
		}
	}
	docs := &model.Documents{Services: []model.Service{{Meta: model.Meta{Name: "s", Note: "why\nand: how"}, Ports: []model.PortRange{model.AnyPort}}}}
	if want := "metadata:\n  name: s\n  note: |-\n    why\n    and: how\nspec:"; !strings.Contains(string(policy.Marshal(docs)), want) {
		t.Errorf("got\n%s", policy.Marshal(docs))
	}
}
