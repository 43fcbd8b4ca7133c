package wire

import (
	"fmt"
	"net/netip"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
)

// InstanceToProto returns the workload as the API shows it.
func InstanceToProto(i *model.Instance) *pb.Instance {
	out := &pb.Instance{
		Name: i.Name, Labels: i.Labels, Managed: i.Managed, Host: i.Host, Unit: i.Unit,
		Quarantine: LevelToProto(i.Quarantine.Level),
	}
	for _, a := range i.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	for _, u := range i.Quarantine.InUse {
		out.InUse = append(out.InUse, &pb.InUse{Direction: DirectionToProto(u.Direction), Peer: u.Peer, Ports: u.Ports.String()})
	}
	for _, l := range i.Listening {
		text := ""
		if l.Addr.IsValid() && !l.Addr.IsUnspecified() {
			text = l.Addr.String()
		}
		out.Listening = append(out.Listening, &pb.Listening{
			Addr: text, Port: model.PortRange{Proto: l.Proto, Lo: l.Port, Hi: l.Port}.String(), Process: l.Process,
		})
	}
	return out
}

// InstanceFromProto reads what InstanceToProto wrote. The error names what cannot be read, not the workload.
func InstanceFromProto(p *pb.Instance) (model.Instance, error) {
	inst := model.Instance{Name: p.Name, Labels: p.Labels, Managed: p.Managed, Host: p.Host, Unit: p.Unit}
	for _, text := range p.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return inst, err
		}
		inst.Addresses = append(inst.Addresses, a)
	}
	var err error
	if inst.Quarantine.Level, err = LevelFromProto(p.Quarantine); err != nil {
		return inst, err
	}
	for _, u := range p.InUse {
		d, err := DirectionFromProto(u.Direction)
		if err != nil {
			return inst, err
		}
		ports, err := model.ParsePortRange(u.Ports)
		if err != nil {
			return inst, err
		}
		inst.Quarantine.InUse = append(inst.Quarantine.InUse, model.InUse{Direction: d, Peer: u.Peer, Ports: ports})
	}
	for _, l := range p.Listening {
		ports, err := model.ParsePortRange(l.Port)
		if err != nil {
			return inst, err
		}
		if ports.Lo != ports.Hi {
			return inst, fmt.Errorf("%q is not one port", l.Port)
		}
		at := model.Listener{Proto: ports.Proto, Port: ports.Lo, Process: l.Process}
		if l.Addr != "" {
			if at.Addr, err = netip.ParseAddr(l.Addr); err != nil {
				return inst, err
			}
		}
		inst.Listening = append(inst.Listening, at)
	}
	return inst, nil
}
