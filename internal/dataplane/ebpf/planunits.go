package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// planUnits maps cgroups to subjects.
func (t *transition) planUnits(d *Dataplane, units map[string][]string) error {
	numbers := map[string]int{}
	for i := range t.subjects {
		if t.subjects[i].used {
			numbers[t.subjects[i].name] = i
		}
	}
	cgroups := map[uint64]value{}
	for i := range t.policy.Subjects {
		s := &t.policy.Subjects[i]
		if s.Unit == "" {
			continue
		}
		for _, dir := range units[s.Unit] {
			id, level, err := d.unitCgroup(dir)
			if errors.Is(err, os.ErrNotExist) {
				continue // it has ended meanwhile
			}
			if err != nil {
				return fmt.Errorf("unit %s: %w", s.Unit, err)
			}
			subject := value{id: uint64(numbers[s.Workload]) + 1}
			if other, ok := cgroups[id]; ok && other != subject {
				return fmt.Errorf("unit %s: cgroup %s belongs to another unit too", s.Unit, dir)
			}
			cgroups[id] = subject
			t.addLevels(level)
		}
	}
	t.cgroups = d.held.cgroups.diff(maps.All(cgroups), nil, nil)
	return nil
}

// addLevels notes at which depths a unit's cgroup may be.
func (t *transition) addLevels(levels func(func(int) bool)) {
	for l := range levels {
		if l := uint8(l); !slices.Contains(t.levels, l) {
			t.levels = append(t.levels, l)
		}
	}
}

func (t *transition) planLevels() error {
	slices.Sort(t.levels)
	slices.Reverse(t.levels)
	if len(t.levels) > maxLevels {
		return tooManyLevels(len(t.levels))
	}
	return nil
}

// unitCgroup returns the id of a unit's cgroup and the depths at which it may be.
func (d *Dataplane) unitCgroup(dir string) (id uint64, levels func(func(int) bool), err error) {
	id, depth, err := findCgroup(dir)
	if err != nil {
		return 0, nil, err
	}
	root, err := filepath.EvalSymlinks(d.cfg.CgroupRoot)
	if err != nil {
		return 0, nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return 0, nil, err
	}
	if dir == root || !isBelow(dir, root) {
		return 0, nil, fmt.Errorf("cgroup %s is not below %s", dir, root)
	}
	return id, func(yield func(int) bool) {
		if depth != anyLevel {
			yield(depth)
			return
		}
		for l := 1; l <= maxLevels && yield(l); l++ {
		}
	}, nil
}

func tooManyLevels(n int) error {
	return fmt.Errorf("the cgroups of the units are at %d depths; at most %d are possible", n, maxLevels)
}
