package cli

import (
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/internal/wire"
)

// quarantineView is one entry of `quarantine list -o json`.
type quarantineView struct {
	Workload string     `json:"workload"`
	Level    string     `json:"level"`
	Reason   string     `json:"reason,omitempty"`
	By       string     `json:"by,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Until    *time.Time `json:"until"`
}

// containedView is what `quarantine WORKLOAD -o json` prints.
type containedView struct {
	Workload string     `json:"workload"`
	Level    string     `json:"level"`
	Until    *time.Time `json:"until"`
	InForce  bool       `json:"in_force"` // the agent concerned has said so
	TookUs   int64      `json:"took_us"`
	Detail   string     `json:"detail,omitempty"`
}

func (a *app) quarantineCommand() *cobra.Command {
	var (
		level, reason string
		ttl           = spanFlag(time.Hour)
		wait          time.Duration
	)
	cmd := &cobra.Command{
		Use:   "quarantine WORKLOAD",
		Short: "Contain a workload for a while",
		Long: `Contain a workload for a while, in every mode and at once; live connections are cut.

Levels: watch     log everything, drop nothing more
        restrict  no new connections to other workloads but those in use during the last day
        isolate   essentials and the forensic network only

The lease ends by itself after --for, or with quarantine lift. It is in the audit log.
Exit status 1 says that the lease holds but its agent has not confirmed it yet.`,
		Example: `  bulkhead quarantine portal-1 --reason "unusual connection to the database"
  bulkhead quarantine portal-1 --level restrict --for 4h
  bulkhead quarantine list
  bulkhead quarantine lift portal-1`,
		Args: takes("WORKLOAD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseLevel(level)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			c.timeout = max(c.timeout, wait+5*time.Second)
			r, err := ask(cmd.Context(), c, c.SetQuarantine, &pb.SetQuarantineRequest{
				Workload: args[0], Level: wire.LevelToProto(q), TtlSeconds: int64(time.Duration(ttl).Seconds()), Reason: reason,
				WaitMs: wait.Milliseconds(),
			})
			if err != nil {
				return err
			}
			v := containedView{args[0], q.String(), stamp(r.UntilMs), r.Isolated, r.TookUs, r.Detail}
			err = a.print(cmd, v, func(p *page) {
				if v.InForce {
					took := time.Duration(v.TookUs) * time.Microsecond
					p.line("%s: %s in force after %s, ends %s", v.Workload, v.Level, took, ago(v.Until))
				} else {
					p.line("%s: %s is ordered, ends %s, but its agent has not confirmed it yet", v.Workload, v.Level, ago(v.Until))
				}
				if v.Detail != "" {
					p.line("%s", v.Detail)
				}
			})
			if err != nil {
				return err
			}
			return answer(v.InForce)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&level, "level", "isolate", "watch, restrict or isolate")
	flags.Var(&ttl, "for", "how long")
	flags.StringVar(&reason, "reason", "", "why; kept in the audit log")
	flags.DurationVar(&wait, "wait", 2*time.Second, "how long to wait for the agent's word")
	must(cmd.RegisterFlagCompletionFunc("level", cobra.FixedCompletions([]string{"watch", "restrict", "isolate"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.AddCommand(a.quarantineListCommand(), a.quarantineLiftCommand())
	return cmd
}

func (a *app) quarantineListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "The workloads in quarantine",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.ListQuarantines, &pb.ListQuarantinesRequest{})
			if err != nil {
				return err
			}
			views := make([]quarantineView, len(r.Quarantines))
			for i, q := range r.Quarantines {
				level, err := wire.LevelFromProto(q.Level)
				if err != nil {
					return cannotf("%w", err)
				}
				views[i] = quarantineView{q.Workload, level.String(), q.Reason, q.By, stamp(q.SinceMs), stamp(q.UntilMs)}
			}
			return a.print(cmd, views, func(p *page) {
				t := newTable("WORKLOAD", "LEVEL", "SINCE", "ENDS", "BY", "REASON")
				for _, v := range views {
					t.add(v.Workload, v.Level, ago(v.Since), ago(v.Until), orDash(v.By), v.Reason)
				}
				p.table(t, "Nothing is in quarantine.")
			})
		},
	}
}

func (a *app) quarantineLiftCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "lift WORKLOAD",
		Short: "End a quarantine",
		Args:  takes("WORKLOAD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := ask(cmd.Context(), c, c.LiftQuarantine, &pb.LiftQuarantineRequest{Workload: args[0], Reason: reason}); err != nil {
				return err
			}
			return a.print(cmd, map[string]string{"lifted": args[0]}, func(p *page) { p.line("the quarantine of %s is lifted", args[0]) })
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; kept in the audit log")
	return cmd
}

func parseLevel(s string) (model.QuarantineLevel, error) {
	level, ok := model.ParseQuarantineLevel(s)
	if !ok {
		return 0, usagef("quarantine level %q: use watch, restrict or isolate", s)
	}
	return level, nil
}
