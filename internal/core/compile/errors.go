package compile

import (
	"strings"

	"bulkhead/internal/core/model"
)

// Error is one reason why documents cannot be compiled.
type Error struct {
	Pos  model.Position
	Rule model.RuleID // "" if it is not about a rule
	Msg  string
}

// Error returns "file:line:column: rule policy/rule: message", leaving out what is unknown.
func (e *Error) Error() string {
	msg := e.Msg
	if e.Rule != "" {
		msg = "rule " + string(e.Rule) + ": " + msg
	}
	if pos := e.Pos.String(); pos != "" {
		msg = pos + ": " + msg
	}
	return msg
}

// Errors are all reasons, in the order of the documents.
type Errors []*Error

// Error returns one line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}
