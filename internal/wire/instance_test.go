package wire

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
)

func TestInstance(t *testing.T) {
	in := model.Instance{
		Name: "db", Labels: model.Labels{"app": "payments"}, Managed: true, Host: "h", Unit: "db.service",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Quarantine: model.Quarantine{Level: model.QuarantineRestrict, InUse: []model.InUse{
			{Direction: model.Egress, Peer: "api", Ports: model.PortRange{Proto: model.ProtoTCP, Lo: 1, Hi: 9}},
		}},
		Listening: []model.Listener{
			{Proto: model.ProtoTCP, Port: 5432, Process: "postgres"},
			{Proto: model.ProtoUDP, Port: 53, Addr: netip.MustParseAddr("10.0.0.1")},
		},
	}
	out, err := InstanceFromProto(InstanceToProto(&in))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in, out, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}
}

func TestInstanceThatCannotBeRead(t *testing.T) {
	for want, p := range map[string]*pb.Instance{
		"10.0.0.300": {Addresses: []string{"10.0.0.300"}},
		"tcp/70000":  {Listening: []*pb.Listening{{Port: "tcp/70000"}}},
		"tcp/1-2":    {Listening: []*pb.Listening{{Port: "tcp/1-2"}}},
		"nowhere":    {Listening: []*pb.Listening{{Port: "tcp/1", Addr: "nowhere"}}},
		"level":      {Quarantine: 99},
		"direction":  {InUse: []*pb.InUse{{Direction: 99, Ports: "tcp/1"}}},
		"tcp/x":      {InUse: []*pb.InUse{{Direction: pb.Direction_DIRECTION_EGRESS, Ports: "tcp/x"}}},
	} {
		if _, err := InstanceFromProto(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that says %s", err, want)
		}
	}
}
