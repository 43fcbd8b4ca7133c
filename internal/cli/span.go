package cli

import (
	"strconv"
	"strings"
	"time"
)

// spanFlag is a flag that holds a length of time; beside what Go accepts it takes days, as in 7d.
type spanFlag time.Duration

// String implements the interface of a flag.
func (s *spanFlag) String() string {
	if *s == 0 {
		return ""
	}
	return span(time.Duration(*s))
}

// Set implements the interface of a flag.
func (s *spanFlag) Set(text string) error {
	d, err := parseSpan(text)
	if err != nil {
		return err
	}
	*s = spanFlag(d)
	return nil
}

// Type implements the interface of a flag.
func (s *spanFlag) Type() string { return "duration" }

func parseSpan(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n > 0 && n < 36500 {
			return time.Duration(n * 24 * float64(time.Hour)), nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, usagef("%q is not a length of time: use 30s, 15m, 2h or 7d", text)
	}
	return d, nil
}

// parseMoment reads a point in time: RFC 3339, a date, or a length of time before now.
func parseMoment(text string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	d, err := parseSpan(text)
	if err != nil {
		return time.Time{}, usagef("%q is not a time: use 2026-12-31T00:00:00Z, 2026-12-31, or how long ago, such as 2h", text)
	}
	return now.Add(-d), nil
}
