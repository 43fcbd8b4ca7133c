package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"bulkhead/internal/agent"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/dataplane/ebpf"
	"bulkhead/internal/dataplane/nft"
)

// longest is how long the glass may be broken at once.
const longest = 24 * time.Hour

func glassFlags(o *options, set *flag.FlagSet) {
	set.DurationVar(&o.long, "for", 0, "")
	set.StringVar(&o.reason, "reason", "no reason given", "")
	endFlag(o, set)
}

// breakGlass opens the host against its policy for some time, or ends that. It needs neither the controller nor the agent.
func breakGlass(ctx context.Context, in *invocation) (int, error) {
	o, cfg, stdout := &in.options, in.cfg, in.stdout
	switch {
	case o.end && o.long != 0:
		return exitUsage, errors.New("break-glass: give --for or --end, not both")
	case !o.end && (o.long <= 0 || o.long > longest):
		return exitUsage, fmt.Errorf("break-glass: say for how long with --for, up to %s: bulkhead-agent break-glass --for 15m --reason TEXT", longest)
	}
	now := time.Now()
	g := status.Glass{Until: now.Add(o.long), Reason: o.reason}
	if o.end {
		g.Until = now.Add(-time.Second)
	}
	err := in.client.BreakGlass(ctx, g)
	if errors.Is(err, status.ErrNoAgent) {
		err = breakWithoutAgent(ctx, cfg, g)
	}
	if err != nil {
		return exitCannot, err
	}
	if o.end {
		fmt.Fprintln(stdout, "policy is in force again; connections that it denies were reset")
		return exitGood, nil
	}
	fmt.Fprintf(stdout, "everything passes until %s, whatever policy says; it ends by itself, or with: bulkhead-agent break-glass --end\n",
		g.Until.Format(time.RFC3339))
	return exitGood, nil
}

// breakWithoutAgent does it in the kernel. The next agent reports it, without the reason, which the kernel does not keep.
func breakWithoutAgent(ctx context.Context, cfg agent.Config, g status.Glass) (err error) {
	if err := complete(&cfg); err != nil {
		return err
	}
	opened := false
	if there, err := nft.Installed(); err == nil && there {
		plane := nft.DefaultConfig()
		dp, err := nft.Open(plane)
		if err != nil {
			return err
		}
		if err := errors.Join(dp.BreakGlass(ctx, g.Until), dp.Close()); err != nil {
			return err
		}
		opened = true
	}
	plane := ebpfConfig(&cfg, nil)
	this, other, err := ebpf.Installed(plane)
	switch {
	case err != nil:
		return err
	case other: // opening this version's would take it out of the kernel, for longer than was asked
		return errors.New("what judges in the kernel is of another version: start the agent, or take it out with bulkhead-agent remove")
	case !this && opened:
		return nil
	case !this:
		return errors.New("nothing of Bulkhead is in the kernel: no traffic is judged")
	}
	dp, err := ebpf.Open(plane)
	if err != nil {
		return err
	}
	return errors.Join(dp.BreakGlass(ctx, g.Until), dp.Close())
}
