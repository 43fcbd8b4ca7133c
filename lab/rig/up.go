package rig

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/policy"
	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// Up builds the scenario, starts controller and agents, applies the documents of the place and lets traffic run.
// Long-lived connections are older than the agents; no short one is.
func Up(ctx context.Context, cfg Config) (_ *Rig, err error) {
	if cfg.Say == nil {
		cfg.Say = func(string, ...any) {}
	}
	cfg.Say("building %s", cfg.Scenario.Summary())
	r, err := Build(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	cfg.Say("starting the controller and %d agents", len(r.Agents()))
	if err := r.StartController(ctx); err != nil {
		return nil, err
	}
	if _, err := r.Apply(ctx, cfg.Scenario.Base, "the place as it is"); err != nil {
		return nil, err
	}
	if err := r.Enrol(ctx); err != nil {
		return nil, err
	}
	if err := r.Known(ctx, upTime); err != nil {
		return nil, err
	}
	if err := r.Agree(ctx, upTime); err != nil {
		return nil, err
	}
	r.watched = time.Now()
	return r, r.Resume(ctx)
}

// Apply applies documents on top of what there is.
func (r *Rig) Apply(ctx context.Context, files []policy.File, note string) (*pb.ApplyResponse, error) {
	resp, err := r.API.Apply(ctx, &pb.ApplyRequest{Files: Files(files), Note: note})
	if err != nil {
		return nil, fmt.Errorf("apply (%s): %w", note, err)
	}
	return resp, nil
}

// Files converts documents for the API.
func Files(files []policy.File) []*pb.File {
	out := make([]*pb.File, len(files))
	for i, f := range files {
		out[i] = &pb.File{Name: f.Name, Content: string(f.Data)}
	}
	return out
}

// HowToExplore says what one can do with a lab that runs.
func (r *Rig) HowToExplore() string {
	s := r.cfg.Scenario
	from := scenario.ParseID(s.Story.Breach.From)
	probe := s.Story.Fail.Probes[0]
	addr, _ := s.Host(scenario.ParseID(probe.To).Host).Addr(scenario.V4)
	return fmt.Sprintf(`
The %[1]s lab is running. To look around:

  export PATH=%[10]s:$PATH BULKHEAD_CONTROLLER=%[2]s
  bulkhead status; bulkhead agents; bulkhead get workloads
  bulkhead flows; bulkhead map
  bulkhead explain %[3]s %[4]s %[5]s
  ip netns exec %[6]s ss -tnp      # on one of its hosts
  ip netns exec %[6]s bash -c '</dev/tcp/%[7]s/%[8]d'    # call as that host, not as one of its services
  bulkhead flows --from %[11]s --verdict deny,would-deny   # there it is
  bulkhead lab attack %[1]s    # let the worm loose
  bulkhead lab down %[1]s      # end it and remove everything

Files: %[9]s (logs in log/, every request in ledgers/)
`, s.Name, r.SocketURL(), s.Workload(scenario.ParseID(probe.From)), s.Workload(scenario.ParseID(probe.To)), probe.Port,
		r.Layout.NetnsName(from.Host), addr, probe.Port.Port, r.Layout.Dir, filepath.Dir(r.bin.self), from.Host)
}

// Attack is how far the worm came.
type Attack struct {
	From     string
	Taken    []string // workloads, in the order in which they fell; the first is where it began
	Attempts int
	Stopped  int // attempts that did not arrive
	Took     time.Duration
	Entries  []traffic.Entry // every attempt
}

// Tell says it in a few lines, by the names of workloads.
func (a *Attack) Tell(s *scenario.Scenario) string {
	var b strings.Builder
	many := "s"
	if len(a.Taken) == 1 {
		many = ""
	}
	fmt.Fprintf(&b, "It took %d workload%s in %s with %d attempts; %d attempts did not arrive.\n", len(a.Taken), many, a.Took.Round(100*time.Millisecond), a.Attempts, a.Stopped)
	for i, id := range a.Taken {
		w := s.Workload(scenario.ParseID(id))
		if i == 0 {
			w += " (where it began)"
		}
		fmt.Fprintf(&b, "  %s\n", w)
	}
	return b.String()
}

// attackTime is how long the worm may take altogether.
const attackTime = 60 * time.Second

// Attack starts the worm in the workload and waits until it has tried everything everywhere it came.
func (r *Rig) Attack(ctx context.Context, from string) (*Attack, error) {
	if err := r.Book.Update(); err != nil {
		return nil, err
	}
	start := time.Now()
	if err := r.Infect(ctx, from); err != nil {
		return nil, err
	}
	err := fabric.WaitUntil(ctx, "the end of the worm", attackTime, 50*time.Millisecond, func() error {
		taken, done, err := r.WormProgress()
		if err == nil && (taken == 0 || done < taken) {
			err = fmt.Errorf("it has %d workloads and is done in %d", taken, done)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := r.Book.Update(); err != nil {
		return nil, err
	}
	a := &Attack{From: from, Took: time.Since(start)}
	since := start.UnixNano()
	for _, e := range r.Book.Entries(func(e *traffic.Entry) bool { return e.Role == traffic.RoleTaken && e.Start >= since }) {
		a.Taken = append(a.Taken, e.From)
	}
	a.Entries = r.Book.Entries(func(e *traffic.Entry) bool { return e.Role == traffic.RoleScan && e.Start >= since })
	a.Attempts = len(a.Entries)
	for i := range a.Entries {
		if Blocked(a.Entries[i].Outcome) {
			a.Stopped++
		}
	}
	return a, nil
}

// Blocked reports whether the outcome is what a denied connection looks like from its source.
func Blocked(o traffic.Outcome) bool { return o == traffic.Denied || o == traffic.Timeout }

// Status says how the parts of a lab are.
func (r *Rig) Status(ctx context.Context) (string, error) {
	var b strings.Builder
	s := r.cfg.Scenario
	up := 0
	var down []string
	for _, k := range r.keys() {
		if _, err := traffic.Ask(ctx, r.controlPath(k), &traffic.Order{Verb: traffic.Stats}); err != nil {
			down = append(down, k)
		} else {
			up++
		}
	}
	slices.Sort(down)
	fmt.Fprintf(&b, "%s: %d processes answer", s.Name, up)
	if len(down) > 0 {
		fmt.Fprintf(&b, ", %d do not: %s", len(down), strings.Join(down, ", "))
	}
	b.WriteString("\n")
	taken, _, err := r.WormProgress()
	if err != nil {
		return b.String(), err
	}
	if taken > 0 {
		fmt.Fprintf(&b, "the worm is in %d workloads\n", taken)
	}
	st, err := r.API.GetStatus(ctx, &pb.GetStatusRequest{})
	if err != nil {
		return b.String(), fmt.Errorf("the controller at %s does not answer: %w", r.SocketURL(), err)
	}
	fmt.Fprintf(&b, "controller: revision %d, %d of %d agents connected, %d agree, %d workloads\n", st.Revision, st.AgentsConnected, st.AgentsKnown, st.AgentsCurrent, st.Workloads)
	fmt.Fprintf(&b, "export BULKHEAD_CONTROLLER=%s\n", r.SocketURL())
	return b.String(), nil
}
