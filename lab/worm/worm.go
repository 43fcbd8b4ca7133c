// Package worm is the lab's attacker: a harmless program that tries to reach every address and port of the lab from
// the workload it sits in, and to move on from there.
//
// It is bounded: it knows only the lab's own addresses, tries each address and port once, and stops after a set number
// of attempts and a set time. Taking a workload means that the same program runs there; nothing else is done to it.
// Every attempt is in its ledger.
package worm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// Spec is what the worm knows when it starts in a workload.
type Spec struct {
	Workload string                    // "host/unit" or "host": where it sits
	Own      []netip.Addr              // addresses of that host
	OwnPorts []scenario.Port           // ports the workload itself serves: it has those already
	Prefixes []netip.Prefix            // where it looks
	Ports    []scenario.Port           // what it tries at each address
	Speaks   map[string]scenario.Speak // by port: what to say there
	Token    string
	Markers  string // directory with one file for each workload taken
	Ledgers  string // directory
	Limit    int    // attempts
	Time     time.Duration
	Patience time.Duration // how long it waits for an answer
	// Postgres is the workload behind each real database, which shows that it is taken by running a command.
	Postgres map[netip.Addr]string
}

// parallel is how many attempts are under way at once.
const parallel = 24

// processName is what ps and the agents call the worm.
const processName = "worm"

type worm struct {
	*Spec
	ledger   *traffic.Ledger
	attempts atomic.Int64
	serial   atomic.Uint64
}

// Run tries everything once, and notes that it has.
func Run(ctx context.Context, s *Spec) (err error) {
	ledger, err := traffic.OpenLedger(filepath.Join(s.Ledgers, "worm-"+strings.ReplaceAll(s.Workload, "/", "_")+".jsonl"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ledger.Close()) }()
	w := &worm{Spec: s, ledger: ledger}
	ctx, cancel := context.WithTimeout(ctx, s.Time)
	defer cancel()
	return errors.Join(w.spread(ctx), traffic.MarkDone(s.Markers, s.Workload))
}

// id names an attempt. It is unique in the lab.
func (w *worm) id() string {
	return fmt.Sprintf("worm@%s#%d.%d", w.Workload, os.Getpid(), w.serial.Add(1))
}

// target is one address and port.
type target struct {
	addr netip.Addr
	port scenario.Port
}

// spread tries every port of every address, nearest ports first. An address that does not answer on two ports in a
// row is given up: nobody is there.
func (w *worm) spread(ctx context.Context) error {
	work := make(chan netip.Addr)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	for range parallel {
		wg.Go(func() {
			for addr := range work {
				if err := w.try(ctx, addr); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, p := range w.Prefixes {
		for a := p.Masked().Addr().Next(); p.Contains(a); a = a.Next() {
			if a.Is4() && !p.Contains(a.Next()) {
				break // broadcast
			}
			select {
			case work <- a:
			case <-ctx.Done():
			}
		}
	}
	close(work)
	wg.Wait()
	return first
}

const giveUpAfter = 2

func (w *worm) try(ctx context.Context, addr netip.Addr) error {
	silent := 0
	for _, port := range w.Ports {
		if ctx.Err() != nil || silent >= giveUpAfter || w.attempts.Add(1) > int64(w.Limit) {
			return nil
		}
		if w.own(addr, port) {
			continue
		}
		outcome, err := w.attempt(ctx, target{addr, port})
		if err != nil {
			return err
		}
		switch {
		case outcome == traffic.Timeout && port.Proto == model.ProtoTCP, outcome == traffic.Unreachable:
			silent++
		case outcome != traffic.Timeout:
			silent = 0
		}
	}
	return nil
}

func (w *worm) own(addr netip.Addr, port scenario.Port) bool {
	for _, a := range w.Own {
		for _, p := range w.OwnPorts {
			if a == addr && p == port {
				return true
			}
		}
	}
	return false
}

// attempt connects, and if that works tries to take what is there. Its error is one of the ledger.
func (w *worm) attempt(ctx context.Context, t target) (traffic.Outcome, error) {
	e := &traffic.Entry{ID: w.id(), Role: traffic.RoleScan,
		Start: time.Now().UnixNano(), From: w.Workload, Process: processName, Proto: t.port.Network(),
		Dst: netip.AddrPortFrom(t.addr, t.port.Port), Opened: true}
	why, err := w.takeOver(ctx, t, e)
	e.End = time.Now().UnixNano()
	e.Outcome = traffic.Classify(err)
	e.Err = why
	if err != nil {
		e.Err = err.Error()
	}
	return e.Outcome, w.ledger.Write(e)
}

func (w *worm) takeOver(ctx context.Context, t target, e *traffic.Entry) (why string, err error) {
	dialer := net.Dialer{Timeout: w.Patience, KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, t.port.Network(), netip.AddrPortFrom(t.addr, t.port.Port).String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if local, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
		e.Src = local
	}
	if err := conn.SetDeadline(time.Now().Add(w.Patience)); err != nil {
		return "", err
	}
	speak := w.Speaks[t.port.String()]
	if speak == scenario.SpeakPostgres {
		if who := w.Postgres[t.addr]; who != "" {
			// The scan was a connection of its own; the client makes another.
			conn.Close()
			return w.takePostgres(ctx, t, who)
		}
	}
	reply, err := traffic.TakeOver(conn, t.port.Proto, speak, e.ID, &traffic.Takeover{Token: w.Token, By: w.Workload, Via: t.port.String()})
	if err != nil {
		return "", err
	}
	if reply.Taken {
		return "taken", nil
	}
	return reply.Why, nil
}

// takePostgres shows that the database is taken: by the trust that the lab's database has in its network, it runs a
// harmless command on the machine of the database.
func (w *worm) takePostgres(ctx context.Context, t target, who string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	e := &traffic.Entry{ID: w.id(), Role: traffic.RoleScan,
		Start: time.Now().UnixNano(), From: w.Workload, Process: "psql", Proto: t.port.Network(),
		Dst: netip.AddrPortFrom(t.addr, t.port.Port), Opened: true}
	cmd := traffic.Psql(ctx, netip.AddrPortFrom(t.addr, t.port.Port), "postgres", "postgres", 2*time.Second,
		"-c", "create temporary table loot (line text); copy loot from program 'echo taken'; select line from loot;")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	e.End = time.Now().UnixNano()
	e.Outcome = traffic.OK
	took := err == nil && strings.TrimSpace(out.String()) == "taken"
	if !took {
		e.Outcome, e.Err = traffic.Failed, strings.TrimSpace(errs.String())
	}
	if err := w.ledger.Write(e); err != nil {
		return "", err
	}
	if !took {
		return "the database let nobody in", nil
	}
	fresh, err := traffic.Mark(w.Markers, who)
	if err != nil || !fresh {
		return "taken already", err
	}
	return "taken", errors.Join(w.ledger.Write(traffic.TakenEntry(who, w.Workload, t.port.String())), traffic.MarkDone(w.Markers, who))
}
