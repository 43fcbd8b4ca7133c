// Package corpus runs policy tests that are documents: one txtar file holds a policy, the workloads it governs and what is
// expected of it. Users write such files and run them with `bulkhead test`; the corpus below testdata is run by `go test`.
//
// The sections of a file are described in docs/policy.md. What a section gives:
//
//	*.yaml            documents
//	base/*.yaml       the documents before the change, for diff and plan
//	agents            what agents report, beside the workloads that documents declare
//	quarantine        leases in force
//	options           the time, where controllers answer
//	recorded          recorded flows, as JSON lines
//
// and what a section expects:
//
//	flows             a verdict for each line
//	errors            why the documents are refused
//	hygiene           what check finds
//	canonical         the documents as they are stored
//	compiled HOST     what the agent of that host is given
//	explain FLOW      the decision, rule by rule
//	essentials        what is never blocked
//	proof             guardrails and expectations
//	diff, plan        what the change from base opens and closes
//
// Every flow is judged by the evaluator and by the oracle, and explained; where these disagree the case fails whatever it
// expects. The package does no I/O and may be used from several goroutines.
package corpus

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/kube"
)

// Case is one test file.
type Case struct {
	Name    string // of the file, for messages
	archive *txtar.Archive
	lines   []int // the line on which the text of each section begins
}

// Names of sections. Those that take an argument are followed by a space and it.
const (
	secAgents     = "agents"
	secQuarantine = "quarantine"
	secOptions    = "options"
	secRecorded   = "recorded"

	secFlows      = "flows"
	secErrors     = "errors"
	secHygiene    = "hygiene"
	secCanonical  = "canonical"
	secCompiled   = "compiled"
	secExplain    = "explain"
	secEssentials = "essentials"
	secProof      = "proof"
	secDiff       = "diff"
	secPlan       = "plan"
)

var (
	given    = []string{secAgents, secQuarantine, secOptions, secRecorded}
	expected = []string{secFlows, secErrors, secHygiene, secCanonical, secCompiled, secExplain, secEssentials, secProof, secDiff, secPlan}
	withArg  = []string{secCompiled, secExplain}
)

const basePrefix = "base/"

// Parse reads a test file. An error says on which line the file is no test: it has a section that is not known, that is
// there twice, or none that expects something.
func Parse(name string, data []byte) (*Case, error) {
	c := &Case{Name: name, archive: txtar.Parse(data)}
	line := 1 + bytes.Count(c.archive.Comment, []byte("\n"))
	seen := map[string]bool{}
	expects := false
	for i := range c.archive.Files {
		f := &c.archive.Files[i]
		at := fmt.Sprintf("%s:%d", name, line)
		line++
		c.lines = append(c.lines, line)
		line += bytes.Count(f.Data, []byte("\n"))
		if seen[f.Name] {
			return nil, fmt.Errorf("%s: the section %q is there twice", at, f.Name)
		}
		seen[f.Name] = true
		if isDocument(f.Name) {
			continue
		}
		kind, arg, _ := strings.Cut(f.Name, " ")
		switch takes := slices.Contains(withArg, kind); {
		case !slices.Contains(given, kind) && !slices.Contains(expected, kind):
			return nil, fmt.Errorf("%s: unknown section %q; there are *.yaml, base/*.yaml, %s and %s", at, f.Name,
				strings.Join(given, ", "), strings.Join(expected, ", "))
		case takes && arg == "":
			return nil, fmt.Errorf("%s: the section %q says nothing of what; write %s", at, kind, map[string]string{
				secCompiled: "-- compiled HOST --", secExplain: "-- explain FROM -> TO on tcp/443 --",
			}[kind])
		case !takes && arg != "":
			return nil, fmt.Errorf("%s: the section %q takes nothing after its name", at, kind)
		}
		expects = expects || slices.Contains(expected, kind)
	}
	if !expects {
		return nil, fmt.Errorf("%s: nothing is expected; add a section such as -- flows --", name)
	}
	return c, nil
}

func isDocument(name string) bool {
	ext := path.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

// documents returns the documents of the case, or those of its base.
func (c *Case) documents(base bool) []policy.File {
	var out []policy.File
	for _, f := range c.archive.Files {
		if isDocument(f.Name) && strings.HasPrefix(f.Name, basePrefix) == base {
			out = append(out, policy.File{Name: f.Name, Data: f.Data})
		}
	}
	return out
}

// parse reads documents of every kind there is.
func parse(files []policy.File) (*model.Documents, error) {
	docs, _, err := kube.Load(files)
	return docs, err
}

// section returns the index of a section; -1 if there is none.
func (c *Case) section(name string) int {
	return slices.IndexFunc(c.archive.Files, func(f txtar.File) bool { return f.Name == name })
}

// line is one line of a section that says something.
type line struct {
	at   int // line of the file, from 1
	text string
}

// textLines returns the lines of a section without comments and what is blank.
func (c *Case) textLines(name string) []line {
	i := c.section(name)
	if i < 0 {
		return nil
	}
	var out []line
	for n, text := range strings.Split(string(c.archive.Files[i].Data), "\n") {
		if text = uncommented(text); text != "" {
			out = append(out, line{c.lines[i] + n, text})
		}
	}
	return out
}

// Flows returns the lines of the case's flows, for tests that judge them in yet another way.
func (c *Case) Flows() ([]*FlowLine, error) {
	var out []*FlowLine
	for _, l := range c.textLines(secFlows) {
		f, err := ParseFlowLine(l.text)
		if err != nil {
			return nil, c.errorf(l.at, "%w", err)
		}
		out = append(out, f)
	}
	return out, nil
}

// uncommented returns what a line says, without the space around it.
func uncommented(text string) string {
	if strings.HasPrefix(strings.TrimSpace(text), "#") {
		return ""
	}
	text, _, _ = strings.Cut(text, " # ")
	return strings.TrimSpace(text)
}

// errorf is an error at a line of the file.
func (c *Case) errorf(at int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", c.Name, at, fmt.Errorf(format, args...))
}
