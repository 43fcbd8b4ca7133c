package harmless

import "testing"

func TestText(t *testing.T) {
	for _, c := range []struct {
		in       string
		coloured bool
		want     string
	}{
		{"a\x1b[31mb\x1b[0m\tc\x1b[9mé", true, "a\x1b[31mb\x1b[0m c [9mé"},
		{"a\x1b[31mb\x1b[0m\tc\x1b[9mé", false, "a [31mb [0m c [9mé"},
		{"one\ntwo", false, "one\ntwo"},
		{"\x9b31m\u009b", true, "\ufffd31m "},
	} {
		if got := Text(c.in, c.coloured); got != c.want {
			t.Errorf("Text(%q, %v) = %q, want %q", c.in, c.coloured, got, c.want)
		}
	}
	if got := Line("a\nb\x7f"); got != "a b " {
		t.Errorf("Line: %q", got)
	}
}
