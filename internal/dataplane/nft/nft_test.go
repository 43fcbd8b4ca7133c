package nft_test

import (
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

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
