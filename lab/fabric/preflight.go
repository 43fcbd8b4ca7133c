package fabric

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Missing says what a machine lacks to hold a lab.
type Missing struct{ What []string }

// Error lists what is missing and what works all the same.
func (m *Missing) Error() string {
	var b strings.Builder
	b.WriteString("the lab cannot run here:\n")
	for _, w := range m.What {
		fmt.Fprintf(&b, "  - %s\n", w)
	}
	b.WriteString("These work without any of it: bulkhead check, test, eval, explain, diff, learn (with -f or --flows).")
	return b.String()
}

// ExitCode is that of "cannot" (DESIGN §5).
func (m *Missing) ExitCode() int { return 3 }

// Preflight says whether this machine can hold a lab. Its error is a *Missing that lists everything that is not there.
func Preflight() error {
	var m Missing
	if os.Geteuid() != 0 {
		m.What = append(m.What, "it makes network namespaces and loads programs into the kernel, so it needs root: use sudo")
		return &m // nothing below could be found out
	}
	for _, check := range []func() string{lacksNetns, lacksCgroup, lacksBPF} {
		if why := check(); why != "" {
			m.What = append(m.What, why)
		}
	}
	if len(m.What) > 0 {
		return &m
	}
	return nil
}

func lacksNetns() string {
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	if err != nil {
		return fmt.Sprintf("the kernel refuses network namespaces (%v): in a container, run it with --privileged", err)
	}
	return ""
}

func lacksCgroup() string {
	root, err := cgroupRoot()
	if errors.Is(err, ErrNoCgroup2) {
		return "no cgroup2 file system is mounted: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
	}
	if err != nil {
		return err.Error()
	}
	probe := filepath.Join(root, fmt.Sprintf("%spreflight-%d", cgroupPrefix, os.Getpid()))
	if err := os.Mkdir(probe, 0o755); err != nil {
		return fmt.Sprintf("no cgroup can be made below %s (%v): in a container, run it with --privileged --cgroupns=private", root, err)
	}
	if err := unix.Rmdir(probe); err != nil {
		return err.Error()
	}
	return ""
}

func lacksBPF() string {
	if err := features.HaveProgramType(ebpf.CGroupSKB); err != nil {
		return fmt.Sprintf("the kernel refuses eBPF programs at cgroups (%v): it needs Linux 5.15 or later with CONFIG_CGROUP_BPF, and bpf() allowed", err)
	}
	return ""
}
