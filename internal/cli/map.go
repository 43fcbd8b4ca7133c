package cli

import (
	"slices"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
)

// The formats of map --format.
var mapFormats = []string{"text", "mermaid", "dot", "json"}

func (a *app) mapCommand() *cobra.Command {
	var (
		filter flowFilter
		by     []string
		format string
	)
	cmd := &cobra.Command{
		Use:   "map",
		Short: "Draw who talks to whom, added up by labels",
		Long: `Draw who talks to whom from recorded flows, added up by labels so that it stays small.
A workload without any of the labels of --by stands for itself; --by workload keeps every
workload apart. Addresses that no workload owns stand under the network that holds them. The
text adds the denials of a group up where they are many; --verdict lists every one.`,
		Example: `  bulkhead map
  bulkhead map --by app --verdict deny,would-deny --since 1h
  bulkhead map --format mermaid > map.mmd
  bulkhead map --format dot | dot -Tsvg > map.svg`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.output != formatTable && !cmd.Flags().Changed("format") {
				format = a.output // -o json and -o yaml say the same
			}
			if !slices.Contains(mapFormats, format) && format != formatYAML {
				return usagef("--format %s: use text, mermaid, dot or json", format)
			}
			req, err := filter.request(time.Now())
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			s, err := c.scene(cmd, 0)
			if err != nil {
				return err
			}
			b := newMapBuilder(by, s)
			err = c.edges(cmd.Context(), req, func(r *pb.ListFlowsResponse) error {
				for _, e := range r.Edges {
					if err := b.add(e); err != nil {
						return badEdge(c, err)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			m := b.build()
			m.everyDenial = len(filter.verdicts) > 0
			return a.drawMap(cmd, m, format)
		},
	}
	filter.register(cmd)
	cmd.Flags().StringSliceVar(&by, "by", []string{"app", "role"}, "labels that make a group, or workload")
	cmd.Flags().StringVar(&format, "format", "text", "text, mermaid, dot or json")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(mapFormats, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (a *app) drawMap(cmd *cobra.Command, m *flowMap, format string) error {
	draw := map[string]func(*page){"text": m.drawText, "mermaid": m.drawMermaid, "dot": m.drawDOT}[format]
	as := *a
	as.output = formatTable
	if draw == nil {
		as.output = format
	}
	return as.print(cmd, m, draw)
}
