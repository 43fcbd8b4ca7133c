package suggest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/model"
)

func scan(source string, dsts []string, ports ...int) []model.RecordedFlow {
	var out []model.RecordedFlow
	for _, d := range dsts {
		for _, p := range ports {
			f := flow(fmt.Sprintf("%s %s tcp/%d 1", source, d, p))
			f.First = start.Add(time.Duration(len(out)) * time.Second)
			out = append(out, f)
		}
	}
	return out
}

func TestScans(t *testing.T) {
	normal := flows("web-1 api-1 tcp/8443 90", "web-2 api-1 tcp/8443 90", "api-1 db-1 tcp/5432 40", "api-2 db-1 tcp/5432 40")
	all := []string{"api-1", "api-2", "api-9", "db-1", "mon-1", "web-2", "web-3", "web-4"}
	ports := []int{21, 22, 23, 25, 80, 443, 3306, 5432, 6379, 8080, 9200}
	listening := estate()
	for i := range listening {
		listening[i].Listening = listeners([]string{"tcp/22 sshd", "tcp/8443 payapi", "tcp/9100 node_exporter"})
	}
	for _, c := range []struct {
		name       string
		list       []model.Instance
		flows      []model.RecordedFlow
		trusted    []string
		suspicious []string
	}{
		{"ports of one destination", estate(), scan("web-1", []string{"db-1"}, ports...), nil, []string{"web-1"}},
		{"one port of every destination, twice over", estate(), scan("web-1", all, 445, 139), nil, []string{"web-1"}},
		{"several sources that scan the same", estate(), append(scan("web-1", all, ports...), scan("web-2", append(slices.Clone(all[:5]), all[6:]...), ports...)...), nil, []string{"web-1", "web-2"}},
		{"an address", estate(), scan("203.0.113.66", all, 22, 23), nil, []string{"203.0.113.66"}},
		{"one that is trusted", estate(), scan("mon-1", all[:4], 22, 80, 443), []string{"mon-1"}, nil},
		{"few flows", estate(), scan("web-1", all[:3], 22, 80), nil, nil},
		{"what answers is no scan", listening, scan("mon-1", append(slices.Clone(all[:4]), all[5:]...), 9100), nil, nil},
		{"a sweep of administration ports is one although they answer", listening, append(scan("web-1", all, 22), scan("web-1", all, 3389)...), nil, []string{"web-1"}},
		{"closed ports at any rate", listening, repeated(scan("web-1", all, 7, 19)), nil, []string{"web-1"}},
		{"short-lived ports of one pair", estate(), append(scan("web-1", []string{"api-1"}, 50001, 50007, 51234, 52345, 53456, 54567, 55678, 56789, 57890, 58901, 59012), flow("web-1 api-1 tcp/135 90")), nil, nil},
	} {
		f := append(slices.Clone(normal), c.flows...)
		p := suggest(t, f, inventoryOf(slices.Clone(c.list)...), Options{Trusted: c.trusted})
		var got []string
		for _, s := range p.Suspicious {
			got = append(got, s.Source)
			if s.Flows < scanEdges || s.Why == "" || len(s.Examples) == 0 || s.First.IsZero() {
				t.Errorf("%s: %+v", c.name, s)
			}
		}
		if !slices.Equal(got, c.suspicious) {
			t.Errorf("%s: suspicious %v, want %v", c.name, got, c.suspicious)
		}
		for i := range f {
			want := FateLearned
			if i >= len(normal) && slices.Contains(c.suspicious, f[i].From.String()) && f[i].Connections < 90 {
				want = FateSuspicious
			}
			if p.FateOf(i) != want {
				t.Errorf("%s: %s to %s on %d is %s, want %s", c.name, f[i].From, f[i].To, f[i].Port, p.FateOf(i), want)
			}
		}
	}
}

// repeated makes each flow one that was tried often, over a long time.
func repeated(list []model.RecordedFlow) []model.RecordedFlow {
	for i := range list {
		list[i].Connections = 50
		list[i].First = start.Add(time.Duration(i) * time.Hour)
	}
	return list
}

// TestScanTakesAlong: what a worm touches among its attempts is not learnt, though others use it regularly; what its
// siblings do as well is.
func TestScanTakesAlong(t *testing.T) {
	f := flows("api-1 db-1 tcp/5432 90", "web-2 api-1 tcp/8443 90", "web-1 api-1 tcp/8443 1")
	f = append(f, scan("web-1", []string{"api-1", "api-2", "db-1", "mon-1", "web-3"}, 21, 22, 23)...)
	touched := flow("web-1 db-1 tcp/5432 1")
	touched.First = start.Add(3 * time.Second)
	f = append(f, touched)
	p := suggest(t, f, inventoryOf(estate()...), Options{})
	if got := p.FateOf(len(f) - 1); got != FateSuspicious {
		t.Errorf("the touched service is %s", got)
	}
	if got := p.FateOf(2); got != FateLearned {
		t.Errorf("what a sibling does is %s", got)
	}
	if len(p.Suspicious) != 1 || p.Suspicious[0].Flows != 16 || !strings.Contains(p.Suspicious[0].Why, "15 of these flows") {
		t.Errorf("%+v", p.Suspicious)
	}
}
