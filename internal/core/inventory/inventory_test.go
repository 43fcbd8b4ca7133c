package inventory

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func host(name string, labels model.Labels, list ...string) model.Workload {
	return model.Workload{Meta: model.Meta{Name: name, Labels: labels}, Addresses: addrs(list...), Managed: true}
}

func unit(name, on, as string, labels model.Labels, list ...string) model.Workload {
	w := host(name, labels, list...)
	w.Unit = &model.Unit{Host: on, Name: as}
	return w
}

func documents(workloads ...model.Workload) *model.Documents {
	return &model.Documents{Workloads: workloads}
}

// show writes an inventory one line a workload.
func show(inv *model.Inventory) string {
	var b strings.Builder
	for _, i := range inv.Instances {
		fmt.Fprintf(&b, "%s [%s] %v host=%q", i.Name, i.Labels, i.Addresses, i.Host)
		if i.Unit != "" {
			fmt.Fprintf(&b, " unit=%q", i.Unit)
		}
		if !i.Managed {
			b.WriteString(" unmanaged")
		}
		if i.Quarantine.Level != 0 {
			fmt.Fprintf(&b, " %s %v", i.Quarantine.Level, i.Quarantine.InUse)
		}
		for _, l := range i.Listening {
			fmt.Fprintf(&b, " %s:%s/%d", l.Addr, l.Proto, l.Port)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestBuild(t *testing.T) {
	device := host("plc", model.Labels{"kind": "plc"}, "10.0.9.9")
	device.Managed = false
	listen := func(unit, addr string, port uint16) ListenerReport {
		return ListenerReport{unit, model.Listener{Addr: netip.MustParseAddr(addr), Proto: model.ProtoTCP, Port: port}}
	}
	for name, c := range map[string]struct {
		docs    *model.Documents
		reports []Report
		leases  []Lease
		want    string
	}{
		"offline, everything managed is a host of its own": {
			docs: documents(host("b", model.Labels{"app": "x"}, "10.0.0.1"), device, unit("u", "b", "u.service", model.Labels{"role": "db"})),
			want: `
b [app=x] [10.0.0.1] host="b"
plc [kind=plc] [10.0.9.9] host="" unmanaged
u [app=x,role=db] [10.0.0.1] host="b" unit="u.service"`,
		},
		"online, a host is known by its agent": {
			docs:    documents(host("declared", nil, "10.0.0.1")),
			reports: []Report{{Host: "reported", Labels: model.Labels{"app": "x"}, Addresses: addrs("10.0.0.2")}},
			want: `
declared [] [10.0.0.1] host=""
reported [app=x] [10.0.0.2] host="reported"`,
		},
		"a document wins over the token, and the two add up": {
			docs:    documents(host("h", model.Labels{"app": "doc", "env": "prod"}, "10.0.0.1")),
			reports: []Report{{Host: "h", Labels: model.Labels{"app": "token", "loc": "eu"}, Addresses: addrs("10.0.0.2", "10.0.0.1")}},
			want:    `h [app=doc,env=prod,loc=eu] [10.0.0.1 10.0.0.2] host="h"`,
		},
		"addresses are plain, and those that mean another machine everywhere are left out": {
			docs: documents(),
			reports: []Report{{Host: "h", Addresses: addrs("127.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "10.0.0.1", "0.0.0.0",
				"224.0.0.1", "169.254.1.1", "fd00::1")}},
			want: `h [] [10.0.0.1 fd00::1] host="h"`,
		},
		"units: declared ones by the document's name, found ones by host and unit, own labels win, own addresses come first": {
			docs: documents(
				host("n/found.service", model.Labels{"extra": "1"}),
				unit("db", "n", "pg.service", model.Labels{"app": "db"}, "172.17.0.2"),
			),
			reports: []Report{{
				Host: "n", Labels: model.Labels{"app": "host", "site": "x"}, Addresses: addrs("10.0.0.1"),
				Units: []UnitReport{{"pg.service"}, {"found.service"}, {"other.service"}, {"other.service"}, {""}},
			}},
			want: `
db [app=db,site=x] [172.17.0.2 10.0.0.1] host="n" unit="pg.service"
n [app=host,site=x] [10.0.0.1] host="n"
n/found.service [app=host,extra=1,site=x] [10.0.0.1] host="n" unit="found.service"
n/other.service [app=host,site=x] [10.0.0.1] host="n" unit="other.service"`,
		},
		"a unit of a host that nobody knows": {
			docs: documents(unit("u", "gone", "u.service", model.Labels{"a": "1"})),
			want: `u [a=1] [] host="gone" unit="u.service"`,
		},
		"listeners go to their unit, and to the host if it is no workload": {
			docs: documents(unit("u", "n", "u.service", nil)),
			reports: []Report{{Host: "n", Listeners: []ListenerReport{
				listen("u.service", "::ffff:10.0.0.1", 80), listen("nobody.service", "0.0.0.0", 22), listen("", "::", 23), listen("u.service", "10.0.0.1", 80),
			}}},
			want: `
n [] [] host="n" 0.0.0.0:tcp/22 :::tcp/23
u [] [] host="n" unit="u.service" 10.0.0.1:tcp/80`,
		},
		"leases set level and label on the workload alone; the strictest counts, edges add up, strangers do not count": {
			docs: documents(host("h", model.Labels{"app": "x"}), unit("u", "h", "u.service", nil)),
			leases: []Lease{
				{Workload: "h", Level: model.QuarantineRestrict, InUse: []model.InUse{{Peer: "b"}, {Peer: "a"}}},
				{Workload: "h", Level: model.QuarantineWatch, InUse: []model.InUse{{Peer: "a"}}},
				{Workload: "gone", Level: model.QuarantineIsolate},
				{Workload: "u", Level: model.QuarantineNone},
			},
			want: `
h [app=x,bulkhead/quarantine=restrict] [] host="h" restrict [{ingress a any/0} {ingress b any/0}]
u [app=x] [] host="h" unit="u.service"`,
		},
		"nothing": {docs: documents(), want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			inv, err := Build(c.docs, c.reports, c.leases)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := strings.TrimSpace(show(inv)), strings.TrimSpace(c.want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		docs    *model.Documents
		reports []Report
		want    string
	}{
		"a name twice":       {documents(host("a", nil), host("a", nil)), nil, `workload "a" is declared twice`},
		"a unit twice":       {documents(unit("a", "h", "u", nil), unit("b", "h", "u", nil)), nil, `unit "u" of host "h" is workload "a" already`},
		"a host twice":       {documents(host("h", nil)), []Report{{Host: "h"}, {Host: "h"}}, `host "h" is reported twice`},
		"twice, no document": {documents(), []Report{{Host: "h"}, {Host: "h"}}, `host "h" is reported twice`},
		"a unit as host":     {documents(unit("h", "n", "u", nil)), []Report{{Host: "h"}}, `host "h" has an agent, but the workload of that name is unit "u" of host "n"`},
		"a found unit that is something else": {
			documents(unit("h/u", "n", "x", nil)), []Report{{Host: "h", Units: []UnitReport{{"u"}}}},
			`unit "u" of host "h" would be workload "h/u", which is something else already`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Build(c.docs, c.reports, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestBuildKeepsItsHandsOff: documents, reports and leases stay as they were, and their order does not count.
func TestBuildKeepsItsHandsOff(t *testing.T) {
	labels := model.Labels{"app": "x"}
	docs := documents(host("a", labels, "10.0.0.1"), unit("u", "a", "u.service", model.Labels{}))
	reports := []Report{{Host: "a", Labels: model.Labels{"loc": "eu"}, Addresses: addrs("10.0.0.2")}, {Host: "b"}}
	leases := []Lease{{Workload: "a", Level: model.QuarantineIsolate}, {Workload: "b", Level: model.QuarantineWatch}}
	first, err := Build(docs, reports, leases)
	if err != nil {
		t.Fatal(err)
	}
	if len(labels) != 1 || len(docs.Workloads[0].Addresses) != 1 || len(reports[0].Labels) != 1 {
		t.Errorf("the input changed: %v %v %v", labels, docs.Workloads[0].Addresses, reports[0].Labels)
	}
	slices.Reverse(docs.Workloads)
	slices.Reverse(reports)
	slices.Reverse(leases)
	second, err := Build(docs, reports, leases)
	if err != nil {
		t.Fatal(err)
	}
	if show(first) != show(second) {
		t.Errorf("another order gives\n%s\nnot\n%s", show(second), show(first))
	}
}
