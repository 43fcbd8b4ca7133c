package story

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/lab/fabric"
	"bulkhead/lab/rig"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// communication is an edge as policy sees it: over all addresses of both ends.
type communication struct {
	from, to string // workloads, or addresses
	port     scenario.Port
}

func (c communication) String() string { return fmt.Sprintf("%s → %s %s", c.from, c.to, c.port) }

func compareCommunications(a, b communication) int {
	return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(a.port.Proto, b.port.Proto), cmp.Compare(a.port.Port, b.port.Port))
}

// made is what was truly done of one communication.
type made struct {
	connections    int
	client, server string // processes
	atFrom, atTo   bool   // an agent stands there
}

// seen is what the agents reported of one communication.
type seen struct {
	egress, ingress  int
	clients, servers []string
	verdicts         []string
}

// observeTime is how long the agents watch before the first comparison.
const observeTime = 8 * time.Second

// flushTime is how long agents get to deliver what they gathered, once traffic rests.
const flushTime = 12 * time.Second

func (st *story) see(ctx context.Context, s *Step) error {
	st.tell(s, "Agents watch and change nothing. Every connection that the services make must turn up at both ends, with its "+
		"process. The lab's own ledgers know the truth.", "bulkhead flows", "bulkhead map")
	st.doing("watching")
	if err := rest(ctx, observeTime); err != nil {
		return err
	}
	if err := st.rig.Pause(ctx); err != nil {
		return err
	}
	truth, err := st.truth()
	if err != nil {
		return err
	}
	var (
		found    map[communication]*seen
		problems []string
	)
	st.doing("waiting for the agents' last reports")
	err = fabric.WaitUntil(ctx, "all reports", flushTime, 200*time.Millisecond, func() error {
		found, err = st.observed(ctx, time.Time{})
		if err != nil {
			return err
		}
		if problems = compareFlows(truth, found); len(problems) > 0 {
			return fmt.Errorf("%d differences", len(problems))
		}
		return nil
	})
	if err != nil && len(problems) == 0 {
		return err
	}
	if err == nil { // nothing may come in late that was never made
		if err := rest(ctx, rig.FlowWindow+500*time.Millisecond); err != nil {
			return err
		}
		if found, err = st.observed(ctx, time.Time{}); err != nil {
			return err
		}
		problems = compareFlows(truth, found)
	}
	if err := st.rig.Resume(ctx); err != nil {
		return err
	}
	st.report1(s, truth, found)
	s.Problems = append(s.Problems, problems...)
	return nil
}

func (st *story) report1(s *Step, truth map[communication]*made, found map[communication]*seen) {
	var connections, reported, ends, processes, right int
	for c, m := range truth {
		connections += m.connections
		f := found[c]
		if f == nil {
			f = &seen{}
		}
		reported += max(f.egress, f.ingress)
		for _, end := range []struct {
			there  bool
			names  []string
			expect string
		}{{m.atFrom, f.clients, m.client}, {m.atTo, f.servers, m.server}} {
			if !end.there {
				continue
			}
			ends++
			processes++
			if slices.Equal(end.names, []string{end.expect}) {
				right++
			}
		}
	}
	extra := 0
	for c := range found {
		if truth[c] == nil {
			extra++
		}
	}
	s.figure("connections_made", "connections made", connections, "", fmt.Sprintf("TCP and UDP, IPv4 and IPv6, %d of them older than the agents", st.existing))
	s.figure("connections_seen", "connections seen", reported, "", "")
	s.figure("communications", "communications", len(truth), "", fmt.Sprintf("workload → workload and port, at %d ends with an agent", ends))
	s.figure("communications_extra", "reported but never made", extra, "", "")
	s.figure("processes", "ends with the right process name", right, "", fmt.Sprintf("of %d", processes))
	s.Summary = fmt.Sprintf("%s of %s connections seen on %d communications, %d invented", thousands(reported), thousands(connections), len(truth), extra)
}

