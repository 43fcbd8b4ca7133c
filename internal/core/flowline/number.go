package flowline

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// atNumber reports whether the value is a number.
func (s *scanner) atNumber() bool {
	c := s.peek()
	return c >= '0' && c <= '9' || c == '-'
}

// number reads a whole number up to limit. 5432, 5432.0 and 5.432e3 are the same number in JSON.
func (s *scanner) number(field string, limit uint64) (uint64, error) {
	if !s.atNumber() {
		return 0, s.wrongType(field, "a number")
	}
	numeral, err := s.numeral()
	if err != nil {
		return 0, err
	}
	n, fits := decimal(numeral)
	if !fits {
		var whole bool
		if n, whole, fits = exact(numeral); !whole {
			return 0, fmt.Errorf("%s %s is not a whole number", field, clip(numeral))
		}
	}
	if !fits || n > limit {
		return 0, fmt.Errorf("%s %s is out of range", field, clip(numeral))
	}
	return n, nil
}

// numeral reads a number as it is written.
func (s *scanner) numeral() ([]byte, error) {
	start := s.at
	if s.in[s.at] == '-' {
		s.at++
	}
	digits := func() bool {
		from := s.at
		for s.at < len(s.in) && s.in[s.at] >= '0' && s.in[s.at] <= '9' {
			s.at++
		}
		return s.at > from
	}
	whole := s.at
	if !digits() {
		return nil, s.syntax("a digit is missing in a number")
	}
	if s.in[whole] == '0' && s.at > whole+1 {
		s.at = whole
		return nil, s.syntax("a number does not begin with 0")
	}
	if s.at < len(s.in) && s.in[s.at] == '.' {
		s.at++
		if !digits() {
			return nil, s.syntax("a digit is missing after the point of a number")
		}
	}
	if s.at < len(s.in) && (s.in[s.at] == 'e' || s.in[s.at] == 'E') {
		s.at++
		if s.at < len(s.in) && (s.in[s.at] == '+' || s.in[s.at] == '-') {
			s.at++
		}
		if !digits() {
			return nil, s.syntax("a digit is missing in the exponent of a number")
		}
	}
	return s.in[start:s.at], nil
}

// decimal parses up to 18 digits and nothing else.
func decimal[T string | []byte](s T) (uint64, bool) {
	if len(s) == 0 || len(s) > 18 {
		return 0, false
	}
	var n uint64
	for i := 0; i < len(s); i++ {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + uint64(c)
	}
	return n, true
}

// exact returns the value of a numeral of JSON without rounding, whether it is a whole number, and whether that is one
// of 64 bits without a sign.
func exact(numeral []byte) (n uint64, whole, fits bool) {
	mantissa, power, _ := bytes.Cut(bytes.ToLower(numeral), []byte("e"))
	exponent := 0
	for _, c := range bytes.TrimLeft(power, "+-") {
		exponent = min(exponent*10+int(c-'0'), 1<<30) // no numeral has so many digits
	}
	if bytes.HasPrefix(power, []byte("-")) {
		exponent = -exponent
	}
	integer, fraction, _ := bytes.Cut(bytes.TrimLeft(mantissa, "-"), []byte("."))
	digits := bytes.TrimLeft(append(bytes.Clone(integer), fraction...), "0")
	trimmed := bytes.TrimRight(digits, "0")
	exponent += len(digits) - len(trimmed) - len(fraction)
	const most = len("18446744073709551615")
	switch {
	case len(trimmed) == 0:
		return 0, true, true
	case exponent < 0:
		return 0, false, false
	case mantissa[0] == '-' || len(trimmed)+exponent > most:
		return 0, true, false
	}
	n, err := strconv.ParseUint(string(trimmed)+strings.Repeat("0", exponent), 10, 64)
	return n, true, err == nil
}
