// Package controller is the controller: it holds the whole policy, compiles it, gives each agent its part, and takes
// flows in. One process, with everything that lasts in one directory.
//
// The work is done by the packages below it: world (what is known, compiled), fleet (agents and their streams),
// change (new revisions), quarantine (leases), flows (history), trust (certificates and tokens), audit, and rpc (the
// API). This package only puts them together; they do not know it.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/change"
	"bulkhead/internal/controller/fleet"
	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/metrics"
	"bulkhead/internal/controller/quarantine"
	"bulkhead/internal/controller/rpc"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/flowstore"
	"bulkhead/internal/notify"
	"bulkhead/internal/store"
)

// Deps are what a controller stands on. A nil field is opened in the data directory, or takes the default.
type Deps struct {
	Store   store.Store
	Flows   flowstore.Store
	Log     *slog.Logger
	Now     func() time.Time
	Version string
	// Ready is called once everything listens, with the addresses.
	Ready func(Addrs)
}

// Addrs are where a controller listens. Ports that the configuration leaves to the system are filled in.
type Addrs struct {
	Network netip.AddrPort
	Metrics string
}

// Controller is one controller.
type Controller struct {
	cfg  Config
	deps Deps
}

// New returns a controller that does nothing yet.
func New(cfg Config, deps Deps) *Controller {
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	return &Controller{cfg: cfg, deps: deps}
}

// parts is a controller at work.
type parts struct {
	cfg        Config
	log        *slog.Logger
	now        func() time.Time
	store      store.Store
	flowstore  flowstore.Store
	ca         *trust.CA
	world      *world.World
	fleet      *fleet.Fleet
	flows      *flows.Ingester
	desk       *change.Desk
	quarantine *quarantine.Manager
	audit      *audit.Log
	metrics    *metrics.Metrics
	reach      []netip.AddrPort
	listening  atomic.Bool
}

