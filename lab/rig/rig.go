// Package rig runs a scenario: it builds the fabric, starts the programs of every host, one controller and an agent
// on each host that has one, and offers what a story needs: the API, the ledgers, orders to single processes.
//
// Controller and agents are the real binaries with their real configuration; the rig speaks to them only through their
// API. What it keeps is on disk below the lab's directory, so that a lab that was left running can be attached to.
package rig

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// Config says how to run a scenario.
type Config struct {
	Scenario *scenario.Scenario
	// Bin is the directory of the programs bulkhead-controller and bulkhead-agent; "" means beside this program, and
	// then the search path.
	Bin string
	// Stay leaves the lab running when this process ends.
	Stay bool
	// Say is told what is being done, in a few words; nil for nobody.
	Say func(format string, args ...any)
}

// Rig is a running lab.
type Rig struct {
	cfg    Config
	Layout fabric.Layout
	Book   *traffic.Book // every ledger of the lab
	API    *API

	fabric *fabric.Fabric
	bin    binaries
	token  string // of this lab's way in
	real   bool   // the database is the real one

	watched time.Time // every agent agrees with the controller from then on; no short call was made before

	mu         sync.Mutex
	processes  map[string]*fabric.Process // of the traffic program, by key; and the database
	controller *fabric.Process
	agents     map[string]*fabric.Process
}

type binaries struct{ self, controller, agent string }

// directories below the lab's own.
const (
	dirBin     = "bin"
	dirSpecs   = "specs"
	dirLedgers = "ledgers"
	dirControl = "control"
	dirLogs    = "log"
	dirMarkers = "taken"
)

const stateFile = "lab.json"

// state is what another process needs to attach.
type state struct {
	Scenario string
	Token    string
	Real     bool
	Since    time.Time
}

// ErrNotUp says that the lab is not there.
var ErrNotUp = errors.New("the lab is not up")

