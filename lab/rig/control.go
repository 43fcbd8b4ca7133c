package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
)

// FlowWindow is how long agents gather flows before they send them.
const FlowWindow = time.Second

func (r *Rig) controllerDir() string { return r.Layout.HostDir(controllerHost) }
func (r *Rig) socket() string        { return filepath.Join(r.controllerDir(), "controller.sock") }

// SocketURL is where the command line reaches the controller.
func (r *Rig) SocketURL() string { return "unix://" + r.socket() }

func writeYAML(path string, v any) error {
	data, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// upTime is how long controller and agents get to start.
const upTime = 30 * time.Second

// StartController starts the controller and waits until it answers.
func (r *Rig) StartController(ctx context.Context) error {
	s := r.cfg.Scenario
	config := filepath.Join(r.controllerDir(), "controller.yaml")
	var advertise []string
	for _, a := range s.Controller.Addresses {
		advertise = append(advertise, fmt.Sprintf("%s:%d", bracketed(a.String()), s.Controller.Port))
	}
	err := writeYAML(config, map[string]any{
		"data": filepath.Join(r.controllerDir(), "data"), "listen": fmt.Sprintf("[::]:%d", s.Controller.Port),
		"advertise": advertise, "socket": r.socket(), "metrics": "unix:" + filepath.Join(r.controllerDir(), "metrics.sock"),
		"logLevel": "info",
	})
	if err != nil {
		return err
	}
	process, err := r.fabric.Start(fabric.Command{
		Host: controllerHost, Unit: "bulkhead-controller.service", Path: r.bin.controller, Args: []string{"--config", config},
		Dir: "/", Log: r.logPath("bulkhead-controller"), Stay: r.cfg.Stay,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.controller = process
	r.mu.Unlock()
	return fabric.WaitUntil(ctx, "an answer of the controller", upTime, 30*time.Millisecond, func() error {
		if err := alive(process); err != nil {
			return err
		}
		_, err := r.API.GetStatus(ctx, &pb.GetStatusRequest{})
		return err
	})
}

func bracketed(addr string) string {
	if bytes.ContainsRune([]byte(addr), ':') {
		return "[" + addr + "]"
	}
	return addr
}

// alive says how the process ended, if it did.
func alive(p *fabric.Process) error {
	select {
	case <-p.Done():
		return fmt.Errorf("%s ended: %v (log: %s)", filepath.Base(p.Command.Path), p.Err(), p.Command.Log)
	default:
		return nil
	}
}

// Enrol makes a join token for every host and starts its agent for the first time.
func (r *Rig) Enrol(ctx context.Context) error {
	s := r.cfg.Scenario
	for i := range s.Hosts {
		h := &s.Hosts[i]
		if !h.Managed() {
			continue
		}
		token, err := r.API.CreateToken(ctx, &pb.CreateTokenRequest{Host: h.Name, Labels: h.Labels, Note: "lab"})
		if err != nil {
			return fmt.Errorf("join token for %s: %w", h.Name, err)
		}
		if err := r.configureAgent(h, token.Token); err != nil {
			return err
		}
		if err := r.StartAgent(h.Name); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rig) agentConfig(host string) string {
	return filepath.Join(r.Layout.HostDir(host), "agent.yaml")
}

// AgentSocket is where the agent of the host tells how it is.
func (r *Rig) AgentSocket(host string) string {
	return filepath.Join(r.Layout.HostDir(host), "agent.sock")
}

func (r *Rig) configureAgent(h *scenario.Host, token string) error {
	dir := r.Layout.HostDir(h.Name)
	tokenFile := filepath.Join(dir, "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		return err
	}
	s := r.cfg.Scenario
	return writeYAML(r.agentConfig(h.Name), map[string]any{
		"controller": fmt.Sprintf("%s:%d", bracketed(s.Controller.Addresses[0].String()), s.Controller.Port),
		"tokenFile":  tokenFile, "host": h.Name, "data": filepath.Join(dir, "data"),
		"cgroupRoot": r.Layout.HostCgroup(h.Name), "bpffs": filepath.Join(r.Layout.BPF(h.Name), "bulkhead"),
		"units": []string{"*.service"}, "flowWindow": FlowWindow.String(), "socket": r.AgentSocket(h.Name), "logLevel": "info",
		"interfaces": "all",
	})
}

// StartAgent starts the agent of a host that has been enrolled or configured before.
func (r *Rig) StartAgent(host string) error {
	process, err := r.fabric.Start(fabric.Command{
		Host: host, Unit: scenario.AgentUnit, Path: r.bin.agent, Args: []string{"--config", r.agentConfig(host)},
		Dir: "/", Env: quietEnv(), Log: r.logPath("agent-" + host), Stay: r.cfg.Stay,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.agents[host] = process
	return nil
}

// Agents returns the hosts that have an agent.
func (r *Rig) Agents() []string {
	var out []string
	for i := range r.cfg.Scenario.Hosts {
		if h := &r.cfg.Scenario.Hosts[i]; h.Managed() {
			out = append(out, h.Name)
		}
	}
	return out
}

// KillController kills the controller with SIGKILL.
func (r *Rig) KillController() error {
	r.mu.Lock()
	p := r.controller
	r.mu.Unlock()
	if p == nil {
		return fmt.Errorf("the controller was not started by this run")
	}
	return p.Kill()
}

// KillAgent kills the agent of the host with SIGKILL.
func (r *Rig) KillAgent(host string) error {
	r.mu.Lock()
	p := r.agents[host]
	r.mu.Unlock()
	if p == nil {
		return fmt.Errorf("the agent of %s was not started by this run", host)
	}
	return p.Kill()
}

// Agree waits until every agent is connected and has acknowledged, with the hash of what it applied, exactly what the
// controller would give it now.
func (r *Rig) Agree(ctx context.Context, limit time.Duration) error {
	return fabric.WaitUntil(ctx, "agreement of all agents with the controller", limit, 25*time.Millisecond, func() error {
		if err := r.endedDaemons(); err != nil {
			return err
		}
		list, err := r.API.ListAgents(ctx, &pb.ListAgentsRequest{})
		if err != nil {
			return err
		}
		known := map[string]*pb.Agent{}
		for _, a := range list.Agents {
			known[a.Host] = a
		}
		for _, host := range r.Agents() {
			a := known[host]
			switch {
			case a == nil || !a.Connected:
				return fmt.Errorf("the agent of %s is not connected (log: %s)", host, r.logPath("agent-"+host))
			case a.Refused != "":
				return fmt.Errorf("the agent of %s refuses: %s", host, a.Refused)
			case !a.Current:
				return fmt.Errorf("the agent of %s has acknowledged revision %d, hash %.12s", host, a.Revision, a.Hash)
			}
			p, err := r.API.GetHostPolicy(ctx, &pb.GetHostPolicyRequest{Host: host})
			if err != nil {
				return err
			}
			if p.Hash != a.Hash {
				return fmt.Errorf("the agent of %s holds %.12s, the controller gives %.12s", host, a.Hash, p.Hash)
			}
		}
		return nil
	})
}

func (r *Rig) endedDaemons() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.agents {
		if err := alive(p); err != nil {
			return err
		}
	}
	if r.controller == nil {
		return nil
	}
	return alive(r.controller)
}

// Known waits until the controller knows every unit of the scenario: it may take the agents a moment to find them.
func (r *Rig) Known(ctx context.Context, limit time.Duration) error {
	return fabric.WaitUntil(ctx, "news of every unit", limit, 50*time.Millisecond, func() error {
		w, err := r.API.GetWorld(ctx, &pb.GetWorldRequest{})
		if err != nil {
			return err
		}
		known := map[scenario.ID]bool{}
		listening := map[scenario.ID]int{}
		for _, i := range w.Instances {
			id := scenario.ID{Host: i.Host, Unit: i.Unit}
			known[id] = i.Unit == "" || len(i.Addresses) > 0
			listening[id] += len(i.Listening)
		}
		for _, p := range r.cfg.Scenario.Placed() {
			if !p.Host.Managed() {
				continue
			}
			if !known[p.ID] {
				return fmt.Errorf("%s has not been found", p.ID)
			}
			if len(p.Listen) > 0 && listening[p.ID] == 0 {
				return fmt.Errorf("%s has not been seen listening", p.ID)
			}
		}
		return nil
	})
}