// Run serves until ctx ends, and then finishes what it has begun.
func (c *Controller) Run(ctx context.Context) (err error) {
	unlock, err := lock(c.cfg.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	network, err := net.Listen("tcp", c.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer network.Close() // the server closes it first; this is for errors before it serves
	p, err := c.assemble(network.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.load(ctx, c.deps.Version); err != nil {
		return err
	}
	return p.serve(ctx, network, c.deps)
}

// assemble opens the stores and puts the parts together.
func (c *Controller) assemble(listen netip.AddrPort) (p *parts, err error) {
	p = &parts{cfg: c.cfg, log: c.deps.Log, now: c.deps.Now, store: c.deps.Store, flowstore: c.deps.Flows, metrics: metrics.New()}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.store == nil {
		if p.store, err = openStore(c.cfg.Data); err != nil {
			return p, err
		}
	}
	if p.flowstore == nil {
		p.flowstore = openFlows(c.cfg.Data, c.deps.Now(), c.deps.Log)
	}
	if p.ca, err = trust.OpenCA(c.cfg.Data, p.now()); err != nil {
		return p, err
	}
	if p.reach = c.cfg.Advertise; len(p.reach) == 0 {
		listen = netip.AddrPortFrom(c.cfg.Listen.Addr(), listen.Port())
		if p.reach, err = addresses(listen); err != nil {
			return p, fmt.Errorf("addresses of this machine: %w; set advertise", err)
		}
	}
	p.world = world.New(world.Config{
		Controllers: p.reach, Now: p.now,
		Compiled: func(took time.Duration, err error) {
			p.metrics.CompileSeconds.Observe(took.Seconds())
			if err != nil {
				p.metrics.CompileFailures.Inc()
			}
		},
	}, p.log)
	p.flows = flows.New(flows.Config{Now: p.now}, p.flowstore, p.world.Snapshot, p.log)
	p.fleet = fleet.New(fleet.Config{Version: c.deps.Version, Now: p.now}, p.store, p.world, p.flows, p.metrics, p.log)
	p.quarantine = quarantine.New(p.store, p.world, p.fleet, p.flows, p.metrics, p.log, p.now)
	p.desk = change.New(p.store, p.world, p.flows, p.fleet.Target, p.log, p.now)
	p.audit = audit.New(p.store, p.log, p.now)
	p.countElsewhere()
	return p, nil
}

func (p *parts) close() error {
	var errs []error
	if p.flowstore != nil {
		errs = append(errs, p.flowstore.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

// load brings the world to what was stored.
func (p *parts) load(ctx context.Context, version string) error {
	var (
		newest *store.Revision
		agents []store.Agent
		leases []store.Lease
	)
	if err := p.store.View(ctx, func(r store.Reader) (err error) {
		if newest, err = r.Revision(0); errors.Is(err, store.ErrNotFound) {
			newest, err = nil, nil
		}
		if err != nil {
			return err
		}
		if agents, err = r.Agents(); err != nil {
			return err
		}
		leases, err = r.Leases()
		return err
	}); err != nil {
		return err
	}
	var docs *world.Documents
	var revision uint64
	if newest != nil {
		revision = newest.Number
		var err error
		if docs, err = world.NewDocuments(newest.Number, newest.Hash, newest.Documents); err != nil {
			return fmt.Errorf("revision %d cannot be read by this version; start the one that stored it: %w", newest.Number, err)
		}
	}
	reports, err := p.fleet.Load(agents)
	if err != nil {
		return err
	}
	if err := p.world.Load(docs, reports, p.quarantine.Load(leases)); err != nil {
		return fmt.Errorf("revision %d cannot be compiled by this version; start the one that stored it: %w", revision, err)
	}
	made := false
	if err := p.store.Update(ctx, func(tx store.Tx) (err error) {
		if made, err = trust.EnsureAdmin(tx, p.cfg.Data, p.now()); err != nil {
			return err
		}
		_, err = tx.AppendAudit(store.AuditEntry{
			Time: p.now(), Actor: audit.System, Action: audit.Start, Subject: fmt.Sprintf("revision %d", revision), Detail: version,
		})
		return err
	}); made && err != nil {
		return fmt.Errorf("store the administrator's token: %w", err)
	} else if err != nil {
		// Agents are better served by a controller that cannot write than by none.
		p.metrics.StoreFailures.Inc()
		p.log.Error("the start could not be written to the audit log", "error", err)
	}
	if made {
		p.log.Info("first start: the administrator's API token is in the data directory", "file", filepath.Join(p.cfg.Data, "admin.token"))
	}
	p.log.Info("loaded", "revision", revision, "agents", len(agents), "quarantines", len(leases))
	return nil
}

// shutdownTime is how long requests may take to finish when the controller ends.
const shutdownTime = 5 * time.Second

// serve runs the workers and the servers until ctx ends or one of them fails. Servers end first, so that nothing comes
// in any more when the workers finish.
func (p *parts) serve(ctx context.Context, network net.Listener, deps Deps) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	workers, work := errgroup.WithContext(work)
	for _, run := range []func(context.Context) error{p.world.Run, p.flows.Run, p.fleet.Run, p.quarantine.Run} {
		workers.Go(func() error { return run(work) })
	}
	ctx, stopServing := context.WithCancel(ctx)
	defer stopServing()
	context.AfterFunc(work, stopServing) // a worker that fails ends everything
	servers, serving := errgroup.WithContext(ctx)

	err := p.start(servers, serving, network, deps)
	if err != nil {
		stopServing()
	}
	context.AfterFunc(ctx, func() { p.tellManager(notify.Stopping) })
	err = errors.Join(err, servers.Wait())
	p.listening.Store(false)
	stopWork()
	return errors.Join(err, workers.Wait())
}

func (p *parts) tellManager(messages ...string) {
	if err := notify.Send(messages...); err != nil {
		p.log.Warn("the service manager was not told", "error", err)
	}
}

// start starts the servers in the group; they end with ctx.
func (p *parts) start(g *errgroup.Group, ctx context.Context, network net.Listener, deps Deps) error {
	services := &rpc.Services{
		Store: p.store, World: p.world, Fleet: p.fleet, Flows: p.flows, Desk: p.desk, Quarantine: p.quarantine, CA: p.ca,
		Audit: p.audit, Metrics: p.metrics, Log: p.log, Now: p.now, Started: p.now(), Version: deps.Version,
		Certificate: p.cfg.CertificateTTL, Grace: p.cfg.CertificateGrace, Controllers: p.reach, Closing: ctx,
	}
	where := Addrs{Network: network.Addr().(*net.TCPAddr).AddrPort()}
	p.server(g, ctx, network, services.Network(), newIdentity(p.ca, p.reach, p.now))
	if p.cfg.Socket != "" {
		l, err := listenUnix(p.cfg.Socket)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		p.server(g, ctx, l, services.Local(), nil)
	}
	if p.cfg.Metrics != "" {
		l, err := listenMetrics(p.cfg.Metrics)
		if err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		where.Metrics = l.Addr().String()
		p.server(g, ctx, l, p.healthHandler(), nil)
	}
	p.listening.Store(true)
	p.log.Info("listening", "network", where.Network, "reached_at", p.reach, "socket", p.cfg.Socket, "metrics", where.Metrics)
	p.tellManager(notify.Ready, notify.Status(fmt.Sprintf("serving agents at %s", where.Network)))
	if deps.Ready != nil {
		deps.Ready(where)
	}
	return nil
}

// server serves the listener in the group until ctx ends; with an identity it speaks TLS. Requests that are under way
// then are let finish, streams are ended.
func (p *parts) server(g *errgroup.Group, ctx context.Context, l net.Listener, h http.Handler, id *identity) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext:       rpc.LocalContext,
		// An agent that has vanished without a word is noticed within half a minute.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 30 * time.Second},
	}
	g.Go(func() error {
		var err error
		if id != nil {
			s.TLSConfig = id.tls()
			err = s.ServeTLS(l, "", "")
		} else {
			err = s.Serve(l)
		}
		if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
	g.Go(func() error {
		<-ctx.Done()
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		if err := s.Shutdown(late); errors.Is(err, context.DeadlineExceeded) {
			return s.Close() // whoever has not finished by now is cut off
		} else if err != nil {
			return err
		}
		return nil
	})
}

// lock makes sure that one controller uses the data directory, and makes the directory.
func lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return lockFile(filepath.Join(dir, "lock"))
}
