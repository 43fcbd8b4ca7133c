package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"bulkhead/internal/core/model"
)

func render(width int, colour bool, draw func(*page)) string {
	var b bytes.Buffer
	p := newPage(&b)
	p.width, p.colour = width, colour
	draw(p)
	if err := p.flush(); err != nil {
		return err.Error()
	}
	return b.String()
}

func TestTable(t *testing.T) {
	tbl := newTable("NAME", ">COUNT", "VERDICT", "NOTE")
	tbl.add("a", 7, verdictCell(model.Allow), "")
	tbl.add("wörkload", "1,204", verdictCell(model.Deny), "a longer note than there is room for")
	tbl.add("b\nc\x1b[31m", 0, verdictCell(model.WouldDeny), "x")
	for name, tt := range map[string]struct {
		width  int
		colour bool
		want   string
	}{
		"to a file": {want: `
NAME      COUNT  VERDICT     NOTE
a             7  allow
wörkload  1,204  deny        a longer note than there is room for
b c [31m      0  would-deny  x
`},
		"narrow": {width: 50, want: `
NAME      COUNT  VERDICT     NOTE
a             7  allow
wörkload  1,204  deny        a longer note than t…
b c [31m      0  would-deny  x
`},
		"too narrow": {width: 10, want: `
NAME      COUNT  VERDICT     NOTE
a             7  allow
wörkload  1,204  deny        a longer no…
b c [31m      0  would-deny  x
`},
		"in colour": {colour: true, want: "\n" +
			"\x1b[2mNAME\x1b[0m      \x1b[2mCOUNT\x1b[0m  \x1b[2mVERDICT\x1b[0m     \x1b[2mNOTE\x1b[0m\n" +
			"a             7  \x1b[32mallow\x1b[0m\n" +
			"wörkload  1,204  \x1b[31mdeny\x1b[0m        a longer note than there is room for\n" +
			"b c [31m      0  \x1b[33mwould-deny\x1b[0m  x\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := "\n" + render(tt.width, tt.colour, func(p *page) { p.table(tbl, "") })
			if got != tt.want {
				t.Errorf("got:%s\nwant:%s", got, tt.want)
			}
		})
	}
	if got := render(0, false, func(p *page) { p.table(newTable("A"), "Nothing.") }); got != "Nothing.\n" {
		t.Errorf("an empty table: %q", got)
	}
}

func TestYAMLSaysWhatJSONSays(t *testing.T) {
	v := struct {
		Text  []string          `json:"text"`
		None  []string          `json:"none"`
		Map   map[string]string `json:"map"`
		Num   uint64            `json:"num"`
		Yes   bool              `json:"yes"`
		Empty *int              `json:"empty"`
	}{
		Text: []string{"plain", "yes", "12", "null", "a: b", "two\nlines", "<&>", ""},
		None: []string{}, Map: map[string]string{"k": "v"}, Num: 1<<64 - 1, Yes: true,
	}
	var b bytes.Buffer
	if err := writeYAML(&b, v); err != nil {
		t.Fatal(err)
	}
	want := `text:
  - plain
  - "yes"
  - "12"
  - "null"
  - 'a: b'
  - |-
    two
    lines
  - <&>
  - ""
none: []
map:
  k: v
num: 18446744073709551615
yes: true
empty: null
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		count(1, "rule"):               "1 rule",
		count(2, "policy"):             "2 policies",
		count(1234567, "flow"):         "1,234,567 flows",
		count(0, "expectation"):        "0 expectations",
		byteSize(17):                   "17 B",
		byteSize(20 << 20):             "20.0 MiB",
		byteSize(3 << 40):              "3.0 TiB",
		span(1500 * time.Microsecond):  "1ms",
		span(90 * time.Second):         "90s",
		span(119 * time.Minute):        "119m",
		span(47 * time.Hour):           "47h",
		span(72 * time.Hour):           "3d",
		percent(0.004):                 "0.40 %",
		percent(0.5):                   "50 %",
		ago(nil):                       "never",
		didYouMean([]string{"a", "b"}): ". Did you mean a or b?",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	future, past := time.Now().Add(2*time.Hour+time.Second), time.Now().Add(-5*time.Minute)
	if got := ago(&future); got != "in 2h" {
		t.Errorf("two hours on: %q", got)
	}
	if got := ago(&past); got != "5m ago" {
		t.Errorf("five minutes ago: %q", got)
	}
}

func TestMoments(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2h":                   now.Add(-2 * time.Hour),
		"7d":                   now.Add(-7 * 24 * time.Hour),
		"0.5d":                 now.Add(-12 * time.Hour),
		"2026-04-30T10:00:00Z": time.Date(2026, 4, 30, 10, 0, 0, 0, time.UTC),
		"2026-04-30":           time.Date(2026, 4, 30, 0, 0, 0, 0, time.Local),
	} {
		if got, err := parseMoment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "2", "-2h", "0s", "d", "-1d", "99999999d", "tomorrow", "2026-13-01"} {
		if got, err := parseMoment(text, now); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestSimilar(t *testing.T) {
	names := []string{"check", "compile", "test", "flows", "portal-1", "portal-10"}
	for slip, want := range map[string]string{
		"chek": "check", "chekc": "check", "tset": "", "flow": "flows", "portal": "portal-1,portal-10", "zebra": "", "comp": "compile",
	} {
		if got := strings.Join(similar(slip, names), ","); got != want {
			t.Errorf("%q: %q, want %q", slip, got, want)
		}
	}
}

func TestColourOnlyOnTerminals(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if inColour(f) || inColour(&bytes.Buffer{}) || terminalWidth(f) != 0 || onTerminal(f) {
		t.Error("a file is taken for a terminal")
	}
}

// TestNothingSteersTheTerminal holds that what others named cannot write to the terminal of who reads it.
func TestNothingSteersTheTerminal(t *testing.T) {
	evil := "\x9bworm\x1b]0;owned\x07\x1b[2J\u009b31m\r\nnext"
	for _, colour := range []bool{false, true} {
		got := render(0, colour, func(p *page) {
			p.line("%s runs %s", p.paint("ok", green), evil)
			p.text(evil)
			p.heading("%s", evil)
			tbl := newTable("A")
			tbl.add(evil)
			p.table(tbl, "")
		})
		for _, own := range []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[32m"} {
			if colour {
				got = strings.ReplaceAll(got, own, "")
			}
		}
		if strings.ContainsFunc(got, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }) {
			t.Errorf("%q", got)
		}
	}
}
