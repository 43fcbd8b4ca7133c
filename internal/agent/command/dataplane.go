package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"bulkhead/internal/agent"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/ebpf"
	"bulkhead/internal/dataplane/nft"
)

// open opens the dataplane that the configuration asks for. Where an agent with the other one was here before, that one
// judges on until this one has a policy.
func open(cfg *agent.Config, log *slog.Logger) (dataplane.Dataplane, error) {
	if cfg.Dataplane == agent.DataplaneNftables {
		return openNftables(cfg, log)
	}
	d, err := openEBPF(cfg, log)
	if cfg.Dataplane == agent.DataplaneEBPF || !errors.Is(err, dataplane.ErrUnsupported) {
		return d, err
	}
	other, failed := openNftables(cfg, log)
	if failed != nil {
		return nil, fmt.Errorf("%w; nor can nftables do it: %w", err, failed)
	}
	log.Warn("eBPF cannot be used here; nftables judges, which can do less (see dataplane.limits in the status)", "reason", err)
	return other, nil
}

func openEBPF(cfg *agent.Config, log *slog.Logger) (dataplane.Dataplane, error) {
	if err := mount(cfg.BPFFS); err != nil {
		return nil, err
	}
	d, err := ebpf.Open(ebpfConfig(cfg, log))
	if err != nil {
		return nil, err
	}
	if there, err := nft.Installed(); err == nil && there { // an error: there is no nftables
		return &successor{Dataplane: d, before: nft.Uninstall, log: log}, nil
	}
	return d, nil
}

func ebpfConfig(cfg *agent.Config, log *slog.Logger) ebpf.Config {
	plane := ebpf.DefaultConfig()
	plane.CgroupRoot, plane.BPFFS, plane.Logger = cfg.CgroupRoot, cfg.BPFFS, log
	plane.Guard = map[string]ebpf.Guard{
		agent.InterfacesPorts: ebpf.GuardPorts, agent.InterfacesAll: ebpf.GuardAll, agent.InterfacesNone: ebpf.GuardNone,
	}[cfg.Interfaces]
	return plane
}

func openNftables(cfg *agent.Config, log *slog.Logger) (dataplane.Dataplane, error) {
	plane := nft.DefaultConfig()
	plane.Logger = log
	d, err := nft.Open(plane)
	if err != nil {
		return nil, err
	}
	if this, other, err := ebpf.Installed(ebpfConfig(cfg, log)); err == nil && (this || other) {
		return &successor{Dataplane: d, before: func() error { return ebpf.Uninstall(cfg.BPFFS) }, log: log}, nil
	}
	return d, nil
}

// successor is a dataplane in whose place another one judges until this one has a policy. Meanwhile both do.
type successor struct {
	dataplane.Dataplane
	log *slog.Logger

	mu     sync.Mutex
	before func() error // takes the other one out; nil: it is gone
}

// Apply makes state the one that judges, and then the other dataplane goes.
func (s *successor) Apply(ctx context.Context, state *dataplane.State) (dataplane.ApplyStats, error) {
	stats, err := s.Dataplane.Apply(ctx, state)
	if err != nil {
		return stats, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.before == nil {
		return stats, nil
	}
	if err := s.before(); err != nil { // what both allow still passes; the next policy tries again
		s.log.Error("the dataplane before this one is still there", "error", err)
		return stats, nil
	}
	s.before = nil
	s.log.Info("another dataplane judges now", "kind", s.Capabilities().Kind)
	return stats, nil
}

// mount sees to it that the directory for pins is on a bpffs: the usual place is mounted as a whole if it is not yet,
// any other directory is mounted by itself.
func mount(dir string) error {
	const usual = "/sys/fs/bpf"
	if dir == usual || strings.HasPrefix(dir, usual+"/") {
		_, err := ebpf.MountBPFFS(usual)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	_, err := ebpf.MountBPFFS(dir)
	return err
}