// truth counts what was made since the agents watch: short connections begin after that, and long-lived ones that
// stood before count too.
func (st *story) truth() (map[communication]*made, error) {
	if err := st.rig.Book.Update(); err != nil {
		return nil, err
	}
	out := map[communication]*made{}
	st.existing = 0
	older := map[string]bool{} // long-lived calls whose connection stood before the agents came
	for _, e := range st.rig.Book.Entries(func(e *traffic.Entry) bool { return e.Role == traffic.RoleCall && e.Opened }) {
		if e.Start < st.rig.Watched().UnixNano() {
			call := e.From + " " + e.Dst.String()
			if e.Outcome != traffic.OK || older[call] {
				continue // tried while the services were starting; one of the tries stood
			}
			older[call] = true
			st.existing++
		}
		c := communication{from: st.nameOf(e.From, e.Src.Addr().String()), port: portOf(&e)}
		to := scenario.ParseID(e.To)
		c.to = st.nameOf(e.To, e.Dst.Addr().String())
		m := out[c]
		if m == nil {
			server := ""
			if p, _ := st.s.Listener(to, c.port); p != nil {
				server = p.Process
			}
			m = &made{client: e.Process, server: server, atFrom: st.s.Host(scenario.ParseID(e.From).Host).Managed(), atTo: st.s.Host(to.Host).Managed()}
			out[c] = m
		}
		m.connections++
	}
	return out, nil
}

func portOf(e *traffic.Entry) scenario.Port {
	p := scenario.Port{Proto: model.ProtoTCP, Port: e.Dst.Port()}
	if e.Proto == "udp" {
		p.Proto = model.ProtoUDP
	}
	return p
}

// nameOf is how flows name a process of the scenario: by its workload, or by the address of a device that no
// document names.
func (st *story) nameOf(id, addr string) string {
	p := scenario.ParseID(id)
	if st.s.Host(p.Host).Managed() || st.declared(p) {
		return st.s.Workload(p)
	}
	return addr
}

// observed asks the controller for all flows since the given time, but those of the agents themselves.
func (st *story) observed(ctx context.Context, since time.Time) (map[communication]*seen, error) {
	q := &pb.ListFlowsRequest{}
	if !since.IsZero() {
		q.SinceMs = since.UnixMilli()
	}
	edges, err := st.rig.API.Flows(ctx, q)
	if err != nil {
		return nil, err
	}
	out := map[communication]*seen{}
	for _, e := range edges {
		if st.rig.OfAgents(e) {
			continue
		}
		c := communication{from: e.From, to: e.To, port: scenario.Port{Proto: model.Proto(e.Proto), Port: uint16(e.Port)}}
		f := out[c]
		if f == nil {
			f = &seen{}
			out[c] = f
		}
		if e.Egress != nil {
			f.egress += int(e.Egress.Connections)
			f.clients = addName(f.clients, e.FromProcess)
		}
		if e.Ingress != nil {
			f.ingress += int(e.Ingress.Connections)
			f.servers = addName(f.servers, e.ToProcess)
		}
		f.verdicts = addName(f.verdicts, verdictName(e.Verdict))
	}
	return out, nil
}

func addName(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	names = append(names, name)
	slices.Sort(names)
	return names
}

// compareFlows lists every difference between what was made and what was reported.
func compareFlows(truth map[communication]*made, found map[communication]*seen) []string {
	var problems []string
	all := map[communication]bool{}
	for c := range truth {
		all[c] = true
	}
	for c := range found {
		all[c] = true
	}
	keys := make([]communication, 0, len(all))
	for c := range all {
		keys = append(keys, c)
	}
	slices.SortFunc(keys, compareCommunications)
	for _, c := range keys {
		m, f := truth[c], found[c]
		switch {
		case f == nil:
			problems = append(problems, fmt.Sprintf("%s: %d connections made, none seen", c, m.connections))
			continue
		case m == nil:
			problems = append(problems, fmt.Sprintf("%s: reported %d at the source and %d at the destination by %s, never made", c, f.egress, f.ingress, strings.Join(append(f.clients, f.servers...), ", ")))
			continue
		}
		check := func(end string, there bool, got int, names []string, process string) {
			switch {
			case !there && got > 0:
				problems = append(problems, fmt.Sprintf("%s: reported by the %s, which has no agent", c, end))
			case !there:
			case got != m.connections:
				problems = append(problems, fmt.Sprintf("%s: %d connections made, %d seen at the %s", c, m.connections, got, end))
			case !slices.Equal(names, []string{process}):
				problems = append(problems, fmt.Sprintf("%s: the process at the %s is %s, reported as %q", c, end, process, names))
			}
		}
		check("source", m.atFrom, f.egress, f.clients, m.client)
		check("destination", m.atTo, f.ingress, f.servers, m.server)
	}
	return problems
}
