package ebpf

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/portmap"
)

// maxAlternatives is how many rules for some processes may be asked one after the other.
var maxAlternatives = budget.EBPF().MaxAlternatives

// maxLists is how many lists of alternatives a policy set may have.
const maxLists = 1<<16 - 1

// nobody is the user that a name stands for which this host does not know: no process runs as it.
const nobody = 0xffffffff

// Which constraints an alternative has.
const (
	hasUnit = 1
	hasPath = 2
	hasUser = 4
)

// numberOf is what the programs know a rule or a unit by.
func numberOf(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:8])
}

// checkProcesses refuses what the programs cannot hold of the rules for some processes.
func checkProcesses(set *hostpolicy.PolicySet) error {
	lists := 0
	for _, dir := range model.Directions {
		for _, f := range set.Table(dir).Funcs {
			for i := range f {
				if len(f[i].When) > maxAlternatives {
					return fmt.Errorf("%d rules for processes apply to the same peer and port, the first is %s; at most %d are possible",
						len(f[i].When), f[i].When[0].Rule, maxAlternatives)
				}
				if len(f[i].When) > 0 {
					lists++
				}
			}
		}
	}
	if lists > maxLists {
		return fmt.Errorf("one workload has rules for processes on %d ranges of ports; at most %d are possible", lists, maxLists)
	}
	return nil
}

// users are the numbers of the users that rules name.
type users map[string]uint32

// number returns the number of a user that a rule names by name or number.
func (u users) number(user string) uint32 {
	if n, err := strconv.ParseUint(user, 10, 32); err == nil {
		return uint32(n)
	}
	if n, ok := u[user]; ok {
		return n
	}
	return nobody
}

// contentOf returns what the kernel knows the content of a policy set by: its ID, and the users that its rules name as
// they are on this host, for rows hold their numbers.
func (u users) contentOf(set *hostpolicy.PolicySet) uint64 {
	var named []string
	for a := range set.Alternatives() {
		if name := a.Process.User; name != "" && !slices.Contains(named, name) {
			named = append(named, name)
		}
	}
	if len(named) == 0 {
		return uint64(set.ID)
	}
	slices.Sort(named)
	h := sha256.New()
	fmt.Fprintf(h, "%016x", uint64(set.ID))
	for _, name := range named {
		fmt.Fprintf(h, "\n%q %d", name, u.number(name))
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// alternatives returns the keys of the alternatives of the policy set that has the number.
func (l *lowered) alternatives(number uint32) (keys []alternativeKey) {
	for i, list := range l.lists.All() {
		for k := range list {
			keys = append(keys, alternativeKey{Pset: number, List: uint16(i + 1), Index: uint16(k)})
		}
	}
	return keys
}

// alternatives returns the values of the alternatives, in the order of lowered.alternatives.
func (d *Dataplane) alternatives(l *portmap.Lists, u users) (values []alternative) {
	for _, list := range l.All() {
		for i := range list {
			values = append(values, d.alternative(&list[i], u))
		}
	}
	return values
}

func (d *Dataplane) alternative(a *hostpolicy.Alternative, u users) alternative {
	out := alternative{Rule: ruleNumber(a.Rule), Verdict: uint8(a.Verdict)}
	if a.Process.Unit != "" {
		out.Has |= hasUnit
		out.Unit = numberOf(a.Process.Unit)
	}
	if a.Process.Path != "" {
		out.Has |= hasPath
		out.Path = d.pathHash(a.Process.Path)
	}
	if a.Process.User != "" {
		out.Has |= hasUser
		out.User = u.number(a.Process.User)
	}
	return out
}

// pathHash is path_hash of bpf/process.h for the path of an executable.
func (d *Dataplane) pathHash(path string) uint64 {
	own := &d.settings.own // what somebody else has stored there must not end up in policy rows
	key := [2]uint64{own.PathKey[0].Load(), own.PathKey[1].Load()}
	return hashPath(key, path)
}

func hashPath(key [2]uint64, path string) uint64 {
	s := sip{
		key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d,
		key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573,
	}
	names := strings.Split(strings.Trim(path, "/"), "/")
	for _, name := range slices.Backward(names) {
		for chunk := range slices.Chunk([]byte(name), 8) {
			var b [8]byte
			copy(b[:], chunk)
			s.word(binary.NativeEndian.Uint64(b[:]))
		}
		s.word(uint64(len(name)))
	}
	s[2] ^= 0xff
	for range 4 {
		s.round()
	}
	return s[0] ^ s[1] ^ s[2] ^ s[3]
}

// sip is the state of SipHash-2-4, over words.
type sip [4]uint64

func (s *sip) word(w uint64) {
	s[3] ^= w
	s.round()
	s.round()
	s[0] ^= w
}

func (s *sip) round() {
	s[0] += s[1]
	s[2] += s[3]
	s[1] = bits.RotateLeft64(s[1], 13) ^ s[0]
	s[3] = bits.RotateLeft64(s[3], 16) ^ s[2]
	s[0] = bits.RotateLeft64(s[0], 32) + s[3]
	s[2] += s[1]
	s[1] = bits.RotateLeft64(s[1], 17) ^ s[2]
	s[3] = bits.RotateLeft64(s[3], 21) ^ s[0]
	s[2] = bits.RotateLeft64(s[2], 32)
}

// newKeys makes the key of the hash of paths, once for the life of the dataplane.
func (d *Dataplane) newKeys() {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	for i := range d.settings.PathKey {
		d.settings.put64(&d.settings.own.PathKey[i], binary.NativeEndian.Uint64(b[8*i:]))
		d.settings.put64(&d.settings.own.NameKey[i], binary.NativeEndian.Uint64(b[16+8*i:]))
	}
}

// planProcesses maps the cgroups of the units that rules name as a process's.
func (t *transition) planProcesses(d *Dataplane, units map[string][]string) error {
	cgroups := map[uint64]value{}
	for _, unit := range t.processes.Units {
		number := value{id: numberOf(unit)}
		for _, dir := range units[unit] {
			id, level, err := d.unitCgroup(dir)
			if errors.Is(err, os.ErrNotExist) {
				continue // it has ended meanwhile
			}
			if err != nil {
				return fmt.Errorf("unit %s: %w", unit, err)
			}
			if other, ok := cgroups[id]; ok && other != number {
				return fmt.Errorf("unit %s: cgroup %s belongs to another unit too", unit, dir)
			}
			cgroups[id] = number
			t.addLevels(level)
		}
	}
	t.units = d.held.units.diff(maps.All(cgroups), nil, nil)
	return nil
}

// writeProcesses has the programs tell processes apart before a rule asks for it.
func (d *Dataplane) writeProcesses(t *transition) error {
	if t.processes.Any() {
		d.settings.put32(&d.settings.own.Processes, 1)
	}
	if len(t.processes.Paths) == 0 || d.settings.Paths.Load() != 0 {
		return nil
	}
	// First what makes new sockets know, then what is known of the others.
	d.settings.put32(&d.settings.own.Paths, t.gen)
	p := d.programs[programsProgBulkheadLearn]
	if p == nil {
		return nil // Capabilities says so
	}
	if _, err := d.sweepers.run(p, programsProgBulkheadLearn, nil); err != nil {
		return fmt.Errorf("look at the executables of processes: %w", err)
	}
	return nil
}

// settleProcesses has the programs do no more than the policy in force needs.
func (d *Dataplane) settleProcesses(c hostpolicy.Processes) {
	if !c.Any() {
		d.settings.put32(&d.settings.own.Processes, 0)
	}
	if len(c.Paths) == 0 {
		d.settings.put32(&d.settings.own.Paths, 0)
	}
}
