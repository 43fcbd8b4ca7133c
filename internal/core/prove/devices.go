package prove

import (
	"bulkhead/internal/core/compile"
)

type addressFamily uint8

const (
	anyFamily addressFamily = iota // without an address
	family4
	family6
)

// findDevices lists what the workloads are that nothing enforces on.
func (s *space) findDevices() {
	seen := map[string]bool{}
	inv := s.world.Inventory()
	for i := range inv.Instances {
		if inv.Instances[i].Managed {
			continue
		}
		wl := s.world.Workload(inv.Instances[i].Name)
		for k := range wl.Points {
			id := s.world.Identity(wl.Points[k].Identity)[0]
			f := familyOf(wl.Points[k])
			key := id.Key() + "\x00" + string(rune(f))
			if !seen[key] {
				seen[key] = true
				s.devices = append(s.devices, &id)
				s.family = append(s.family, f)
			}
		}
	}
}

func familyOf(p compile.Point) addressFamily {
	switch {
	case !p.Addr.IsValid():
		return anyFamily
	case p.Addr.Is4():
		return family4
	}
	return family6
}