// Build makes the fabric of the scenario and starts everything on it but controller and agents. When it returns every
// service listens and every long-lived connection stands; short calls wait for Resume.
func Build(ctx context.Context, cfg Config) (_ *Rig, err error) {
	if cfg.Say == nil {
		cfg.Say = func(string, ...any) {}
	}
	r := &Rig{cfg: cfg, processes: map[string]*fabric.Process{}, agents: map[string]*fabric.Process{}}
	if r.bin, err = findBinaries(cfg.Bin); err != nil {
		return nil, err
	}
	if r.token, err = newToken(); err != nil {
		return nil, err
	}
	r.fabric, err = fabric.New(ctx, cfg.Scenario.Name, func(l fabric.Leftovers) {
		cfg.Say("removed what an earlier run had left: %s", l)
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	r.Layout = r.fabric.Layout
	r.Book = traffic.NewBook(r.dir(dirLedgers))
	r.API = newAPI(r.socket())
	if err := r.hosts(); err != nil {
		return nil, err
	}
	r.real = r.wantsPostgres()
	if err := r.workloads(ctx); err != nil {
		return nil, err
	}
	return r, r.writeState()
}

// Attach connects to a lab that was left running. It can ask the controller and the processes, but start nothing.
func Attach(s *scenario.Scenario) (*Rig, error) {
	layout, err := fabric.LayoutOf(s.Name)
	if err != nil {
		return nil, err
	}
	r := &Rig{cfg: Config{Scenario: s, Say: func(string, ...any) {}}, Layout: layout}
	data, err := os.ReadFile(filepath.Join(layout.Dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: start it with bulkhead lab up %s", ErrNotUp, s.Name)
	}
	if err != nil {
		return nil, err
	}
	var st state
	if err := json.Unmarshal(data, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", stateFile, err)
	}
	r.token, r.real = st.Token, st.Real
	r.Book = traffic.NewBook(r.dir(dirLedgers))
	r.API = newAPI(r.socket())
	return r, nil
}

// Watched is when every agent had come into agreement for the first time. Short calls begin later.
func (r *Rig) Watched() time.Time { return r.watched }

// OfAgents reports whether the edge is traffic of the agents with the controller.
func (r *Rig) OfAgents(e *pb.Edge) bool {
	if e.Port != uint32(r.cfg.Scenario.Controller.Port) {
		return false
	}
	for _, a := range r.cfg.Scenario.Controller.Addresses {
		if e.ToAddr == a.String() {
			return true
		}
	}
	return false
}

// Scenario returns what runs.
func (r *Rig) Scenario() *scenario.Scenario { return r.cfg.Scenario }

// Close ends the lab and removes everything of it.
func (r *Rig) Close() error {
	if r.API != nil {
		r.API.close()
	}
	return r.fabric.Close()
}

// Leave lets go of a lab that stays.
func (r *Rig) Leave() error {
	r.API.close()
	return r.fabric.Leave()
}

func (r *Rig) dir(name string) string { return filepath.Join(r.Layout.Dir, name) }

func (r *Rig) writeState() error {
	data, err := json.Marshal(state{Scenario: r.cfg.Scenario.Name, Token: r.token, Real: r.real, Since: time.Now()})
	if err != nil {
		return err
	}
	return os.WriteFile(r.dir(stateFile), data, 0o600)
}

func newToken() (string, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

func findBinaries(dir string) (binaries, error) {
	self, err := os.Executable()
	if err != nil {
		return binaries{}, err
	}
	find := func(name string) (string, error) {
		places := []string{dir}
		if dir == "" {
			places = []string{filepath.Dir(self)}
		}
		for _, d := range places {
			if path := filepath.Join(d, name); isProgram(path) {
				return filepath.Abs(path)
			}
		}
		if dir == "" {
			if path, err := exec.LookPath(name); err == nil {
				return filepath.Abs(path)
			}
		}
		return "", fmt.Errorf("there is no %s in %s: build it with make build, or say where it is with --bin DIR", name, places[0])
	}
	b := binaries{self: self}
	var errs [2]error
	b.controller, errs[0] = find("bulkhead-controller")
	b.agent, errs[1] = find("bulkhead-agent")
	return b, errors.Join(errs[:]...)
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

const controllerHost = "controller"

// hosts makes the machines.
func (r *Rig) hosts() error {
	for _, d := range []string{dirBin, dirSpecs, dirLedgers, dirControl, dirLogs, dirMarkers} {
		if err := os.MkdirAll(r.dir(d), 0o755); err != nil {
			return err
		}
	}
	s := r.cfg.Scenario
	if err := r.fabric.AddHost(controllerHost, r.prefixes(s.Controller.Addresses), false); err != nil {
		return err
	}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		if err := r.fabric.AddHost(h.Name, r.prefixes(h.Addresses), h.Managed()); err != nil {
			return err
		}
	}
	return nil
}

// prefixes gives addresses the length of the lab's network.
func (r *Rig) prefixes(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		n := r.cfg.Scenario.Network.V4
		if a.Is6() {
			n = r.cfg.Scenario.Network.V6
		}
		out[i] = netip.PrefixFrom(a, n.Bits())
	}
	return out
}

// key names a process in the lab: workloads are units, but a host may have several processes of its own.
func key(p *scenario.Placed) string {
	if p.ID.Unit != "" {
		return p.ID.String()
	}
	return p.ID.Host + "/" + p.Process
}

func fileName(key string) string { return strings.ReplaceAll(key, "/", "_") }

func (r *Rig) controlPath(key string) string { return filepath.Join(r.dir(dirControl), fileName(key)) }

// workloads starts every program and waits until all is as the scenario says.
func (r *Rig) workloads(ctx context.Context) error {
	placed := r.cfg.Scenario.Placed()
	var group errgroup.Group
	group.SetLimit(4)
	for i := range placed {
		p := &placed[i]
		group.Go(func() error {
			if r.isPostgres(p) {
				return r.startPostgres(ctx, p)
			}
			return r.startTraffic(p)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return r.settle(ctx)
}

// settleTime is how long programs get to listen and to open their long-lived connections.
const settleTime = 20 * time.Second

// settle waits until every process answers and its long-lived connections stand.
func (r *Rig) settle(ctx context.Context) error {
	for _, key := range r.keys() {
		err := fabric.WaitUntil(ctx, "the start of "+key, settleTime, 20*time.Millisecond, func() error {
			a, err := traffic.Ask(ctx, r.controlPath(key), &traffic.Order{Verb: traffic.Stats})
			if err != nil {
				return err
			}
			if a.Alive < a.Long {
				return fmt.Errorf("%d of its %d long-lived connections stand", a.Alive, a.Long)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%w (log: %s)", err, r.logPath(fileName(key)))
		}
	}
	return nil
}

// keys lists the processes that have a control socket.
func (r *Rig) keys() []string {
	var out []string
	placed := r.cfg.Scenario.Placed()
	for i := range placed {
		if !r.isPostgres(&placed[i]) {
			out = append(out, key(&placed[i]))
		}
	}
	return out
}

func (r *Rig) logPath(name string) string { return filepath.Join(r.dir(dirLogs), name+".log") }

// link makes a name for the program: the kernel names a process after the file that was executed.
func (r *Rig) link(name, program string) (string, error) {
	path := filepath.Join(r.dir(dirBin), name)
	err := os.Symlink(program, path)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return path, nil
}
