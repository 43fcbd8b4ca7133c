package command

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
	"bulkhead/internal/harmless"
)

func flowFlags(o *options, set *flag.FlagSet) {
	set.BoolVar(&o.denied, "denied", false, "")
	set.BoolVar(&o.follow, "follow", false, "")
}

// followEvery is how often the agent is asked what is new.
const followEvery = 500 * time.Millisecond

func showFlows(ctx context.Context, in *invocation) (int, error) {
	list, err := in.client.Flows(ctx, 0, in.denied)
	if err != nil {
		return said(err)
	}
	write := in.flowLines
	if in.output == "table" && !in.follow {
		write = in.flowTable
	}
	for {
		if err := write(list.Flows); err != nil || !in.follow {
			return said(err)
		}
		write = in.flowLines
		select {
		case <-ctx.Done():
			return exitGood, nil
		case <-time.After(followEvery):
		}
		if list, err = in.client.Flows(ctx, list.Sequence, in.denied); err != nil {
			if ctx.Err() != nil {
				return exitGood, nil
			}
			return said(err)
		}
	}
}

// flowTable prints all flows in columns, the latest last.
func (in *invocation) flowTable(list []status.Flow) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(in.stdout, "No flow was seen that matches.")
		return err
	}
	t := tabwriter.NewWriter(in.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LAST\tDIR\tFROM\tTO\tPORT\tVERDICT\tCONNS\tPROCESS\tRULE")
	for i := range list {
		f := &list[i]
		fmt.Fprintln(t, strings.Join([]string{
			when(f.Last), way(f), harmless.Line(f.From), harmless.Line(f.To), f.On(), f.Verdict, fmt.Sprint(f.Connections),
			harmless.Line(cmp.Or(f.Process, "-")), harmless.Line(f.Rule),
		}, "\t"))
	}
	return t.Flush()
}

// flowLines prints a line for each flow: for people, or as JSON that bulkhead eval and learn read.
func (in *invocation) flowLines(list []status.Flow) error {
	out := bufio.NewWriter(in.stdout)
	for i := range list {
		f := &list[i]
		if in.output == "json" {
			line, err := flowLine(f)
			if err != nil {
				return err
			}
			_, _ = out.Write(line) // Flush returns the error
			continue
		}
		fmt.Fprintf(out, "%-8s  %-3s  %-24s %-24s %-10s %-10s %6d  %-15s %s\n", when(f.Last), way(f), harmless.Line(f.From),
			harmless.Line(f.To), f.On(), f.Verdict, f.Connections, harmless.Line(cmp.Or(f.Process, "-")), harmless.Line(f.Rule))
	}
	return out.Flush()
}

// way says who has opened the flow, seen from this host.
func way(f *status.Flow) string {
	if f.Direction == model.Egress.String() {
		return "out"
	}
	return "in"
}

func when(t time.Time) string {
	if time.Since(t) > 24*time.Hour {
		return t.Local().Format(time.DateOnly)
	}
	return t.Local().Format(time.TimeOnly)
}

// flowExtra are the fields of a line beside those of a recorded flow. Readers of recorded flows skip them.
type flowExtra struct {
	Direction     string `json:"direction"`
	Rule          string `json:"rule"`
	Path          string `json:"path,omitempty"`
	UID           uint32 `json:"uid"`
	BytesSent     uint64 `json:"bytes_sent"`
	BytesReceived uint64 `json:"bytes_received"`
}

func flowLine(f *status.Flow) ([]byte, error) {
	v, err := model.ParseVerdict(f.Verdict)
	if err != nil {
		return nil, err
	}
	r := &model.RecordedFlow{
		FromAddr: f.FromAddr, ToAddr: f.ToAddr, Connections: max(1, f.Connections), First: f.First, Last: f.Last, Verdict: v,
	}
	r.From, r.To = endOf(f.From, f.FromAddr), endOf(f.To, f.ToAddr)
	r.Proto, r.Port = model.Proto(f.Proto), f.Port
	var process *model.Process
	if f.Path != "" {
		process = &model.Process{Path: f.Path}
	}
	if f.Direction == model.Egress.String() {
		r.FromName, r.FromProcess = f.Process, process
	} else {
		r.ToName, r.ToProcess = f.Process, process
	}
	more, err := json.Marshal(flowExtra{f.Direction, f.Rule, f.Path, f.UID, f.BytesSent, f.BytesReceived})
	if err != nil {
		return nil, err
	}
	line := flowline.AppendRecord(nil, r)
	line = append(line[:len(line)-1], ',')
	return append(append(line, more[1:]...), '\n'), nil
}

func endOf(name string, addr netip.Addr) model.End {
	if name == addr.String() {
		return model.End{Addr: addr}
	}
	return model.End{Workload: name}
}
