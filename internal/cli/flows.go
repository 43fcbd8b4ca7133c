package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
	"bulkhead/internal/harmless"
	"bulkhead/internal/wire"
)

// edgeExtra are the fields of a line of `flows -o json` beside those of flowline, which say what both ends recorded.
// Readers of recorded flows skip them.
type edgeExtra struct {
	Egress        *endView     `json:"egress,omitempty"` // absent: that end said nothing
	Ingress       *endView     `json:"ingress,omitempty"`
	Seen          string       `json:"seen"` // both, source or destination
	BytesToServer uint64       `json:"bytes_to_server"`
	BytesToClient uint64       `json:"bytes_to_client"`
	FromLabels    model.Labels `json:"from_labels,omitempty"`
	ToLabels      model.Labels `json:"to_labels,omitempty"`
}

type endView struct {
	Verdict     string `json:"verdict"`
	Rule        string `json:"rule"`
	Connections uint64 `json:"connections"`
}

func (a *app) flowsCommand() *cobra.Command {
	var (
		filter flowFilter
		req    struct {
			last   uint32
			follow bool
		}
	)
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Who talked to whom, with the verdict and the rule at each end",
		Long: `Show recorded flows: what both ends saw, joined. -o json prints one object a line, which
eval and learn read back with --flows.`,
		Example: `  bulkhead flows --since 1h --verdict deny,would-deny
  bulkhead flows --to app=payments --port tcp/5432
  bulkhead flows --rule default-deny --follow
  bulkhead flows --since 7d -o json > flows.jsonl`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filter.request(time.Now())
			if err != nil {
				return err
			}
			q.Limit, q.Follow = req.last, req.follow
			if q.Follow && filter.until != "" {
				return usagef("--follow has no end; leave out --until")
			}
			if q.Follow && a.output == formatYAML {
				return usagef("--follow goes with a table or -o json")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			switch {
			case a.output == formatJSON:
				return printFlowLines(cmd, c, q)
			case q.Follow:
				return followFlows(cmd, c, q)
			}
			return a.listFlows(cmd, c, q)
		},
	}
	filter.register(cmd)
	cmd.Flags().Uint32Var(&req.last, "last", 0, "only that many, the latest; 0 for all")
	cmd.Flags().BoolVar(&req.follow, "follow", false, "go on with what is recorded from now on, until interrupted")
	return cmd
}

// recordOf returns the edge as eval, learn and diff read it.
func recordOf(e *pb.Edge) (*model.RecordedFlow, error) {
	r := &model.RecordedFlow{
		Connections: max(1, e.Connections), First: time.UnixMilli(e.FirstMs), Last: time.UnixMilli(e.LastMs),
		FromName: e.FromProcess, ToName: e.ToProcess,
	}
	var err error
	if r.Proto, r.Port, err = wire.PortFromProto(e.Proto, e.Port); err != nil {
		return nil, err
	}
	if r.Verdict, err = wire.VerdictFromProto(e.Verdict); err != nil {
		return nil, err
	}
	if r.FromAddr, err = optionalAddr(e.FromAddr); err != nil {
		return nil, err
	}
	if r.ToAddr, err = optionalAddr(e.ToAddr); err != nil {
		return nil, err
	}
	r.From, r.To = endOf(e.From, r.FromAddr), endOf(e.To, r.ToAddr)
	return r, nil
}

// endOf returns the end that an edge names: by its workload, or by its address where no workload has that.
func endOf(name string, addr netip.Addr) model.End {
	if a, err := netip.ParseAddr(name); err == nil && a == addr {
		return model.End{Addr: a}
	}
	return model.End{Workload: name}
}

func optionalAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	return netip.ParseAddr(s)
}

// flowLine appends the edge as one JSON object and a line feed: a recorded flow and what else is known of it.
func flowLine(dst []byte, e *pb.Edge) ([]byte, error) {
	r, err := recordOf(e)
	if err != nil {
		return dst, err
	}
	extra := edgeExtra{
		Seen: e.Seen, BytesToServer: e.BytesToServer, BytesToClient: e.BytesToClient,
		FromLabels: e.FromLabels, ToLabels: e.ToLabels,
	}
	if extra.Egress, err = viewEnd(e.Egress); err != nil {
		return dst, err
	}
	if extra.Ingress, err = viewEnd(e.Ingress); err != nil {
		return dst, err
	}
	more, err := json.Marshal(&extra)
	if err != nil {
		return dst, err
	}
	dst = flowline.AppendRecord(dst, r)
	dst = append(dst[:len(dst)-1], ',')
	return append(append(dst, more[1:]...), '\n'), nil
}

