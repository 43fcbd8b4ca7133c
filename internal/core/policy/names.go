package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"bulkhead/internal/core/model"
)

// reserved are the first parts of rule identities that no policy may take.
var reserved = []string{"essential", "quarantine", "segment"}

// checkName returns why the text cannot name a document of that kind, or "".
func checkName(kind model.Kind, s string) string {
	switch {
	case s == "":
		return "the name is empty"
	case len(s) > maxName:
		return fmt.Sprintf("the name has %d bytes, more than %d", len(s), maxName)
	case kind == model.KindWorkload:
		return checkWorkloadName(s)
	case !plainName(s, "-_."):
		return fmt.Sprintf("name %q: use letters, digits, '-', '_' or '.', beginning and ending with a letter or digit", clip(s))
	}
	if kind == model.KindService {
		if _, err := model.ParsePortRange(s); err == nil {
			return fmt.Sprintf("name %q: this is a port already; name the service after what it does", s)
		}
	}
	if kind == model.KindPolicy {
		for _, x := range reserved {
			if s == x {
				return fmt.Sprintf("name %q: verdicts use it for what no policy decides; choose another", s)
			}
		}
	}
	return ""
}

// checkWorkloadName allows what agents and importers call workloads: host names, namespace/pod, host/unit.
func checkWorkloadName(s string) string {
	if !plainName(s, `-_./:@\+`) && !isAddress(s) {
		return fmt.Sprintf("name %q: use letters, digits or one of - _ . / : @ + and no spaces, beginning and ending with a letter or digit", clip(s))
	}
	return ""
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// plainName reports whether the text is letters, digits and, between them, marks.
func plainName(s, marks string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || strings.IndexByte(marks, c) < 0) {
			return false
		}
	}
	return s != ""
}

// checkDomain returns why the text is no domain pattern, or "".
func checkDomain(s string) string {
	name := strings.TrimPrefix(s, "*.")
	if len(name) > 253 || !strings.Contains(name, ".") {
		return fmt.Sprintf("domain %q: write a name such as api.example.org, or *.example.org for all names under it", clip(s))
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) > 63 || !plainName(label, "-_") || label != strings.ToLower(label) {
			return fmt.Sprintf("domain %q: use lower-case letters, digits and '-' between the dots; '*.' may stand in front", clip(s))
		}
	}
	return ""
}
