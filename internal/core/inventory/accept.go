package inventory

import "bulkhead/internal/core/model"

// Accept is Build with reports, which are sorted by host, but a report that does not go with the documents and those before it
// is left out, so that one agent cannot stop the policy of all others; refused says why, by host. The error is one of the
// documents alone.
func Accept(docs *model.Documents, reports []Report, leases []Lease) (inv *model.Inventory, refused map[string]error, err error) {
	good := make([]Report, 0, len(reports))
	refused = map[string]error{}
	var add func(list []Report) error
	add = func(list []Report) error {
		built, err := Build(docs, append(good[:len(good):len(good)], list...), leases)
		switch {
		case err == nil:
			good, inv = append(good, list...), built
			return nil
		case len(list) == 0: // the documents alone
			return err
		case len(list) == 1:
			refused[list[0].Host] = err
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
