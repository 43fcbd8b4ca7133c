package cli

import (
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
)

// auditView is what `audit -o json` prints.
type auditView struct {
	Intact  bool         `json:"intact"` // the hash chain holds
	Entries []auditEntry `json:"entries"`
}

type auditEntry struct {
	Number  uint64     `json:"number"`
	Time    *time.Time `json:"time"`
	Actor   string     `json:"actor"`
	Action  string     `json:"action"`
	Subject string     `json:"subject,omitempty"`
	Detail  string     `json:"detail,omitempty"`
	Denied  bool       `json:"denied,omitempty"`
	Hash    string     `json:"hash"`
}

func (a *app) auditCommand() *cobra.Command {
	var last uint32
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Who changed or was denied what; checks that the log is whole",
		Long: `Who changed or was denied what, newest first. The log is a chain of hashes; exit status 1
says that the chain is broken, so entries were changed or removed behind the controller's back.`,
		Example: `  bulkhead audit --last 20`,
		Args:    takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.ListAudit, &pb.ListAuditRequest{Limit: last})
			if err != nil {
				return err
			}
			v := auditView{Intact: r.Intact, Entries: make([]auditEntry, len(r.Entries))}
			for i, e := range r.Entries {
				v.Entries[i] = auditEntry{e.Number, stamp(e.TimeMs), e.Actor, e.Action, e.Subject, e.Detail, e.Denied, e.Hash}
			}
			if err := a.print(cmd, v, func(p *page) { printAudit(p, &v) }); err != nil {
				return err
			}
			if !v.Intact {
				return nof("the audit log is not whole: its chain of hashes is broken")
			}
			return nil
		},
	}
	cmd.Flags().Uint32Var(&last, "last", 50, "how many of the newest to show; 0 for all")
	return cmd
}

func printAudit(p *page, v *auditView) {
	t := newTable(">NUMBER", "TIME", "ACTOR", "ACTION", "SUBJECT", "DETAIL")
	for _, e := range v.Entries {
		action := cell{text: e.Action}
		if e.Denied {
			action = cell{e.Action + " (denied)", red}
		}
		when := "-"
		if e.Time != nil {
			when = e.Time.Local().Format(time.DateTime)
		}
		t.add(e.Number, when, e.Actor, action, orDash(e.Subject), e.Detail)
	}
	p.table(t, "The audit log is empty.")
}
