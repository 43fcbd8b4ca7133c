package ebpf_test

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
	"bulkhead/internal/dataplane/ebpf"
)

func TestMain(m *testing.M) { dataplanetest.Main(m) }

// open is what the conformance suite opens.
func open(t testing.TB, at dataplanetest.Place) dataplane.Dataplane {
	t.Helper()
	cfg := ebpf.DefaultConfig()
	cfg.CgroupRoot, cfg.BPFFS = at.CgroupRoot, at.BPFFS
	cfg.UpdateInterval = time.Second
	cfg.MaxConnections = 16384
	cfg.AgentLoss = 2 * time.Second
	cfg.NameFloor = time.Second
	cfg.UDPTimeout, cfg.UDPStreamTimeout = time.Second, time.Second
	if at.Guard {
		cfg.Guard = ebpf.GuardAll
	}
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := ebpf.Open(cfg)
	if errors.Is(err, dataplane.ErrUnsupported) {
		dataplanetest.Cannot(t, "bpf", err)
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

func TestLoad(t *testing.T) { dataplanetest.RunLoad(t, open) }

func TestConformance(t *testing.T) {
	t.Parallel()
	dataplanetest.Run(t, open)
}
