package command

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"bulkhead/internal/agent/status"
)

func showStatus(ctx context.Context, in *invocation) (int, error) {
	r, err := in.client.Status(ctx)
	if err != nil {
		return said(err)
	}
	code, err := in.print(r, statusText(r))
	if err == nil && len(r.Problems) > 0 {
		code = exitNo
	}
	return code, err
}

// statusText is the report for people.
func statusText(r *status.Report) string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "host\t%s (%s)\n", r.Host, master(r))
	switch {
	case r.Hash == "":
		fmt.Fprintf(t, "policy\tnone yet; nothing is dropped\n")
	case r.Alone != nil && r.Alone.Version == 0:
		fmt.Fprintf(t, "policy\tno documents yet; nothing is dropped\n")
	case r.Alone != nil:
		fmt.Fprintf(t, "policy\tversion %d of %s, %d documents, %.12s; %d rows, %d addresses\n", r.Alone.Version,
			r.Alone.Since.Local().Format(time.DateTime), r.Alone.Documents, r.Hash, r.Dataplane.Rows, r.Dataplane.Addresses)
	default:
		fmt.Fprintf(t, "policy\trevision %d, %.12s; %d rows, %d addresses\n", r.Revision, r.Hash, r.Dataplane.Rows, r.Dataplane.Addresses)
	}
	if r.Glass != nil {
		fmt.Fprintf(t, "BROKEN GLASS\teverything passes until %s: %s\n", r.Glass.Until.Format(time.RFC3339), r.Glass.Reason)
	}
	fmt.Fprintf(t, "flows\t%d allowed, %d would be denied, %d denied; %d packets dropped\n",
		r.Counters.Allowed, r.Counters.WouldDenied, r.Counters.Denied, r.Counters.DroppedPkts)
	if lost := r.Counters.EventsLost + r.RecordsLost; lost > 0 || r.SpoolBytes > 0 {
		fmt.Fprintf(t, "records\t%d lost, %d bytes not acknowledged yet\n", lost, r.SpoolBytes)
	}
	if r.Counters.Names > 0 || r.Counters.NamesLost > 0 {
		fmt.Fprintf(t, "host names\t%d known, rules know one of %d addresses; %d did not fit\n",
			r.Counters.Names, r.Counters.NamedAddresses, r.Counters.NamesLost)
	}
	for _, s := range r.Subjects {
		fmt.Fprintf(t, "workload\t%s\n", describe(s, r.Alone != nil))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(t, "problem\t%s\n", p)
	}
	if r.Alone != nil {
		documents(t, r.Alone)
	}
	_ = t.Flush() // a builder takes everything
	return b.String()
}

// master says where policy comes from.
func master(r *status.Report) string {
	switch {
	case r.Alone != nil:
		return "stands alone, by " + r.Alone.Dir
	case r.Connected:
		return "connected to " + r.Controller
	}
	return "not connected to " + r.Controller + "; what is in force stays in force"
}

// documents says in full what the problems say in short.
func documents(t *tabwriter.Writer, a *status.Alone) {
	if a.Refused != nil && len(a.Refused.Errors) > 1 {
		for _, e := range a.Refused.Errors {
			fmt.Fprintf(t, "refused\t%s\n", e)
		}
	}
	if a.Trial != nil {
		for _, c := range a.Trial.Closes {
			fmt.Fprintf(t, "closes\t%s\n", c)
		}
	}
	for _, n := range a.Notes {
		fmt.Fprintf(t, "note\t%s\n", n)
	}
}

func describe(s status.Subject, alone bool) string {
	text := s.Workload
	switch {
	case s.Unit != "" && len(s.Cgroups) == 0:
		text += " (" + s.Unit + ", not running)"
	case s.Unit != "":
		text += " (" + strings.Join(s.Cgroups, ", ") + ")"
	}
	if s.Labels != "" {
		text += ", " + s.Labels
	}
	switch {
	case len(s.Segments) > 0:
		text += ", in " + strings.Join(s.Segments, ", ")
	case alone:
		text += ", in no segment: only observed"
	}
	if s.Isolated {
		text += ", isolated"
	} else if s.Quarantine != "" {
		text += ", quarantine " + s.Quarantine
	}
	return text
}
