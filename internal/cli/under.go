package cli

import (
	"maps"
	"slices"
	"strings"

	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
)

// under returns the scene of a controller as it would be with other documents: what agents reported and the
// quarantines stay, what the documents in force add to workloads goes.
func (s *scene) under(docs *model.Documents, origin string) (*scene, error) {
	declared := make(map[string]*model.Workload, len(s.docs.Workloads))
	for i := range s.docs.Workloads {
		declared[s.docs.Workloads[i].Name] = &s.docs.Workloads[i]
	}
	reports := []inventory.Report{} // not nil: there are agents to ask, even if none has come yet
	var leases []inventory.Lease
	at := map[string]int{}
	for i := range s.inv.Instances {
		inst := &s.inv.Instances[i]
		if q := inst.Quarantine; q.Level != model.QuarantineNone {
			leases = append(leases, inventory.Lease{Workload: inst.Name, Level: q.Level, InUse: q.InUse})
		}
		if inst.Host == inst.Name && inst.Host != "" {
			at[inst.Host] = len(reports)
			reports = append(reports, inventory.Report{
				Host: inst.Host, Labels: reported(inst.Labels, declared[inst.Name]), Addresses: inst.Addresses,
				Listeners: listeners(inst),
			})
		}
	}
	for i := range s.inv.Instances {
		inst := &s.inv.Instances[i]
		n, ok := at[inst.Host]
		if !ok || !inst.IsUnit() {
			continue
		}
		if declared[inst.Name] == nil {
			reports[n].Units = append(reports[n].Units, inventory.UnitReport{Name: inst.Unit})
		}
		reports[n].Listeners = append(reports[n].Listeners, listeners(inst)...)
	}
	inv, err := inventory.Build(docs, reports, leases)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return &scene{docs: docs, inv: inv, options: s.options, origin: origin, online: s.online}, nil
}

// reported returns the labels of an instance that neither its document nor the system gave it.
func reported(labels model.Labels, doc *model.Workload) model.Labels {
	own := maps.Clone(labels)
	maps.DeleteFunc(own, func(k, v string) bool {
		return strings.HasPrefix(k, model.SystemLabelPrefix) || doc != nil && doc.Labels[k] == v
	})
	return own
}

func listeners(inst *model.Instance) []inventory.ListenerReport {
	out := make([]inventory.ListenerReport, len(inst.Listening))
	for i, l := range inst.Listening {
		out[i] = inventory.ListenerReport{Unit: inst.Unit, Listener: l}
	}
	return slices.Clip(out)
}
