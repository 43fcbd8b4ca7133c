package rig

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
	"bulkhead/lab/worm"
)

// The hidden verbs by which the program runs itself.
const (
	TrafficVerb = "play"
	WormVerb    = "worm"
)

// udpPorts is the range of source ports of each process of a host for UDP; they lie below those that the kernel
// gives out by itself (32768 and up).
const (
	udpFirst = 20000
	udpEach  = 1500
)

// startTraffic starts the program that plays one process of the scenario.
func (r *Rig) startTraffic(p *scenario.Placed) error {
	spec, err := r.spec(p)
	if err != nil {
		return err
	}
	name := fileName(key(p))
	path := filepath.Join(r.dir(dirSpecs), name+".json")
	if err := traffic.WriteSpec(path, spec); err != nil {
		return err
	}
	program, err := r.link(p.Process, r.bin.self)
	if err != nil {
		return err
	}
	process, err := r.fabric.Start(fabric.Command{
		Host: p.ID.Host, Unit: p.ID.Unit, Path: program, Args: []string{"lab", TrafficVerb, path}, Dir: "/",
		Env: quietEnv(), Log: r.logPath(name), Stay: r.cfg.Stay,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.processes[key(p)] = process
	return nil
}

// Play runs one of the program's own verbs beside the processes of the scenario, on a host and there in a unit ("" for the
// host's own cgroup). The process is called name. It ends with the lab.
func (r *Rig) Play(host, unit, name string, args ...string) (*fabric.Process, error) {
	program, err := r.link(name, r.bin.self)
	if err != nil {
		return nil, err
	}
	return r.fabric.Start(fabric.Command{Host: host, Unit: unit, Path: program, Args: args, Dir: "/", Env: quietEnv(),
		Log: r.logPath(name), Stay: r.cfg.Stay})
}

// quietEnv keeps two dozen runtimes from spreading over the machine's cores more than they need.
func quietEnv() []string { return append(os.Environ(), "GOMAXPROCS=2", "GOGC=50") }

func (r *Rig) spec(p *scenario.Placed) (*traffic.Spec, error) {
	wormLink, err := r.link("worm", r.bin.self)
	if err != nil {
		return nil, err
	}
	wormSpec := filepath.Join(r.dir(dirSpecs), "worm-"+fileName(key(p))+".json")
	if err := traffic.WriteSpec(wormSpec, r.wormSpec(p)); err != nil {
		return nil, err
	}
	s := &traffic.Spec{
		ID: p.ID.String(), Process: p.Process, Lab: r.labPrefixes(), Addrs: p.Host.Addresses,
		UDPPorts: [2]uint16{uint16(udpFirst + p.Index*udpEach), uint16(udpFirst + (p.Index+1)*udpEach - 1)},
		Ledger:   filepath.Join(r.dir(dirLedgers), fileName(key(p))+".jsonl"),
		Control:  r.controlPath(key(p)),
		Worm:     traffic.Worm{Token: r.token, Program: wormLink, Args: []string{"lab", WormVerb, wormSpec}, Markers: r.dir(dirMarkers)},
	}
	for _, l := range p.Listen {
		s.Listen = append(s.Listen, traffic.Listen{Port: l.Port, Speak: r.speak(p.ID, l.Port), WayIn: l.WayIn})
	}
	for i := range p.Calls {
		c := &p.Calls[i]
		to := scenario.ParseID(c.To)
		addr, ok := r.cfg.Scenario.Host(to.Host).Addr(c.Family)
		if !ok {
			return nil, fmt.Errorf("%s has no address of family %s", to.Host, c.Family)
		}
		s.Calls = append(s.Calls, traffic.Call{To: c.To, Port: c.Port, Target: netip.AddrPortFrom(addr, c.Port.Port),
			Every: time.Duration(c.Every), Kind: c.Kind, Speak: r.speak(to, c.Port), Bytes: c.Bytes})
	}
	return s, nil
}

// speak returns the protocol of a port as it is in this lab: that of PostgreSQL only where the real one runs.
func (r *Rig) speak(id scenario.ID, port scenario.Port) scenario.Speak {
	_, l := r.cfg.Scenario.Listener(id, port)
	if l == nil || l.Speak == scenario.SpeakPostgres && !r.real {
		return scenario.SpeakEcho
	}
	return l.Speak
}

func (r *Rig) labPrefixes() []netip.Prefix {
	n := r.cfg.Scenario.Network
	return []netip.Prefix{n.V4.Masked(), n.V6.Masked()}
}

// What bounds the worm in one workload.
const (
	wormAttempts = 2000
	wormTime     = 15 * time.Second
	wormPatience = 400 * time.Millisecond
)

func (r *Rig) wormSpec(p *scenario.Placed) *worm.Spec {
	s := &worm.Spec{
		Workload: p.ID.String(), Own: p.Host.Addresses, Prefixes: r.labPrefixes(), Ports: r.cfg.Scenario.Ports(),
		Speaks: map[string]scenario.Speak{}, Token: r.token, Markers: r.dir(dirMarkers), Ledgers: r.dir(dirLedgers),
		Limit: wormAttempts, Time: wormTime, Patience: wormPatience, Postgres: map[netip.Addr]string{},
	}
	for _, q := range r.cfg.Scenario.Placed() {
		for _, l := range q.Listen {
			if q.ID == p.ID {
				s.OwnPorts = append(s.OwnPorts, l.Port)
			}
			if speak := r.speak(q.ID, l.Port); speak != scenario.SpeakEcho {
				s.Speaks[l.Port.String()] = speak
			}
			if r.isPostgres(&q) {
				for _, a := range q.Host.Addresses {
					s.Postgres[a] = q.ID.String()
				}
			}
		}
	}
	return s
}

// each gives an order to every process at once.
func (r *Rig) each(ctx context.Context, o *traffic.Order) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, k := range r.keys() {
		group.Go(func() error {
			if _, err := traffic.Ask(ctx, r.controlPath(k), o); err != nil {
				return fmt.Errorf("%s %s: %w", o.Verb, k, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// Resume lets traffic run.
func (r *Rig) Resume(ctx context.Context) error {
	return r.each(ctx, &traffic.Order{Verb: traffic.Resume})
}

// Pause stops traffic. When it returns no request is under way and every ledger is complete; open connections stay.
func (r *Rig) Pause(ctx context.Context) error {
	return r.each(ctx, &traffic.Order{Verb: traffic.Pause})
}

// keyOf returns a process of the workload that takes orders.
func (r *Rig) keyOf(id string) (string, error) {
	placed := r.cfg.Scenario.Placed()
	for i := range placed {
		if placed[i].ID.String() == id && !r.isPostgres(&placed[i]) {
			return key(&placed[i]), nil
		}
	}
	return "", fmt.Errorf("no process of workload %q takes orders", id)
}

// Order gives an order to one workload.
func (r *Rig) Order(ctx context.Context, id string, o *traffic.Order) (*traffic.Answer, error) {
	k, err := r.keyOf(id)
	if err != nil {
		return nil, err
	}
	return traffic.Ask(ctx, r.controlPath(k), o)
}

// Probe makes one request from workload from and says what became of it.
func (r *Rig) Probe(ctx context.Context, p *scenario.Probe, timeout time.Duration) (*traffic.Entry, error) {
	to := scenario.ParseID(p.To)
	addr, ok := r.cfg.Scenario.Host(to.Host).Addr(p.Family)
	if !ok {
		return nil, fmt.Errorf("%s has no address of family %s", to.Host, p.Family)
	}
	a, err := r.Order(ctx, p.From, &traffic.Order{Verb: traffic.Try, To: p.To, Port: p.Port,
		Target: netip.AddrPortFrom(addr, p.Port.Port), Speak: r.speak(to, p.Port), Timeout: timeout})
	if err != nil {
		return nil, err
	}
	return a.Entry, nil
}

// Infect starts the worm in the workload.
func (r *Rig) Infect(ctx context.Context, id string) error {
	_, err := r.Order(ctx, id, &traffic.Order{Verb: traffic.Infect})
	return err
}

// WormProgress returns how many workloads the worm has taken, and in how many it has tried everything.
func (r *Rig) WormProgress() (taken, done int, err error) { return traffic.Marked(r.dir(dirMarkers)) }

// Heal restarts every process of the workloads and forgets that the worm was there. Traffic should be paused; it
// stays paused in what was restarted until Resume.
func (r *Rig) Heal(ctx context.Context, ids map[string]bool) error {
	placed := r.cfg.Scenario.Placed()
	for i := range placed {
		p := &placed[i]
		if !ids[p.ID.String()] || r.isPostgres(p) {
			continue
		}
		r.mu.Lock()
		process := r.processes[key(p)]
		r.mu.Unlock()
		if process == nil {
			return fmt.Errorf("%s was started by another run and cannot be restarted", key(p))
		}
		// The worm is its child and ends with it; of a unit, everything in the cgroup goes.
		if err := process.Kill(); err != nil {
			return err
		}
		if p.ID.Unit != "" {
			if err := r.fabric.KillUnit(ctx, p.ID.Host, p.ID.Unit); err != nil {
				return err
			}
		}
		if err := r.startTraffic(p); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(r.dir(dirMarkers)); err != nil {
		return err
	}
	return os.MkdirAll(r.dir(dirMarkers), 0o755)
}

// Settle waits until restarted processes answer and every long-lived connection stands again. Traffic must run.
func (r *Rig) Settle(ctx context.Context) error { return r.settle(ctx) }

// Ended returns the processes of the lab that should run and do not, with how they ended.
func (r *Rig) Ended() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for k, p := range r.processes {
		select {
		case <-p.Done():
			out = append(out, fmt.Sprintf("%s: %v (log: %s)", k, p.Err(), p.Command.Log))
		default:
		}
	}
	return out
}
