// Package trust decides whom the controller believes: it is the certificate authority of the agents, trades join
// tokens for certificates, and knows who holds an API token.
//
// Every agent has a short-lived certificate with a SPIFFE ID, spiffe://bulkhead/agent/<host>. Its serial number
// carries the number of the enrolment that it came from, so that a revocation, or another enrolment of the same host,
// ends every certificate from before at once, without lists.
package trust

import (
	"errors"
	"fmt"
)

// Refusal is why somebody was not believed. Its text is for that somebody: it says what to do and gives away nothing
// else.
type Refusal struct {
	Kind Kind
	Text string
}

// Kind tells refusals apart.
type Kind uint8

// The kinds of refusal.
const (
	Unauthenticated Kind = iota // who are you?
	Forbidden                   // we know you, and no
	Malformed                   // this makes no sense
)

// Error returns the text.
func (r *Refusal) Error() string { return r.Text }

func refuse(k Kind, format string, args ...any) error {
	return &Refusal{Kind: k, Text: fmt.Sprintf(format, args...)}
}

// AsRefusal returns the refusal that err wraps, or nil.
func AsRefusal(err error) *Refusal {
	var r *Refusal
	errors.As(err, &r)
	return r
}

const maxHost = 253

// CheckHost reports why the text cannot name a host: letters, digits, '-', '_' and '.', beginning and ending with a
// letter or digit.
func CheckHost(host string) error {
	for i := 0; i < len(host); i++ {
		c := host[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			continue
		}
		if (c == '-' || c == '_' || c == '.') && i > 0 && i < len(host)-1 {
			continue
		}
		host = ""
	}
	if host == "" || len(host) > maxHost {
		return refuse(Malformed, "a host name has 1 to %d letters, digits, '-', '_' or '.', and begins and ends with a letter or digit", maxHost)
	}
	return nil
}
