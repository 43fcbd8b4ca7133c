package story

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

const (
	probeEvery   = 150 * time.Millisecond
	probeTimeout = 350 * time.Millisecond
	deadTime     = 1500 * time.Millisecond // how long each state of being dead lasts
)

func (st *story) fail(ctx context.Context, s *Step) error {
	st.tell(s, "The controller is killed with SIGKILL, then every agent. Meanwhile the traffic runs, and connections that policy "+
		"denies are tried again and again. Nothing may open and nothing may close; then they come back.",
		"kill -9 …", "bulkhead agents")
	if err := st.rig.Settle(ctx); err != nil {
		return err
	}
	before, err := st.hashes(ctx)
	if err != nil {
		return err
	}
	start := time.Now().UnixNano()
	prober := st.startProbes(ctx)
	back, err := st.killAndRestart(ctx)
	err = errors.Join(err, prober.finish())
	if err != nil {
		return err
	}
	after, err := st.hashes(ctx)
	if err != nil {
		return err
	}
	for host, hash := range before {
		if after[host] != hash {
			s.problem("the policy of %s has changed from %.12s to %.12s", host, hash, after[host])
		}
	}
	calls, err := st.noneFailed(s, start)
	if err != nil {
		return err
	}
	failures := len(s.Problems)
	probes, through, err := st.probed(start)
	if err != nil {
		return err
	}
	for i := range through {
		s.problem("%s went through: %s", describe(&through[i]), through[i].Outcome)
	}
	if probes == 0 {
		s.problem("no denied connection was tried")
	}
	s.figure("probes", "denied connections tried", probes, "", fmt.Sprintf("%d kinds, from %s on", len(st.s.Story.Fail.Probes), "the moment of the kill"))
	s.figure("probes_through", "of them went through", len(through), "", "")
	s.figure("agree_ms", "restart → all agree again", ms(back), "ms", fmt.Sprintf("%d agents, by the hash of what each holds", len(after)))
	if err := st.agree(s, start); err != nil {
		return err
	}
	s.Summary = fmt.Sprintf("controller and %d agents killed: %d of %s denied connections went through, %d of %s legitimate requests failed; agreed again after %.1f s",
		len(after), len(through), thousands(probes), failures, thousands(calls), back.Seconds())
	return nil
}

// killAndRestart kills the controller, then the agents, starts the agents without it, then starts it again. It
// returns how long it took from then on until all agreed.
func (st *story) killAndRestart(ctx context.Context) (time.Duration, error) {
	st.doing("the controller is dead")
	if err := st.rig.KillController(); err != nil {
		return 0, err
	}
	if err := rest(ctx, deadTime); err != nil {
		return 0, err
	}
	st.doing("controller and agents are dead")
	for _, host := range st.rig.Agents() {
		if err := st.rig.KillAgent(host); err != nil {
			return 0, err
		}
	}
	if err := rest(ctx, deadTime); err != nil {
		return 0, err
	}
	st.doing("agents are back, the controller is not")
	for _, host := range st.rig.Agents() {
		if err := st.rig.StartAgent(host); err != nil {
			return 0, err
		}
	}
	if err := rest(ctx, deadTime); err != nil {
		return 0, err
	}
	st.doing("the controller comes back")
	started := time.Now()
	if err := st.rig.StartController(ctx); err != nil {
		return 0, err
	}
	if err := st.rig.Agree(ctx, agreeTime); err != nil {
		return 0, err
	}
	return time.Since(started), nil
}

// hashes returns the policy that each agent has acknowledged.
func (st *story) hashes(ctx context.Context) (map[string]string, error) {
	list, err := st.rig.API.ListAgents(ctx, &pb.ListAgentsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	out := map[string]string{}
	for _, a := range list.Agents {
		out[a.Host] = a.Hash
	}
	return out, nil
}

// prober tries the denied connections of the scenario again and again.
type prober struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup
	mu     sync.Mutex
	err    error
}

func (st *story) startProbes(ctx context.Context) *prober {
	ctx, cancel := context.WithCancel(ctx)
	p := &prober{cancel: cancel}
	for i := range st.s.Story.Fail.Probes {
		probe := &st.s.Story.Fail.Probes[i]
		p.wait.Go(func() { p.run(ctx, st, probe) })
	}
	return p
}

func (p *prober) run(ctx context.Context, st *story, probe *scenario.Probe) {
	for ctx.Err() == nil {
		// An order that was given is waited for, so that the ledger is complete.
		_, err := st.rig.Probe(context.WithoutCancel(ctx), probe, probeTimeout)
		if err != nil {
			p.mu.Lock()
			p.err = errors.Join(p.err, err)
			p.mu.Unlock()
			return
		}
		if rest(ctx, probeEvery) != nil {
			return
		}
	}
}

func (p *prober) finish() error {
	p.cancel()
	p.wait.Wait()
	return p.err
}

// probed returns how many probes there were since the given time, and those that were not stopped.
func (st *story) probed(since int64) (n int, through []traffic.Entry, err error) {
	if err := st.rig.Book.Update(); err != nil {
		return 0, nil, err
	}
	for _, e := range st.rig.Book.Entries(func(e *traffic.Entry) bool { return e.Role == traffic.RoleProbe && e.Start >= since }) {
		n++
		if e.Outcome == traffic.OK || e.Outcome == traffic.Refused {
			through = append(through, e)
		}
	}
	return n, through, nil
}
