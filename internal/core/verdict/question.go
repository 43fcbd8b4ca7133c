package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// UnknownError says that an end of a question is neither a workload of the inventory nor an address.
type UnknownError struct{ Name string }

// Error names it.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("there is no workload %q, and it is not an address", e.Name)
}

// Question reads a flow as people write it: two workloads by name, or addresses, and tcp/5432, udp/53 or icmp/8/0, where icmp/8
// stands for code 0. The error is an *UnknownError, or says how to write the port.
func Question(inv *model.Inventory, from, to, on string) (*model.Flow, error) {
	f := &model.Flow{}
	var err error
	if f.From, err = questionEnd(inv, from); err != nil {
		return nil, err
	}
	if f.To, err = questionEnd(inv, to); err != nil {
		return nil, err
	}
	r, err := model.ParsePortRange(on)
	if err != nil {
		return nil, err
	}
	if r.Proto.IsICMP() && r.Hi == r.Lo|0xff && r.Lo&0xff == 0 {
		r.Hi = r.Lo
	}
	if !r.Single() {
		return nil, fmt.Errorf("port %q: a flow has one port: use tcp/5432, udp/53 or icmp/8/0", on)
	}
	f.Proto, f.Port = r.Proto, r.Lo
	return f, nil
}

func questionEnd(inv *model.Inventory, text string) (model.End, error) {
	if _, ok := slices.BinarySearchFunc(inv.Instances, text, func(i model.Instance, name string) int { return strings.Compare(i.Name, name) }); ok {
		return model.End{Workload: text}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return model.End{Addr: a.Unmap().WithZone("")}, nil
	}
	return model.End{}, &UnknownError{text}
}
