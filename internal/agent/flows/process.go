package flows

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
)

// processes knows the executables of processes, by process ID and start: a process ID alone comes back.
type processes struct {
	proc string

	mu         sync.Mutex
	young, old map[processKey]string // two generations: what is not asked for falls out
}

type processKey struct {
	pid   uint32
	start uint64
}

// generation bounds the memory of known processes: at most twice as many are kept.
const generation = 2048

func newProcesses() *processes {
	return &processes{proc: "/proc", young: map[processKey]string{}}
}

// path returns the executable of the process, or "" if it has gone before anybody looked.
func (p *processes) path(pid uint32, start uint64) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := processKey{pid, start}
	path, ok := p.young[k]
	if ok {
		return path
	}
	if path, ok = p.old[k]; !ok {
		path = p.read(pid, start)
	}
	if len(p.young) >= generation {
		p.young, p.old = make(map[processKey]string, generation), p.young
	}
	p.young[k] = path
	return path
}

func (p *processes) read(pid uint32, start uint64) string {
	dir := p.proc + "/" + strconv.FormatUint(uint64(pid), 10)
	target, err := os.Readlink(dir + "/exe")
	if err != nil {
		return "" // gone, or a thread of the kernel
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil || start != 0 && !startedAt(stat, start) {
		return "" // the process ID belongs to another process by now
	}
	return strings.TrimSuffix(target, " (deleted)")
}

// ticksPerSecond is USER_HZ, in which the kernel tells times; it is 100 on every architecture that Go runs on.
const ticksPerSecond = 100

// startedAt reports whether a line of /proc/PID/stat names that start, in nanoseconds since boot. A tick of difference
// is rounding.
func startedAt(stat []byte, start uint64) bool {
	// The name of the command may hold anything, also spaces and parentheses; what follows the last one is numbers.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const field = 22 - 3 // starttime is the 22nd, the first after the name is the 3rd
	if len(f) <= field {
		return false
	}
	ticks, err := strconv.ParseUint(string(f[field]), 10, 64)
	if err != nil {
		return false
	}
	want := start / (1e9 / ticksPerSecond)
	return ticks <= want+1 && want <= ticks+1
}
