package status

import (
	"fmt"
	"strconv"
	"strings"
)

// appendMetrics writes the report in the text format of Prometheus. It is short enough to be written by hand; a
// library for it would be a tenth of the agent.
func appendMetrics(b []byte, r *Report) []byte {
	b = family(b, "bulkhead_agent_info", "gauge", "Always 1; the labels say which agent this is.")
	b = fmt.Appendf(b, "bulkhead_agent_info{host=%s,version=%s,dataplane=%s,kernel=%s} 1\n",
		quote(r.Host), quote(r.Version), quote(r.Dataplane.Kind), quote(r.Dataplane.Kernel))
	connected := uint64(0)
	if r.Connected {
		connected = 1
	}
	for _, m := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"connected", "gauge", "1 if the controller has welcomed this agent.", connected},
		{"sessions_total", "counter", "Streams to a controller that were opened.", r.Sessions},
		{"policy_revision", "gauge", "Revision of the policy in force; 0 is none.", r.Revision},
		{"policy_rows", "gauge", "Policy rows in the kernel.", uint64(r.Dataplane.Rows)},
		{"policy_addresses", "gauge", "Addresses and prefixes in the kernel.", uint64(r.Dataplane.Addresses)},
		{"subjects", "gauge", "Workloads of this host that policy judges.", uint64(len(r.Subjects))},
		{"isolated_workloads", "gauge", "Workloads that are contained.", uint64(len(r.Isolated))},
		{"problems", "gauge", "Things that are wrong at this moment; /status says which.", uint64(len(r.Problems))},
		{"judged_total", "counter", "Evaluations on the slow path.", r.Counters.Judged},
		{"flows_allowed_total", "counter", "Flows that were allowed.", r.Counters.Allowed},
		{"flows_would_deny_total", "counter", "Flows that would have been denied under enforcement.", r.Counters.WouldDenied},
		{"flows_denied_total", "counter", "Flows that were denied.", r.Counters.Denied},
		{"dropped_packets_total", "counter", "Packets that were dropped.", r.Counters.DroppedPkts},
		{"events_lost_total", "counter", "Events of the dataplane that were lost.", r.Counters.EventsLost},
		{"dataplane_errors_total", "counter", "Packets that could not be read and were judged by the default.", r.Counters.Errors},
		{"transit_packets_total", "counter", "Packets of others that passed guarded interfaces unjudged.", r.Counters.Transit},
		{"names_lost_total", "counter", "Host names of addresses that did not fit.", r.Counters.NamesLost},
		{"names", "gauge", "Pairs of a host name and an address that resolvers have told and that are not over.", r.Counters.Names},
		{"named_addresses", "gauge", "Addresses of which rules know a host name.", r.Counters.NamedAddresses},
		{"records_lost_total", "counter", "Flow records that were dropped because a bound was reached.", r.RecordsLost},
		{"spool_bytes", "gauge", "Flow records on disk that the controller has not acknowledged.", uint64(r.SpoolBytes)},
		{"resident_bytes", "gauge", "Resident memory of the agent.", r.ResidentBytes},
	} {
		name := "bulkhead_agent_" + m.name
		b = family(b, name, m.kind, m.help)
		b = append(b, name...)
		b = append(b, ' ')
		b = strconv.AppendUint(b, m.value, 10)
		b = append(b, '\n')
	}
	b = family(b, "bulkhead_agent_certificate_expiry_seconds", "gauge", "When the certificate expires, in Unix time; 0 is no certificate.")
	expiry := int64(0)
	if !r.Certificate.IsZero() {
		expiry = r.Certificate.Unix()
	}
	return fmt.Appendf(b, "bulkhead_agent_certificate_expiry_seconds %d\n", expiry)
}

func family(b []byte, name, kind, help string) []byte {
	return fmt.Appendf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// quote returns a label value as the format wants it.
func quote(s string) string { return `"` + escape.Replace(s) + `"` }
