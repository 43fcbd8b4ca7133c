// Package cli is the bulkhead command: one file for each verb or noun.
//
// A verb that asks something about policy works on files with -f and on what the controller holds without it; both
// ways lead to the same pure core. What all verbs share is here: the root command and its flags (cli.go), exit codes
// (exit.go), output (output.go, table.go, progress.go), the connection to the controller (connect.go) and the
// documents and workloads a question is about (files.go, scene.go).
//
// Nothing here decides a verdict. Nothing here listens, and nothing is kept between two runs.
package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Groups of verbs in the help text.
const (
	groupAsk     = "ask"
	groupChange  = "change"
	groupObserve = "observe"
	groupOther   = "other"
)

// app holds the flags that every verb has.
type app struct {
	output     string
	controller string
	tokenFile  string
	ca         string
	timeout    time.Duration
}

// New returns the bulkhead command with every verb and the others given. It is run with Run.
func New(others ...*cobra.Command) *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "bulkhead",
		Short: "Microsegmentation: every workload in its own compartment",
		Long: `Bulkhead keeps every workload in its own watertight compartment: it may talk only where
policy, written in labels, says so.

Verbs that ask about policy work on files with -f, without a controller. Without -f they ask
the controller at --controller (or BULKHEAD_CONTROLLER).

Exit status: 0 good, 1 the answer is no, 2 wrong use, 3 it cannot be done.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddGroup(
		&cobra.Group{ID: groupAsk, Title: "Ask about policy, in files (-f) or as the controller holds it:"},
		&cobra.Group{ID: groupChange, Title: "Change what is in force:"},
		&cobra.Group{ID: groupObserve, Title: "See what is there:"},
		&cobra.Group{ID: groupOther, Title: "Other:"},
	)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)

	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", formatTable, "how to print: table, json or yaml")
	flags.StringVar(&a.controller, "controller", os.Getenv("BULKHEAD_CONTROLLER"),
		"where the controller answers: unix:///path.sock or https://host:port (env BULKHEAD_CONTROLLER)")
	flags.StringVar(&a.tokenFile, "token-file", os.Getenv("BULKHEAD_TOKEN_FILE"),
		"file with the API token (env BULKHEAD_TOKEN_FILE)")
	flags.StringVar(&a.ca, "ca", os.Getenv("BULKHEAD_CA"),
		"file with the controller's CA certificate (env BULKHEAD_CA)")
	flags.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for the controller")
	for _, f := range []string{"controller", "token-file", "ca"} {
		// The value of the environment is not a default to show in every help text.
		flags.Lookup(f).DefValue = ""
	}
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return checkFormat(a.output) }
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))

	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupAsk, a.checkCommand(), a.testCommand(), a.evalCommand(), a.explainCommand(), a.compileCommand(),
		a.diffCommand(), a.learnCommand(), a.importCommand())
	add(groupChange, a.planCommand(), a.applyCommand(), a.deleteCommand(), a.rollbackCommand(), a.quarantineCommand(),
		a.tokenCommand())
	add(groupObserve, a.statusCommand(), a.getCommand(), a.flowsCommand(), a.mapCommand(), a.agentsCommand(),
		a.historyCommand(), a.auditCommand())
	add(groupOther, append(others, a.schemaCommand(), a.versionCommand(), a.benchCommand())...)
	return root
}

// must stops the program on a mistake in its own construction, which no input can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// noSuchCommand refuses arguments of a command that has only subcommands, and says which one may have been meant.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	hint := didYouMean(similar(args[0], names))
	if hint == "" {
		hint = fmt.Sprintf(". See %s --help", cmd.CommandPath())
	}
	return usagef("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
}

// noun makes cmd a command that only has subcommands.
func noun(cmd *cobra.Command, sub ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(sub...)
	cmd.Args = noSuchCommand
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		names := make([]string, len(sub))
		for i, c := range sub {
			names[i] = c.Name()
		}
		return usagef("%s needs one of: %s", cmd.CommandPath(), strings.Join(names, ", "))
	}
	return cmd
}

// takes accepts exactly the named arguments.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == len(names):
			return nil
		case len(names) == 0:
			return usagef("%s takes no argument: %q", cmd.CommandPath(), args[0])
		case len(args) < len(names):
			return usagef("%s needs %s", cmd.CommandPath(), strings.Join(names, " "))
		}
		return usagef("%s takes %s only: what is %q?", cmd.CommandPath(), strings.Join(names, " "), args[len(names)])
	}
}

// takesUpTo accepts the named arguments or fewer.
func takesUpTo(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= len(names) {
			return nil
		}
		return usagef("%s takes at most %s: what is %q?", cmd.CommandPath(), strings.Join(names, " "), args[len(names)])
	}
}

// flagError turns cobra's error about a flag into one with a suggestion and exit status 2.
func flagError(cmd *cobra.Command, err error) error {
	var unknown interface{ GetSpecifiedName() string }
	hint := fmt.Sprintf(". See %s --help", cmd.CommandPath())
	if errors.As(err, &unknown) {
		if name := unknown.GetSpecifiedName(); len(name) > 1 {
			if s := similarFlags(cmd, name); len(s) > 0 {
				hint = didYouMean(s)
			}
		}
	}
	return usagef("%v%s", err, hint)
}
