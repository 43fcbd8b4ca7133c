package policy

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

func brackets(parts []string) string { return "[" + strings.Join(parts, ", ") + "]" }
func braces(parts []string) string   { return "{" + strings.Join(parts, ", ") + "}" }

// address writes an address or a CIDR; those of IPv6 have colons, which YAML would read.
func address(s string) string {
	if strings.Contains(s, ":") {
		return quoted(s)
	}
	return s
}

// flow writes text as a scalar within brackets or braces, block writes it as the whole value of a field. Text that YAML
// 1.1 or 1.2 could read as anything else is quoted.
func flow(s string) string {
	if plain(s, "-_./=") {
		return s
	}
	return quoted(s)
}

func block(s string) string {
	if plain(s, "-_./=,") {
		return s
	}
	return quoted(s)
}

// literal returns the lines of text that may stand as a literal block, which reads better than one long line in
// quotes: several lines, none of them empty or with space at an end, of printable characters only.
func literal(s string) ([]string, bool) {
	lines := strings.Split(s, "\n")
	for _, l := range lines {
		if l == "" || l != strings.TrimSpace(l) || !utf8.ValidString(l) || strings.ContainsFunc(l, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return nil, false
		}
	}
	return lines, len(lines) > 1
}

// plain reports whether the text may stand without quotes: a word that begins with a letter, has only letters, digits
// and the marks in it, and is none of the words that stand for truth or nothing.
func plain(s, marks string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || (c < '0' || c > '9') && strings.IndexByte(marks, c) < 0) {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "", "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		return false
	}
	return true
}

// quoted writes text in double quotes on one line. Bytes that are not UTF-8 become U+FFFD, since YAML cannot hold them.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(c) && c != utf8.RuneError:
			b.WriteRune(c)
		case c <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, c)
		case c <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			fmt.Fprintf(&b, `\U%08x`, c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
