package world

import (
	"net/netip"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
)

// inputs are what a snapshot is made of, hosts and leases sorted by name.
type inputs struct {
	docs        *Documents
	hosts       []host
	leases      []inventory.Lease
	controllers []netip.AddrPort
	now         time.Time
	generation  uint64
}

// compiler makes snapshots from scratch. An incremental one keeps the last inputs and compiles what differs.
type compiler struct{}

func (compiler) compile(in *inputs) (*Snapshot, error) {
	reports, problems, disputed := settle(in.docs.Parsed, in.hosts)
	inv, refused, err := build(in.docs.Parsed, reports, in.leases)
	if err != nil {
		return nil, err
	}
	for host, why := range refused {
		problems[host] = append(problems[host], why)
	}
	compiled, err := compile.Compile(in.docs.Parsed, inv, compile.Options{Now: in.now, Controllers: in.controllers})
	if err != nil {
		return nil, err
	}
	return &Snapshot{
		Compiled: compiled, Problems: problems, Time: in.now,
		docs: in.docs, generation: in.generation, disputed: disputed,
	}, nil
}

// build builds the inventory. A report that does not go with the documents and the other reports is left out, so
// that one agent cannot stop the policy of all others; refused says why, by host.
func build(docs *model.Documents, reports []inventory.Report, leases []inventory.Lease) (inv *model.Inventory, refused map[string]string, err error) {
	good := make([]inventory.Report, 0, len(reports))
	refused = map[string]string{}
	var add func(list []inventory.Report) error
	add = func(list []inventory.Report) error {
		built, err := inventory.Build(docs, append(good[:len(good):len(good)], list...), leases)
		switch {
		case err == nil:
			good, inv = append(good, list...), built
			return nil
		case len(list) == 0: // the documents alone
			return err
		case len(list) == 1:
			refused[list[0].Host] = "the report is not taken: " + err.Error()
			return nil
		}
		half := len(list) / 2
		if err := add(list[:half]); err != nil {
			return err
		}
		return add(list[half:])
	}
	if err := add(reports); err != nil {
		return nil, nil, err
	}
	if inv == nil { // every report was refused
		if err := add(nil); err != nil {
			return nil, nil, err
		}
	}
	return inv, refused, nil
}
