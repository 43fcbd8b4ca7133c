// Package harmless makes text fit for a terminal. Names of processes, units and hosts, notes and reasons come from whoever
// is at the other end, an intruder among them. None of it may steer the terminal of who reads it.
package harmless

import (
	"strings"
	"unicode/utf8"
)

// control reports whether the character may steer a terminal or break a line.
func control(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }

// Line replaces all characters that may steer a terminal or break a line by spaces.
func Line(s string) string {
	return strings.Map(func(r rune) rune {
		if control(r) {
			return ' '
		}
		return r
	}, s)
}

// colours are the sequences with which our own text is coloured.
var colours = []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"}

// Text is Line, but line feeds stay, and with coloured the sequences that colour our own text.
func Text(s string, coloured bool) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return control(r) && r != '\n' }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		if coloured && s[0] == '\x1b' {
			if c := colourAt(s); c != "" {
				b.WriteString(c)
				s = s[len(c):]
				continue
			}
		}
		end := strings.IndexByte(s[1:], '\x1b') + 1
		if end == 0 {
			end = len(s)
		}
		for i, line := range strings.Split(s[:end], "\n") {
			if i > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(Line(line))
		}
		s = s[end:]
	}
	return b.String()
}

func colourAt(s string) string {
	for _, c := range colours {
		if strings.HasPrefix(s, c) {
			return c
		}
	}
	return ""
}
