package lab

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/lab/fabric"
	"bulkhead/lab/story"
)

func runCommand() *cobra.Command {
	var o story.Options
	c := scenarioArg("run", "Tell the whole story on a scenario: seven steps, each checked",
		`Builds the scenario, lets it run and tells the main job in seven steps: see, understand, decide,
enforce, breach, contain, fail. Each step is checked against what really happened, and the whole ends in a
table. It takes about a minute. Exit status 1 if a step is bad.`)
	c.Flags().StringVar(&o.Bin, "bin", "", "directory of bulkhead-controller and bulkhead-agent (default: beside this program)")
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave the lab running at the end")
	c.Flags().StringVar(&o.Report, "report", "", "write what was found as JSON to this file")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := loadStory(args)
		if err != nil {
			return err
		}
		if err := fabric.Preflight(); err != nil {
			return err
		}
		o.Scenario, o.Out = s, cmd.OutOrStdout()
		report, err := story.Tell(cmd.Context(), o)
		if err != nil {
			return err
		}
		if !report.Good {
			return &exitError{1, fmt.Errorf("not every step is good: %s", strings.Join(report.Bad(), ", "))}
		}
		return nil
	}
	return c
}
