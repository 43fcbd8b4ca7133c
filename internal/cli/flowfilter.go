package cli

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/internal/wire"
)

// flowFilter says which recorded flows are asked for.
type flowFilter struct {
	from, to, port, rule string
	since, until         string
	verdicts             []string
}

func (f *flowFilter) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "only from this workload, address or selector")
	flags.StringVar(&f.to, "to", "", "only to this workload, address or selector")
	flags.StringVar(&f.port, "port", "", "only to this port: tcp/5432, tcp/8000-8100, udp, icmp, …")
	flags.StringVar(&f.rule, "rule", "", "only what this rule decided at either end")
	flags.StringSliceVar(&f.verdicts, "verdict", nil, "only with this verdict: allow, deny, would-deny (repeatable)")
	flags.StringVar(&f.since, "since", "24h", "seen since then: how long ago, or a time")
	flags.StringVar(&f.until, "until", "", "seen until then: how long ago, or a time")
	verdicts := []string{model.Allow.String(), model.Deny.String(), model.WouldDeny.String()}
	must(cmd.RegisterFlagCompletionFunc("verdict", cobra.FixedCompletions(verdicts, cobra.ShellCompDirectiveNoFileComp)))
}

// request returns the filter as the API takes it.
func (f *flowFilter) request(now time.Time) (*pb.ListFlowsRequest, error) {
	req := &pb.ListFlowsRequest{From: f.from, To: f.to, Port: f.port, Rule: f.rule}
	if f.port != "" {
		if _, err := model.ParsePortRange(f.port); err != nil {
			return nil, usagef("--port: %w", err)
		}
	}
	for _, s := range f.verdicts {
		v, err := model.ParseVerdict(s)
		if err != nil {
			return nil, usagef("--verdict: %w", err)
		}
		req.Verdicts = append(req.Verdicts, wire.VerdictToProto(v))
	}
	since, err := parseMoment(f.since, now)
	if err != nil {
		return nil, err
	}
	req.SinceMs = since.UnixMilli()
	if f.until != "" {
		until, err := parseMoment(f.until, now)
		if err != nil {
			return nil, err
		}
		if until.Before(since) {
			return nil, usagef("--until %s is before --since %s", f.until, f.since)
		}
		req.UntilMs = until.UnixMilli()
	}
	return req, nil
}

// edges calls fn for every batch of edges that the controller sends, until there are no more. With req.Follow it
// goes on until ctx ends, which is no error then.
func (c *client) edges(ctx context.Context, req *pb.ListFlowsRequest, fn func(*pb.ListFlowsResponse) error) error {
	stream, err := c.ListFlows(ctx, req)
	if err != nil {
		return c.explain(err)
	}
	defer stream.Close()
	for {
		r, err := stream.Receive()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case req.Follow && ctx.Err() != nil:
			return nil
		default:
			return c.explain(err)
		}
		if err := fn(r); err != nil {
			return err
		}
	}
}