func viewEnd(e *pb.EdgeEnd) (*endView, error) {
	if e == nil {
		return nil, nil
	}
	v, err := wire.VerdictFromProto(e.Verdict)
	if err != nil {
		return nil, err
	}
	return &endView{v.String(), e.Rule, e.Connections}, nil
}

func printFlowLines(cmd *cobra.Command, c *client, req *pb.ListFlowsRequest) error {
	out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
	var buf []byte
	err := c.edges(cmd.Context(), req, func(r *pb.ListFlowsResponse) error {
		for _, e := range r.Edges {
			line, err := flowLine(buf[:0], e)
			if err != nil {
				return badEdge(c, err)
			}
			buf = line
			if _, err := out.Write(line); err != nil {
				return cannotf("write the output: %w", err)
			}
		}
		reportLost(cmd, r)
		if req.Follow {
			return out.Flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return cannotf("write the output: %w", err)
	}
	return nil
}

func badEdge(c *client, err error) error {
	return cannotf("the controller at %s sent a flow that this command cannot read: %w", c.where, err)
}

// listFlows prints all flows at once, as a table or as YAML.
func (a *app) listFlows(cmd *cobra.Command, c *client, req *pb.ListFlowsRequest) error {
	t := newTable("LAST", "FROM", "TO", "PORT", "VERDICT", ">CONNS", "SEEN BY", "PROCESSES", "RULE")
	list := []json.RawMessage{}
	err := c.edges(cmd.Context(), req, func(r *pb.ListFlowsResponse) error {
		for _, e := range r.Edges {
			row, err := edgeRow(e)
			if err != nil {
				return badEdge(c, err)
			}
			if a.output == formatTable {
				t.add(row...)
				continue
			}
			line, err := flowLine(nil, e)
			if err != nil {
				return badEdge(c, err)
			}
			list = append(list, line)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.print(cmd, list, func(p *page) {
		p.table(t, "No flow was recorded that matches.")
	})
}

// edgeRow is one line of the table.
func edgeRow(e *pb.Edge) ([]any, error) {
	r, err := recordOf(e)
	if err != nil {
		return nil, err
	}
	port := model.PortRange{Proto: r.Proto, Lo: r.Port, Hi: r.Port}
	return []any{
		ago(&r.Last), e.From, e.To, port.String(), verdictCell(r.Verdict), thousands(e.Connections),
		e.Seen, orDash(processes(r)), decidedBy(e),
	}, nil
}

// processes names the programs at both ends, as far as they are known.
func processes(r *model.RecordedFlow) string {
	if r.FromName == "" && r.ToName == "" {
		return ""
	}
	return fmt.Sprintf("%s > %s", known(r.FromName), known(r.ToName))
}

func known(name string) string {
	if name == "" {
		return "?"
	}
	return name
}

// decidedBy names the rule that gave the verdict over both ends: one for each end where they differ.
func decidedBy(e *pb.Edge) string {
	gives := func(end *pb.EdgeEnd) bool { return end != nil && end.Verdict == e.Verdict }
	switch out, in := gives(e.Egress), gives(e.Ingress); {
	case out && in && e.Egress.Rule != e.Ingress.Rule:
		return e.Egress.Rule + " > " + e.Ingress.Rule
	case out && in:
		return e.Egress.Rule
	case out:
		return e.Egress.Rule + " at the source"
	case in:
		return e.Ingress.Rule + " at the destination"
	}
	return "-"
}

// followFlows prints flows as they come, in columns of fixed width.
func followFlows(cmd *cobra.Command, c *client, req *pb.ListFlowsRequest) error {
	p := newPage(cmd.OutOrStdout())
	return c.edges(cmd.Context(), req, func(r *pb.ListFlowsResponse) error {
		for _, e := range r.Edges {
			row, err := edgeRow(e)
			if err != nil {
				return badEdge(c, err)
			}
			port, verdict, rule := fmt.Sprint(row[3]), row[4].(cell), decidedBy(e)
			p.line("%s  %-24s %-24s %-12s %s %6s  %s", time.UnixMilli(e.LastMs).Local().Format(time.TimeOnly), harmless.Line(e.From),
				harmless.Line(e.To), port, p.paint(fmt.Sprintf("%-10s", verdict.text), verdict.colour), thousands(e.Connections), harmless.Line(rule))
		}
		reportLost(cmd, r)
		if err := p.flush(); err != nil {
			return cannotf("write the output: %w", err)
		}
		return nil
	})
}

// reportLost says that this reader was too slow.
func reportLost(cmd *cobra.Command, r *pb.ListFlowsResponse) {
	if r.Lost > 0 {
		cmd.PrintErrf("warning: %s left out, because they came faster than they were read\n", count(r.Lost, "record"))
	}
}
