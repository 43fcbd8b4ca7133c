package nft_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
	"bulkhead/internal/dataplane/nft"
)

func TestMain(m *testing.M) { dataplanetest.Main(m) }

// open is what the conformance suite opens.
func open(t testing.TB, _ dataplanetest.Place) dataplane.Dataplane {
	t.Helper()
	// Flows of UDP end by their silence; in the suite's own namespace that may be short.
	for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte("2"), 0); err != nil {
			t.Fatal(err)
		}
	}
	cfg := nft.DefaultConfig()
	cfg.LookInterval = time.Second
	cfg.AgentLoss = 2 * time.Second
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := nft.Open(cfg)
	if errors.Is(err, dataplane.ErrUnsupported) {
		dataplanetest.Cannot(t, "nftables", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestPort(t *testing.T) {
	t.Parallel()
	dataplanetest.RunPort(t, func(t testing.TB) (dataplane.Dataplane, func() dataplane.Dataplane) {
		bed := dataplanetest.NewBed(t)
		return bed.Open(open), func() dataplane.Dataplane { return bed.Open(open) }
	})
}

func TestSwitching(t *testing.T) { dataplanetest.RunSwitching(t, open) }

func TestConformance(t *testing.T) {
	t.Parallel()
	dataplanetest.Run(t, open)
}

// TestAtOnce does everything at once that the port allows to be done at once, under traffic: under the race detector it finds what
// is shared without care. What it does itself it must never take for somebody else's doing.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	bed := dataplanetest.NewBed(t)
	d := bed.Open(open)
	near, far := bed.Start(""), bed.StartFar()
	server := far.Listen("tcp4", dataplanetest.Far4+":20001")
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	told := 0
	all.Go(func() {
		if err := d.Events(ctx, func(*dataplane.Event) { told++ }); err != nil {
			t.Errorf("events: %v", err)
		}
	})
	forever := func(what string, do func() error) {
		all.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) { // others are to have their turn
				if err := do(); err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	policies := [2]*hostpolicy.Policy{flipped(false, 100), flipped(true, 100)}
	apply := func(i int) {
		t.Helper()
		if _, err := d.Apply(ctx, &dataplane.State{Policy: policies[i%2]}); err != nil {
			t.Fatal(err)
		}
	}
	apply(0)
	forever("repair", func() error {
		found, err := d.Repair(ctx)
		if len(found) > 0 {
			err = fmt.Errorf("found %q", found)
		}
		return err
	})
	forever("beat", func() error { return d.Beat(ctx) })
	forever("counters", func() error { _, err := d.Counters(); return err })
	forever("glass", func() error {
		if !d.Glass().IsZero() {
			return errors.New("is broken")
		}
		return nil
	})
	forever("capabilities", func() error { _ = d.Capabilities(); return nil })
	forever("traffic", func() error { near.Try("tcp4", server.Addr, 50*time.Millisecond); return nil })
	changes := 300 // which is more than there are generations
	if testing.Short() {
		changes = 40
	}
	for i := range changes {
		apply(i)
		if i%10 == 0 {
			for _, on := range []bool{true, false} {
				if err := d.Isolate(ctx, "h", on); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	apply(0)
	if err := near.Try("tcp4", server.Addr, time.Minute); err != "" {
		t.Errorf("at the end: %s", err)
	}
	cancel()
	all.Wait()
	if told == 0 {
		t.Error("nothing was told")
	}
	if c, err := d.Counters(); err != nil || c.Errors != 0 {
		t.Errorf("counters: %+v, %v", c, err)
	}
}
