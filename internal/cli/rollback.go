package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
)

func (a *app) rollbackCommand() *cobra.Command {
	var (
		note string
		wait bool
	)
	cmd := &cobra.Command{
		Use:   "rollback REVISION",
		Short: "Apply the documents of an earlier revision again",
		Long:  "Apply the documents of an earlier revision again. That makes a new revision; nothing is erased.",
		Example: `  bulkhead history
  bulkhead rollback 11 --note "payments could not reach the database"`,
		Args: takes("REVISION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || number == 0 {
				return usagef("%q is not the number of a revision: see bulkhead history", args[0])
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.Rollback, &pb.RollbackRequest{Revision: number, Note: note})
			if err != nil {
				return err
			}
			return a.accepted(cmd, c, r, wait)
		},
	}
	cmd.Flags().StringVar(&note, "note", "", "why; kept with the revision")
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "wait until every connected agent has it in force")
	return cmd
}
