package model

import (
	"fmt"
	"slices"
	"strings"
)

// Labels are key=value pairs. A nil map is the empty set.
type Labels map[string]string

// Keys returns the keys, sorted.
func (l Labels) Keys() []string {
	keys := make([]string, 0, len(l))
	for k := range l {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// String returns the canonical form, sorted by key: "app=pay,env=prod". Equal sets have equal strings.
func (l Labels) String() string {
	var b strings.Builder
	for i, k := range l.Keys() {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(l[k])
	}
	return b.String()
}

// With returns a copy of l in which the pairs of over win.
func (l Labels) With(over Labels) Labels {
	out := make(Labels, len(l)+len(over))
	for k, v := range l {
		out[k] = v
	}
	for k, v := range over {
		out[k] = v
	}
	return out
}

const maxName = 63

// CheckLabelKey reports why key is not a label key: an optional DNS prefix and a slash, then up to 63 letters,
// digits, '-', '_' or '.', beginning and ending with a letter or digit (the Kubernetes rule).
func CheckLabelKey(key string) error {
	prefix, name, found := strings.Cut(key, "/")
	if !found {
		prefix, name = "", key
	} else if prefix == "" || len(prefix) > 253 || strings.ContainsFunc(prefix, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.')
	}) {
		return fmt.Errorf("label key %q: the part before '/' must be a lower-case DNS name", key)
	}
	if name == "" || !nameLike(name) {
		return fmt.Errorf("label key %q: use up to %d letters, digits, '-', '_' or '.', beginning and ending with a letter or digit", key, maxName)
	}
	return nil
}

// CheckSelectorKey reports why key is not what a selector may ask for: a label key, or NamespaceLabelPrefix or
// NodeLabelPrefix and the key of a label of a pod's namespace or of a node, which no document can set.
func CheckSelectorKey(key string) error {
	for _, prefix := range []string{NamespaceLabelPrefix, NodeLabelPrefix} {
		if own, found := strings.CutPrefix(key, prefix); found {
			if err := CheckLabelKey(own); err != nil {
				return fmt.Errorf("after %q: %w", prefix, err)
			}
			return nil
		}
	}
	return CheckLabelKey(key)
}

// CheckLabelValue reports why value is not a label value: empty, or like the name part of a key.
func CheckLabelValue(value string) error {
	if value != "" && !nameLike(value) {
		return fmt.Errorf("label value %q: use up to %d letters, digits, '-', '_' or '.', beginning and ending with a letter or digit", value, maxName)
	}
	return nil
}

func nameLike(s string) bool {
	if len(s) > maxName {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if alnum {
			continue
		}
		if (c == '-' || c == '_' || c == '.') && i > 0 && i < len(s)-1 {
			continue
		}
		return false
	}
	return true
}
