package cli

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
)

// acceptedView is what `apply -o json`, `rollback` and `delete` print.
type acceptedView struct {
	Revision uint64   `json:"revision"`
	Hash     string   `json:"hash"`
	Changed  bool     `json:"changed"`
	Warnings []string `json:"warnings,omitempty"`
	// Pending are the connected agents that have not acknowledged the revision yet.
	Pending uint32 `json:"agents_pending"`
	// Away and Refused are filled with --wait only.
	Away    []string          `json:"agents_away,omitempty"`
	Refused map[string]string `json:"agents_refused,omitempty"`
}

func (a *app) applyCommand() *cobra.Command {
	var (
		files []string
		req   pb.ApplyRequest
		wait  bool
	)
	cmd := &cobra.Command{
		Use:   "apply -f DIR|FILE|-",
		Short: "Make documents the policy in force",
		Long: `Make documents the policy in force. The controller checks them, runs expectations and
guardrails, makes sure that hosts can hold the result, stores a new revision and sends every agent
what concerns it. A document replaces the
one of the same kind and name; others stay, unless --prune.

Look first: bulkhead plan -f DIR says what would open and close.`,
		Example: `  bulkhead apply -f policy/ --note "ticket 4711" --wait
  bulkhead apply -f policy/ --prune --base 12     # only if nobody else changed anything since 12`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usagef("apply needs -f: which documents?")
			}
			docs, err := readFiles(cmd, files)
			if err != nil {
				return err
			}
			if err := documentsOnly(docs); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			req.Files = toProto(docs)
			r, err := ask(cmd.Context(), c, c.Apply, &req)
			if err != nil {
				return badDocuments(cmd, err, "nothing was applied")
			}
			return a.accepted(cmd, c, r, wait)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&files, "file", "f", nil, "documents: a directory, a file or - (repeatable)")
	flags.BoolVar(&req.Prune, "prune", false, "remove the documents that are not in -f")
	flags.StringVar(&req.Note, "note", "", "why; kept with the revision")
	flags.Uint64Var(&req.BaseRevision, "base", 0, "refuse if this is not the newest revision any more")
	flags.BoolVar(&req.Force, "force", false, "also when an expectation or a guardrail fails, or a host cannot hold it; this is audited")
	flags.BoolVarP(&wait, "wait", "w", false, "wait until every connected agent has it in force")
	return cmd
}

// positioned is how a line begins that says what is wrong at a place in a file.
var positioned = regexp.MustCompile(`^\S.*:\d+:\d+: `)

// badDocuments prints what the controller finds wrong in documents as lines of their own, as check does. Other errors
// it returns as they are.
func badDocuments(cmd *cobra.Command, err error, notDone string) error {
	var e *exitError
	if !errors.As(err, &e) || e.code != ExitUsage || !positioned.MatchString(e.Error()) {
		return err
	}
	text := strings.TrimRight(e.Error(), "\n")
	complain(cmd, text)
	return usagef("%s in the documents; %s", count(strings.Count(text, "\n")+1, "error"), notDone)
}

// accepted says what became of a change, after waiting for the agents if asked to.
func (a *app) accepted(cmd *cobra.Command, c *client, r *pb.ApplyResponse, wait bool) error {
	v := acceptedView{Revision: r.Revision, Hash: r.Hash, Changed: r.Changed, Warnings: r.Warnings, Pending: r.AgentsPending}
	var waited error
	if wait {
		waited = a.awaitAgents(cmd, c, &v)
	}
	for _, w := range v.Warnings {
		complain(cmd, "warning: "+w)
	}
	err := a.print(cmd, v, func(p *page) {
		if v.Changed {
			p.line("revision %d (%s)", v.Revision, short(v.Hash))
		} else {
			p.line("nothing changed: revision %d holds these documents already", v.Revision)
		}
		switch {
		case len(v.Refused) > 0:
		case v.Pending > 0:
			p.line("%s yet to acknowledge it: see bulkhead agents", count(v.Pending, "agent"))
		case wait:
			p.line("in force at every connected agent")
		}
		if len(v.Away) > 0 {
			p.line("%s away and will get it on return: %s", count(len(v.Away), "agent"), strings.Join(v.Away, ", "))
		}
	})
	if err != nil {
		return err
	}
	return waited
}

// pollAgents is how often --wait looks.
const pollAgents = 50 * time.Millisecond

// awaitAgents waits until every connected agent has what it should have, and fills v. It fails when one refuses or
// when --timeout has passed.
func (a *app) awaitAgents(cmd *cobra.Command, c *client, v *acceptedView) error {
	var bar *progress
	defer func() { bar.finish() }()
	acknowledged := int64(0)
	deadline := time.Now().Add(a.timeout)
	for {
		agents, err := listAgents(cmd, c)
		if err != nil {
			return err
		}
		current := v.tally(agents)
		if bar == nil {
			bar = newProgress(cmd.ErrOrStderr(), fmt.Sprintf("revision %d at the agents", v.Revision), current+int64(v.Pending))
		}
		bar.add(current - acknowledged)
		acknowledged = current
		switch {
		case len(v.Refused) > 0:
			var why []string
			for _, g := range agents {
				if reason, ok := v.Refused[g.Host]; ok {
					why = append(why, g.Host+": "+reason)
				}
			}
			return nof("refused, so the policy before it stays in force there: %s", strings.Join(why, "; "))
		case v.Pending == 0:
			return nil
		case time.Now().After(deadline):
			return cannotf("waited %s: revision %d is not acknowledged by %s yet. See bulkhead agents, or wait longer with --timeout",
				a.timeout, v.Revision, count(v.Pending, "agent"))
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(pollAgents):
		}
	}
}

// tally fills v with where the agents are and returns how many have what they should have.
func (v *acceptedView) tally(agents []agentView) (current int64) {
	v.Pending, v.Away, v.Refused = 0, nil, map[string]string{}
	for _, g := range agents {
		switch {
		case g.Revoked:
		case !g.Connected:
			v.Away = append(v.Away, g.Host)
		case g.Refused != "":
			v.Refused[g.Host] = g.Refused
		case !g.Current:
			v.Pending++
		default:
			current++
		}
	}
	return current
}
