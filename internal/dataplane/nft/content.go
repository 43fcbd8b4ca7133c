package nft

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// hostNumber is the number of the host itself among the subjects; its units have those up to maxSubjects.
const (
	hostNumber  = 1
	maxSubjects = 255 // as package budget says
)

// content is what is to be in force: a policy on this host as it is now. It is not changed once it is made.
type content struct {
	policy    *hostpolicy.Policy
	subjects  []*subject // sorted by number
	units     map[uint64]unitCgroup
	addresses *addressMaps
	inherited []uint8 // numbers that were somebody else's in the policy before
	beaten    bool    // the agent has said that it is there, so it can be lost
	glass     bool    // the glass may be broken
}

// subject is a workload of this host under the number that marks of connections have for it.
type subject struct {
	*hostpolicy.Subject
	number   uint8
	isolated bool
}

// unitCgroup is a cgroup that is a unit, by how deep it lies and whose it is.
type unitCgroup struct {
	depth   uint32
	subject uint8
	dir     string
}

func (c *content) depths() (all []uint32) {
	for _, u := range c.units {
		all = append(all, u.depth)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	slices.Reverse(all)
	return all
}

// whenLost returns what judges a subject, instead of policy, while the agent is lost; ok is false if policy does.
func (c *content) whenLost(s *subject) (chain string, ok bool) {
	if !c.beaten || s.isolated {
		return "", false
	}
	switch s.OnAgentLoss {
	case model.LossOpen:
		return "open-", true
	case model.LossClosed:
		return "closed-", true
	}
	return "", false
}

func (c *content) lossMatters() bool {
	return slices.ContainsFunc(c.subjects, func(s *subject) bool { _, ok := c.whenLost(s); return ok })
}

// deniesAnything reports whether some policy set in force denies something.
func (c *content) deniesAnything() bool {
	denies := func(id hostpolicy.PolicySetID) bool {
		set := c.policy.Set(id)
		for _, dir := range model.Directions {
			for _, f := range set.Table(dir).Funcs {
				if slices.ContainsFunc(f, func(c hostpolicy.Cell) bool { return c.Verdict == model.Deny }) {
					return true
				}
			}
		}
		return false
	}
	return slices.ContainsFunc(c.subjects, func(s *subject) bool {
		return s.isolated || denies(s.Set) || slices.ContainsFunc(s.Local, func(l hostpolicy.LocalSet) bool { return denies(l.Set) })
	})
}

// effective is the policy as it judges now, with what is isolated.
func (c *content) effective() *hostpolicy.Policy {
	var isolated []string
	for _, s := range c.subjects {
		if s.isolated {
			isolated = append(isolated, s.Workload)
		}
	}
	return c.policy.Isolated(isolated...)
}

func (c *content) name(number uint8) string {
	for _, s := range c.subjects {
		if s.number == number {
			return s.Workload
		}
	}
	return ""
}

// rows are the entries of policy sets.
func (t *table) rows() int { return t.rowsIn(t) }

// rowsIn are those that next has too.
func (t *table) rowsIn(next *table) (n int) {
	if t == nil {
		return 0
	}
	for name, s := range t.sets {
		if isPolicySet(name) && next.sets[name] != nil {
			n += len(s.members)
		}
	}
	return n
}

func isPolicySet(name string) bool {
	return len(name) > 6 && (name[:6] == "peers-" || name[:6] == "cells-")
}

// numbers are the subjects that the kernel knows, by name.
type numbers map[string]numbered

type numbered struct {
	number   uint8
	isolated bool
}

// plan works out what is to be in force. Everything that can be refused before the kernel is asked is refused here.
func plan(st *dataplane.State, known numbers, before *content, caps dataplane.Capabilities) (*content, error) {
	p := st.Policy
	if p == nil {
		return nil, errors.New("there is no policy")
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	if err := caps.Check(p); err != nil {
		return nil, err
	}
	if err := fits(p); err != nil {
		return nil, err
	}
	c := &content{policy: p, units: map[uint64]unitCgroup{}}
	if before != nil {
		c.inherited = slices.Clone(before.inherited) // what could not be forgotten yet
	}
	if err := c.number(known); err != nil {
		return nil, err
	}
	for _, s := range c.subjects {
		if s.Unit == "" {
			continue
		}
		for _, dir := range st.Units[s.Unit] {
			id, depth, err := cgroupOf(dir)
			if errors.Is(err, os.ErrNotExist) {
				continue // it has ended meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("unit %s: %w", s.Unit, err)
			}
			if other, ok := c.units[id]; ok && other.subject != s.number {
				return nil, fmt.Errorf("unit %s: cgroup %s belongs to another unit too", s.Unit, dir)
			}
			c.units[id] = unitCgroup{depth, s.number, dir}
		}
	}
	for i := range p.Sets {
		for _, dir := range model.Directions {
			if peers := p.Sets[i].Table(dir).Peers; len(peers) > 0 && peers[0].Peer == 0 {
				return nil, fmt.Errorf("policy set %016x lists identity 0, which is what no entry matches", uint64(p.Sets[i].ID))
			}
		}
	}
	if before != nil {
		c.addresses = lowerAddresses(p, before.addresses)
	} else {
		c.addresses = lowerAddresses(p, nil)
	}
	return c, nil
}

// fits refuses what package budget says that does not fit.
func fits(p *hostpolicy.Policy) error {
	target, cost := budget.Nftables(), budget.Of(p)
	if r, ok := target.Exceeded(cost); ok {
		return fmt.Errorf("%s do not fit into the %d of the nftables dataplane", r.Text(cost[r]), target.Max[r])
	}
	return nil
}

// number gives each subject its number: the one that it has, or one that nobody has had in the policy before, or at last
// one of somebody who is gone.
func (c *content) number(known numbers) error {
	used := map[uint8]bool{0: true, hostNumber: true}
	for _, n := range known {
		used[n.number] = true
	}
	var left []uint8 // of those who are gone
	for _, name := range sorted(known) {
		if n := known[name].number; n != hostNumber && !slices.ContainsFunc(c.policy.Subjects, func(s hostpolicy.Subject) bool { return s.Workload == name && s.Unit != "" }) {
			left = append(left, n)
		}
	}
	hosts, next := 0, 1
	for i := range c.policy.Subjects {
		s := &c.policy.Subjects[i]
		if maxName := budget.Nftables().MaxName; len(s.Workload) > maxName { // the kernel keeps it with a rule
			return fmt.Errorf("workload %q: the name is longer than %d bytes", s.Workload, maxName)
		}
		n, ok := known[s.Workload]
		switch {
		case s.Unit == "":
			hosts++
			n.number = hostNumber
		case ok && n.number != hostNumber:
		default:
			for next <= maxSubjects && used[uint8(next)] {
				next++
			}
			switch {
			case next <= maxSubjects:
				n.number = uint8(next)
				used[n.number] = true
			case len(left) > 0:
				n.number, left = left[0], left[1:]
				c.inherited = append(c.inherited, n.number)
			default:
				return fmt.Errorf("%d workloads on this host do not fit: the nftables dataplane tells %d apart", len(c.policy.Subjects), maxSubjects)
			}
		}
		c.subjects = append(c.subjects, &subject{s, n.number, n.isolated})
	}
	if hosts != 1 {
		return fmt.Errorf("the policy has %d subjects that are the host itself; it must have one", hosts)
	}
	slices.SortFunc(c.subjects, func(a, b *subject) int { return int(a.number) - int(b.number) })
	return nil
}

// cgroupOf returns the id of a cgroup, which is its inode, and how deep it lies below the root of its hierarchy.
func cgroupOf(dir string) (id uint64, depth uint32, err error) {
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return 0, 0, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, 0, fmt.Errorf("%s is no cgroup of version 2", dir)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	for up := filepath.Dir(dir); up != dir; up = filepath.Dir(up) {
		var above syscall.Stat_t
		if err := syscall.Stat(up, &above); err != nil {
			return 0, 0, &os.PathError{Op: "stat", Path: up, Err: err}
		}
		if above.Dev != st.Dev {
			break
		}
		depth++
	}
	if depth == 0 {
		return 0, 0, fmt.Errorf("%s is the root of all cgroups: that is the host", dir)
	}
	return st.Ino, depth, nil
}

// digest is what the kernel keeps of the content, so that the next agent knows whether it is there already.
func (c *content) digest(l layout, group uint16, can abilities) (d [32]byte) {
	h := sha256.New()
	fmt.Fprintf(h, "%d %d %d %v %x\n", tableVersion, l.shift, group, can, c.policy.Hash())
	var ids []uint64
	for id := range c.units {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		fmt.Fprintf(h, "%d %d %q\n", id, c.units[id].depth, c.name(c.units[id].subject))
	}
	copy(d[:], h.Sum(nil))
	return d
}

// tableVersion changes with whatever rules.go and judging.go make of the same content.
const tableVersion = 4
