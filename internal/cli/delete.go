package cli

import (
	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
)

func (a *app) deleteCommand() *cobra.Command {
	var (
		req  pb.ApplyRequest
		wait bool
	)
	cmd := &cobra.Command{
		Use:   "delete KIND NAME...",
		Short: "Remove documents from the policy in force",
		Example: `  bulkhead delete policy payments-legacy
  bulkhead delete workloads printer-3 printer-4 --note "scrapped"`,
		ValidArgs: kindArgs(),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("delete needs KIND NAME: what is to be removed?")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := parseKind(args[0])
			if err != nil {
				return err
			}
			for _, name := range args[1:] {
				req.Remove = append(req.Remove, &pb.DocumentRef{Kind: string(kind), Name: name})
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.Apply, &req)
			if err != nil {
				return err
			}
			return a.accepted(cmd, c, r, wait)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Note, "note", "", "why; kept with the revision")
	flags.Uint64Var(&req.BaseRevision, "base", 0, "refuse if this is not the newest revision any more")
	flags.BoolVar(&req.Force, "force", false, "also when an expectation or a guardrail fails, or a host cannot hold it; this is audited")
	flags.BoolVarP(&wait, "wait", "w", false, "wait until every connected agent has it in force")
	return cmd
}
