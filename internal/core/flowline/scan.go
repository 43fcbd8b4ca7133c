package flowline

import (
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds lists and objects within each other in fields that are skipped.
const maxDepth = 100

// scanner walks over one line of JSON.
type scanner struct {
	in      []byte
	at      int
	scratch []byte // text whose escapes had to be resolved
}

func (s *scanner) reset(line []byte) { s.in, s.at = line, 0 }

// syntax reports a place that is not JSON. Columns count bytes from 1.
func (s *scanner) syntax(format string, args ...any) error {
	return fmt.Errorf("not JSON at column %d: %s", s.at+1, fmt.Sprintf(format, args...))
}

// found describes what stands at the place, for messages.
func (s *scanner) found() string {
	if s.at >= len(s.in) {
		return "the end of the line"
	}
	r, _ := utf8.DecodeRune(s.in[s.at:])
	return strconv.QuoteRune(r)
}

func (s *scanner) space() {
	for s.at < len(s.in) {
		switch s.in[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

// peek skips space and returns the next byte, or 0 at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.in) && s.in[s.at] > ' ' {
		return s.in[s.at]
	}
	s.space()
	if s.at < len(s.in) {
		return s.in[s.at]
	}
	return 0
}

// open enters the object that a line is.
func (s *scanner) open() error {
	switch s.peek() {
	case '{':
		s.at++
		return nil
	case 0:
		if s.at >= len(s.in) {
			return fmt.Errorf("the line is empty; a flow is a JSON object")
		}
	}
	return s.syntax("a flow is an object that begins with '{', not %s", s.found())
}

// openNested enters the object that is the value of a field.
func (s *scanner) openNested(field string) error {
	if s.peek() != '{' {
		return s.wrongType(field, "an object")
	}
	s.at++
	return nil
}

// key reads the next key of an object and the colon after it; more is false where the object ends. The key is valid
// until the next text is read.
func (s *scanner) key(first bool) (key []byte, more bool, err error) {
	c := s.peek()
	if c == '}' {
		s.at++
		return nil, false, nil
	}
	if !first {
		if c != ',' {
			return nil, false, s.syntax("expected ',' or '}', not %s", s.found())
		}
		s.at++
		c = s.peek()
	}
	if c != '"' {
		return nil, false, s.syntax("expected a field name in quotes, not %s", s.found())
	}
	if key, err = s.quoted(); err != nil {
		return nil, false, err
	}
	if s.peek() != ':' {
		return nil, false, s.syntax("expected ':' after a field name, not %s", s.found())
	}
	s.at++
	return key, true, nil
}

// end reports what stands after the object.
func (s *scanner) end() error {
	if s.peek(); s.at < len(s.in) {
		return s.syntax("%s stands after the object", s.found())
	}
	return nil
}

// null reports whether the value is null, and skips it if so.
func (s *scanner) null() bool {
	if s.peek() == 'n' && s.literal("null") {
		return true
	}
	return false
}

func (s *scanner) literal(word string) bool {
	if len(s.in)-s.at < len(word) || string(s.in[s.at:s.at+len(word)]) != word {
		return false
	}
	s.at += len(word)
	return true
}

// wrongType reports a value of a type that the field does not take, or what is no value at all.
func (s *scanner) wrongType(field, want string) error {
	at := s.at
	if err := s.skip(0); err != nil {
		return err
	}
	return fmt.Errorf("%s must be %s, not %s", field, want, clip(s.in[at:s.at]))
}

// text reads a value that is text. It is valid until the next text is read.
func (s *scanner) text(field string) ([]byte, error) {
	if s.peek() != '"' {
		return nil, s.wrongType(field, "text in quotes")
	}
	return s.quoted()
}

// quoted reads a string from its opening quote on.
func (s *scanner) quoted() ([]byte, error) {
	s.at++
	start := s.at
	ascii := true
	for i := start; i < len(s.in); i++ {
		switch c := s.in[i]; {
		case c == '"':
			s.at = i + 1
			if text := s.in[start:i]; ascii || utf8.Valid(text) {
				return text, nil
			}
			s.at = start
			return nil, s.syntax("the text is not UTF-8")
		case c == '\\':
			return s.escaped(start, i)
		case c < ' ':
			s.at = i
			return nil, s.syntax("a control character in text must be escaped")
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	s.at = len(s.in)
	return nil, s.syntax("the text is not closed by a quote")
}

// escaped reads on in a string whose first backslash is at i.
func (s *scanner) escaped(start, i int) ([]byte, error) {
	out := append(s.scratch[:0], s.in[start:i]...)
	for s.at = i; s.at < len(s.in); {
		switch c := s.in[s.at]; {
		case c == '"':
			s.at++
			s.scratch = out
			if !utf8.Valid(out) {
				s.at = start
				return nil, s.syntax("the text is not UTF-8")
			}
			return out, nil
		case c < ' ':
			return nil, s.syntax("a control character in text must be escaped")
		case c != '\\':
			out = append(out, c)
			s.at++
		default:
			var err error
			if out, err = s.escape(out); err != nil {
				return nil, err
			}
		}
	}
	return nil, s.syntax("the text is not closed by a quote")
}

// escape resolves the escape at the place.
func (s *scanner) escape(out []byte) ([]byte, error) {
	if s.at+1 >= len(s.in) {
		s.at = len(s.in)
		return nil, s.syntax("the text is not closed by a quote")
	}
	switch c := s.in[s.at+1]; c {
	case '"', '\\', '/':
		out = append(out, c)
	case 'b':
		out = append(out, '\b')
	case 'f':
		out = append(out, '\f')
	case 'n':
		out = append(out, '\n')
	case 'r':
		out = append(out, '\r')
	case 't':
		out = append(out, '\t')
	case 'u':
		r, ok := s.hex4(s.at + 2)
		if !ok {
			return nil, s.syntax(`\u takes four hexadecimal digits`)
		}
		s.at += 6
		if utf16.IsSurrogate(r) {
			low, ok := rune(0), false
			if s.at+1 < len(s.in) && s.in[s.at] == '\\' && s.in[s.at+1] == 'u' {
				low, ok = s.hex4(s.at + 2)
			}
			if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
				s.at -= 6
				return nil, s.syntax("half of a surrogate pair is no character")
			}
			s.at += 6
		}
		return utf8.AppendRune(out, r), nil
	default:
		return nil, s.syntax("unknown escape in text")
	}
	s.at += 2
	return out, nil
}

func (s *scanner) hex4(at int) (rune, bool) {
	if at+4 > len(s.in) {
		return 0, false
	}
	var r rune
	for _, c := range s.in[at : at+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// skip reads over a value of any type, which must be JSON.
func (s *scanner) skip(depth int) error {
	if depth > maxDepth {
		return s.syntax("lists and objects are nested too deeply")
	}
	switch c := s.peek(); {
	case c == '"':
		_, err := s.quoted()
		return err
	case c == '{':
		s.at++
		for first := true; ; first = false {
			_, more, err := s.key(first)
			if err != nil || !more {
				return err
			}
			if err := s.skip(depth + 1); err != nil {
				return err
			}
		}
	case c == '[':
		s.at++
		return s.skipList(depth)
	case s.atNumber():
		_, err := s.numeral()
		return err
	case s.literal("null"), s.literal("true"), s.literal("false"):
		return nil
	}
	return s.syntax("expected a value, not %s", s.found())
}

func (s *scanner) skipList(depth int) error {
	if s.peek() == ']' {
		s.at++
		return nil
	}
	for {
		if err := s.skip(depth + 1); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.at++
		case ']':
			s.at++
			return nil
		default:
			return s.syntax("expected ',' or ']', not %s", s.found())
		}
	}
}
