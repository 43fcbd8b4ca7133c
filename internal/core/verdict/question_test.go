package verdict

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"bulkhead/internal/core/model"
)

func TestQuestion(t *testing.T) {
	inv := &model.Inventory{Instances: []model.Instance{{Name: "db-1"}, {Name: "web-1"}}}
	web, db := model.End{Workload: "web-1"}, model.End{Workload: "db-1"}
	for _, c := range []struct {
		from, to, on string
		want         *model.Flow
		wrong        string
	}{
		{from: "web-1", to: "db-1", on: "tcp/5432", want: &model.Flow{From: web, To: db, Proto: model.ProtoTCP, Port: 5432}},
		{from: "::ffff:10.0.0.1", to: "db-1", on: "icmp/8",
			want: &model.Flow{From: model.End{Addr: netip.MustParseAddr("10.0.0.1")}, To: db, Proto: model.ProtoICMP, Port: 8 << 8}},
		{from: "web-1", to: "db-1", on: "icmp/3/4", want: &model.Flow{From: web, To: db, Proto: model.ProtoICMP, Port: 3<<8 | 4}},
		{from: "web-1", to: "db", on: "tcp/1", wrong: `no workload "db"`},
		{from: "web-1", to: "db-1", on: "tcp/1-2", wrong: "a flow has one port"},
		{from: "web-1", to: "db-1", on: "tcp", wrong: "a flow has one port"},
		{from: "web-1", to: "db-1", on: "5432", wrong: "5432"},
	} {
		got, err := Question(inv, c.from, c.to, c.on)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s %s %s: %v, want %q", c.from, c.to, c.on, err, c.wrong)
			}
			continue
		}
		if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Addr{})); err != nil || diff != "" {
			t.Errorf("%s %s %s: %v %s", c.from, c.to, c.on, err, diff)
		}
	}
	var unknown *UnknownError
	if _, err := Question(inv, "x", "db-1", "tcp/1"); !errors.As(err, &unknown) || unknown.Name != "x" {
		t.Errorf("%v is not about x", err)
	}
}
