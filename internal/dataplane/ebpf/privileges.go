package ebpf

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

// needed are the capabilities that loading and attaching the programs takes. CAP_SYS_ADMIN stands for the first two, as
// it did before they were split off it.
var needed = []struct {
	name  string
	bit   uint
	admin bool
}{
	{"CAP_BPF", unix.CAP_BPF, true}, {"CAP_PERFMON", unix.CAP_PERFMON, true}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, false},
}

// checkPrivileges returns an error that names the capabilities which the calling thread lacks.
func checkPrivileges() error {
	has, err := capabilities()
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range needed {
		if !has(c.bit) && !(c.admin && has(unix.CAP_SYS_ADMIN)) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w: run as root, with all of its capabilities; the agent runs as user %d and lacks %s",
		dataplane.ErrUnsupported, os.Geteuid(), strings.Join(missing, ", "))
}

// capabilities tells which capabilities the calling thread has in effect.
func capabilities() (has func(bit uint) bool, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // the call writes both words
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	return func(bit uint) bool { return data[bit/32].Effective&(1<<(bit%32)) != 0 }, nil
}
