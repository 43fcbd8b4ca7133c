// Package lab is the demonstration, the integration test bed and the attack range: a small bank, hospital or factory
// as real processes with real sockets on the real kernel of one machine, with the real controller and agents.
//
// lab/scenario reads what a place is made of, lab/fabric makes its machines, lab/traffic and lab/worm are the programs
// that run on them, lab/rig runs it all, and lab/story tells and checks the seven steps of the main job. This package
// holds the scenarios and the commands.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"bulkhead/lab/fabric"
	"bulkhead/lab/rig"
	"bulkhead/lab/scenario"
)

// Command returns the lab's part of the command line.
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "lab",
		Short: "Run a small bank, hospital or factory on this machine, break into it and watch",
		Long: `The lab builds hosts as network namespaces and services as processes in cgroups, with an agent on each
host and one controller. It needs root. It touches nothing outside what it makes, and removes all of
it at the end; what a killed run left is removed by the next one.

Scenarios: bank, hospital, factory; and range, on which lab bypass tries ways around enforcement.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(runCommand(), upCommand(), attackCommand(), bypassCommand(), statusCommand(), downCommand(), playCommand(), wormCommand(), bypassPlayerCommand())
	return c
}

// exitError is an error with an exit status (DESIGN §5).
type exitError struct {
	code int
	error
}

func (e *exitError) ExitCode() int { return e.code }
func (e *exitError) Unwrap() error { return e.error }

func usage(err error) error { return &exitError{2, err} }

// load reads the scenario that the arguments name; without one it is the bank.
func load(args []string) (*scenario.Scenario, error) {
	name := "bank"
	if len(args) > 0 {
		name = args[0]
	}
	s, err := scenario.Load(Scenarios(), name)
	if err != nil {
		return nil, usage(err)
	}
	return s, nil
}

// loadStory reads a scenario of which the story is told.
func loadStory(args []string) (*scenario.Scenario, error) {
	s, err := load(args)
	if err == nil && !s.HasStory() {
		return nil, usage(fmt.Errorf("%s has no story: use bulkhead lab bypass", s.Name))
	}
	return s, err
}

func scenarioArg(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: use + " [SCENARIO]", Short: short, Long: long, Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(fmt.Errorf("lab %s takes one scenario: what is %q?", use, args[1]))
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			names, err := scenario.Names(Scenarios())
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func upCommand() *cobra.Command {
	var bin string
	c := scenarioArg("up", "Start a lab and leave it running, everything observed and nothing enforced",
		"Builds the scenario, starts controller and agents, applies the documents of the place in mode observe and\nleaves it all running until lab down.")
	c.Flags().StringVar(&bin, "bin", "", "directory of bulkhead-controller and bulkhead-agent (default: beside this program)")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := loadStory(args)
		if err != nil {
			return err
		}
		if err := fabric.Preflight(); err != nil {
			return err
		}
		say := func(format string, a ...any) { fmt.Fprintf(cmd.OutOrStdout(), "  "+format+"\n", a...) }
		r, err := rig.Up(cmd.Context(), rig.Config{Scenario: s, Bin: bin, Stay: true, Say: say})
		if err != nil {
			return err
		}
		fmt.Fprint(cmd.OutOrStdout(), r.HowToExplore())
		return r.Leave()
	}
	return c
}

func attackCommand() *cobra.Command {
	var from string
	c := scenarioArg("attack", "Let the worm loose in a lab that is up, and say how far it came",
		"Starts the harmless worm in one workload of a lab that lab up or lab run --keep left running. It tries every\naddress and port of the lab, and nothing else.")
	c.Flags().StringVar(&from, "from", "", "workload to begin in, by its name or as host/unit (default: that of the story)")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := loadStory(args)
		if err != nil {
			return err
		}
		r, err := rig.Attach(s)
		if err != nil {
			return err
		}
		if from == "" {
			from = s.Story.Breach.From
		}
		id, err := s.Find(from)
		if err != nil {
			return usage(err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "The worm starts in %s …\n", s.Workload(id))
		attack, err := r.Attack(cmd.Context(), id.String())
		if err != nil {
			return err
		}
		fmt.Fprint(cmd.OutOrStdout(), attack.Tell(s))
		fmt.Fprintf(cmd.OutOrStdout(), "\nWhat stopped it:  bulkhead --controller %s flows --verdict deny\nTo heal the lab:  bulkhead lab down %s, and up again\n", r.SocketURL(), s.Name)
		return nil
	}
	return c
}

func statusCommand() *cobra.Command {
	c := scenarioArg("status", "Say whether a lab is up, and how its parts are", "")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := load(args)
		if err != nil {
			return err
		}
		r, err := rig.Attach(s)
		if errors.Is(err, rig.ErrNotUp) {
			return &exitError{1, err}
		}
		if err != nil {
			return err
		}
		report, err := r.Status(cmd.Context())
		fmt.Fprint(cmd.OutOrStdout(), report)
		return err
	}
	return c
}

func downCommand() *cobra.Command {
	c := scenarioArg("down", "End a lab and remove everything of it", "")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := load(args)
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return &fabric.Missing{What: []string{"it removes namespaces and cgroups, so it needs root: use sudo"}}
		}
		left, err := fabric.Sweep(cmd.Context(), s.Name)
		if err != nil {
			return err
		}
		if !left.Any() {
			fmt.Fprintf(cmd.OutOrStdout(), "The %s lab was not up.\n", s.Name)
			return nil
		}
		fmt.Fprintf(cmd.OutOrStdout(), "The %s lab is gone: %s.\n", s.Name, left)
		return nil
	}
	return c
}

// interrupted reports whether the error only says that the user wanted to stop.
func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}
