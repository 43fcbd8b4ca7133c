package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"bulkhead/lab/bypass"
	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
)

// theRange is the scenario in which ways around are tried.
const theRange = "range"

func bypassCommand() *cobra.Command {
	var bin string
	c := &cobra.Command{
		Use: "bypass", Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("lab bypass takes no arguments: what is %q?", args[0]))
			}
			return nil
		},
		Short: "Try to get around enforcement in every way we know, and say what becomes of each",
		Long: `Builds a range of three hosts, breaks into a service of one and tries to reach what policy forbids: raw and
packet sockets, fragments, extension headers, source routes, sockets handed over, moved processes, DNAT, tunnels and
more. Each is tried with nothing enforced, when it must arrive, and then enforced. Whether it arrived is said by
the target. It takes half a minute. Exit status 1 if something arrives that should not.`,
	}
	c.Flags().StringVar(&bin, "bin", "", "directory of bulkhead-controller and bulkhead-agent (default: beside this program)")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := scenario.Load(Scenarios(), theRange)
		if err != nil {
			return err
		}
		if err := fabric.Preflight(); err != nil {
			return err
		}
		say := func(format string, a ...any) { fmt.Fprintf(cmd.ErrOrStderr(), "  "+format+"\n", a...) }
		report, err := bypass.Run(cmd.Context(), bypass.Options{Scenario: s, Bin: bin, Say: say})
		if err != nil {
			return err
		}
		if err := printReport(cmd, report); err != nil {
			return err
		}
		if !report.Good {
			return &exitError{1, fmt.Errorf("there are ways around: %s", strings.Join(report.Bad(), "; "))}
		}
		return nil
	}
	return c
}

// printReport prints as the flag of the whole program says.
func printReport(cmd *cobra.Command, r *bypass.Report) error {
	format := "table"
	if f := cmd.Flag("output"); f != nil {
		format = f.Value.String()
	}
	switch format {
	case "json":
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(r)
	case "yaml":
		// By way of JSON, so that the names are the same.
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		var v any
		if err := yaml.Unmarshal(data, &v); err != nil {
			return err
		}
		return yaml.NewEncoder(cmd.OutOrStdout()).Encode(v)
	}
	r.Print(cmd.OutOrStdout())
	return nil
}

// bypassPlayerCommand plays a part of the range.
func bypassPlayerCommand() *cobra.Command {
	var once bool
	c := &cobra.Command{
		Use: bypass.Verb + " SPEC", Hidden: true, Args: cobra.ExactArgs(1), Short: "Play a part of the range",
		RunE: func(cmd *cobra.Command, args []string) error {
			return bypass.Play(cmd.Context(), args[0], once, os.Stdin, os.Stdout)
		},
	}
	c.Flags().BoolVar(&once, "once", false, "obey one order, from standard input")
	return c
}
