package cli

import (
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// Names of processes, units and hosts, notes and reasons come from whoever is at the other end, an intruder among
// them. None of it may steer the terminal of who reads it.

// control reports whether the character may steer a terminal or break a line.
func control(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }

// oneLine replaces all such characters by spaces.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if control(r) {
			return ' '
		}
		return r
	}, s)
}

// ownColours are the sequences that page.paint writes.
var ownColours = []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"}

// harmless is oneLine, but line feeds stay, and with coloured the sequences that colour our own text.
func harmless(s string, coloured bool) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return control(r) && r != '\n' }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		if coloured && s[0] == '\x1b' {
			if c := ownColour(s); c != "" {
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
			b.WriteString(oneLine(line))
		}
		s = s[end:]
	}
	return b.String()
}

func ownColour(s string) string {
	for _, c := range ownColours {
		if strings.HasPrefix(s, c) {
			return c
		}
	}
	return ""
}

// complain prints to standard error, harmlessly.
func complain(cmd *cobra.Command, text string) { cmd.PrintErrln(harmless(text, false)) }
