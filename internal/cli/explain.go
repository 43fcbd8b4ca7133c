package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
)

func (a *app) explainCommand() *cobra.Command {
	var f sceneFlags
	cmd := &cobra.Command{
		Use:   "explain FROM TO PROTO/PORT",
		Short: "Why a flow is allowed or denied, rule by rule, at both ends",
		Long: `Say what becomes of a flow and why: at each end every rule that was asked, in order, and
which one decided. FROM and TO are workloads by name, or addresses.

bulkhead explain essentials lists what no policy and no quarantine ever blocks.`,
		Example: `  bulkhead explain -f policy/ portal-1 pay-db-1 tcp/5432
  bulkhead explain portal-1 203.0.113.9 tcp/443
  bulkhead explain nurse-1 mri-1 icmp/8/0
  bulkhead explain essentials -f policy/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && args[0] == "essentials" {
				return nil
			}
			return takes("FROM", "TO", "PROTO/PORT")(cmd, args)
		},
		ValidArgs: []string{"essentials"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.explainEssentials(cmd, &f)
			}
			s, err := a.scene(cmd, &f, "nothing was explained")
			if err != nil {
				return err
			}
			w, err := s.world(cmd, "nothing was explained")
			if err != nil {
				return err
			}
			flow, err := s.flow(args[0], args[1], args[2])
			if err != nil {
				return err
			}
			x, err := verdict.New(w).Explain(flow)
			if err != nil {
				return usagef("%w", err)
			}
			return a.print(cmd, x, func(p *page) { p.text(x.Text()) })
		},
	}
	f.register(cmd)
	return cmd
}

// flow reads a flow as people write it.
func (s *scene) flow(from, to, on string) (*model.Flow, error) {
	f, err := verdict.Question(s.inv, from, to, on)
	var unknown *verdict.UnknownError
	switch {
	case errors.As(err, &unknown):
		return nil, usagef("there is no workload %q in %s%s", unknown.Name, s.origin, didYouMean(similar(unknown.Name, instanceNames(s.inv))))
	case err != nil:
		return nil, usagef("%w", err)
	}
	return f, nil
}
