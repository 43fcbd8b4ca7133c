package cli

import (
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
)

// revisionView is one entry of `history -o json`.
type revisionView struct {
	Revision  uint64     `json:"revision"`
	Hash      string     `json:"hash"`
	Time      *time.Time `json:"time"`
	Author    string     `json:"author"`
	Note      string     `json:"note,omitempty"`
	Documents uint32     `json:"documents"`
}

func (a *app) historyCommand() *cobra.Command {
	var last uint32
	cmd := &cobra.Command{
		Use:   "history",
		Short: "The revisions of the documents: who changed them, when and why",
		Example: `  bulkhead history --last 5
  bulkhead get all --revision 12        # the documents of a revision
  bulkhead diff --base 11 --to 12       # what a revision opened and closed`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.ListRevisions, &pb.ListRevisionsRequest{Limit: last})
			if err != nil {
				return err
			}
			views := make([]revisionView, len(r.Revisions))
			for i, v := range r.Revisions {
				views[i] = revisionView{v.Number, v.Hash, stamp(v.TimeMs), v.Author, v.Note, v.Documents}
			}
			return a.print(cmd, views, func(p *page) {
				t := newTable(">REVISION", "WHEN", "AUTHOR", ">DOCUMENTS", "HASH", "NOTE")
				for _, v := range views {
					t.add(v.Revision, ago(v.Time), orDash(v.Author), v.Documents, short(v.Hash), v.Note)
				}
				p.table(t, "No revision yet. Make the first one with: bulkhead apply -f DIR")
			})
		},
	}
	cmd.Flags().Uint32Var(&last, "last", 50, "how many of the newest to show; 0 for all")
	return cmd
}

// short returns the beginning of a hash, for people.
func short(hash string) string { return hash[:min(12, len(hash))] }
