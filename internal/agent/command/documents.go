package command

import (
	"context"
	"flag"
	"fmt"

	"bulkhead/internal/agent/status"
	"bulkhead/internal/docdir"
)

func explainFlow(ctx context.Context, in *invocation) (int, error) {
	x, err := in.client.Explain(ctx, status.Question{From: in.args[0], To: in.args[1], On: in.args[2]})
	if err != nil {
		return said(err)
	}
	return in.print(x, x.Text())
}

// planDocuments exits with 1 if the documents would be refused.
func planDocuments(ctx context.Context, in *invocation) (int, error) {
	files, err := docdir.Read(in.args[0])
	if err != nil {
		return exitUsage, err
	}
	p, err := in.client.Plan(ctx, files)
	if err != nil {
		return said(err)
	}
	code, err := in.print(p, p.Text())
	if err == nil && !p.OK {
		code = exitNo
	}
	return code, err
}

func confirmTrial(ctx context.Context, in *invocation) (int, error) {
	if err := in.client.Confirm(ctx); err != nil {
		return said(err)
	}
	fmt.Fprintln(in.stdout, "confirmed; it stays in force")
	return exitGood, nil
}

func reloadDocuments(ctx context.Context, in *invocation) (int, error) {
	if err := in.client.Reload(ctx); err != nil {
		return said(err)
	}
	return showStatus(ctx, in)
}

func endFlag(o *options, set *flag.FlagSet) { set.BoolVar(&o.end, "end", false, "") }

func isolate(ctx context.Context, in *invocation) (int, error) {
	if err := in.client.Isolate(ctx, in.args[0], !in.end); err != nil {
		return said(err)
	}
	if in.end {
		fmt.Fprintf(in.stdout, "%s is judged by its policy again\n", in.args[0])
	} else {
		fmt.Fprintf(in.stdout, "%s is isolated: its connections were reset; end it with: bulkhead-agent isolate %[1]s --end\n", in.args[0])
	}
	return exitGood, nil
}
