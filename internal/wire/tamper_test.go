package wire

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/hostpolicy"
)

// fullPolicy returns a random policy that has something in every list, so that every tampering finds its target.
func fullPolicy(t *testing.T) *hostpolicy.Policy {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	for range 1000 {
		p := randomPolicy(r)
		if len(p.Subjects) > 1 && len(p.Sets) > 1 && len(p.Ports) > 1 && len(p.Sets[0].Ingress.Peers) > 1 &&
			len(p.Sets[0].Ingress.Funcs) > 1 && len(p.Sets[0].Ingress.Funcs[0]) > 2 {
			return p
		}
	}
	t.Fatal("no policy with something in every list")
	return nil
}

func TestTamperedSnapshotIsRefused(t *testing.T) {
	cases := map[string]struct {
		change func(*pb.HostPolicy)
		want   string
	}{
		"no host":               {func(m *pb.HostPolicy) { m.Host = "" }, "names no host"},
		"a set is missing":      {func(m *pb.HostPolicy) { m.Sets = nil }, "is missing"},
		"a table is missing":    {func(m *pb.HostPolicy) { m.Sets[0].Ingress = nil }, "has hash"},
		"a verdict is opened":   {func(m *pb.HostPolicy) { c := m.Sets[0].Ingress.Funcs[0].Cells[0]; c.Verdict = (c.Verdict + 1) % 3 }, "has hash"},
		"a verdict is unknown":  {func(m *pb.HostPolicy) { m.Sets[0].Ingress.Funcs[0].Cells[0].Verdict = 9 }, "verdict 9"},
		"a rule is renamed":     {func(m *pb.HostPolicy) { m.Sets[0].Ingress.Funcs[0].Cells[0].Rule += "x" }, "has hash"},
		"a cell is missing":     {func(m *pb.HostPolicy) { f := m.Sets[0].Ingress.Funcs[0]; f.Cells = f.Cells[:2] }, "has hash"},
		"a peer is missing":     {func(m *pb.HostPolicy) { m.Sets[0].Ingress.Peers = m.Sets[0].Ingress.Peers[1:] }, "peers have"},
		"port 70000":            {func(m *pb.HostPolicy) { m.Ports[0].Port = 70000 }, "port 70000"},
		"protocol 300":          {func(m *pb.HostPolicy) { m.Ports[0].Proto = 300 }, "protocol 300"},
		"an address of 3 bytes": {func(m *pb.HostPolicy) { m.Addresses[0].Addr = []byte{1, 2, 3} }, "3 bytes"},
		"a prefix of 33 bits":   {func(m *pb.HostPolicy) { m.Addresses[0].Bits = 33 }, "33 bits"},
		"a prefix with host bits": {func(m *pb.HostPolicy) {
			m.Addresses[0].Addr, m.Addresses[0].Bits = []byte{10, 0, 0, 1}, 8
		}, "canonical prefix"},
		"an address twice":         {func(m *pb.HostPolicy) { m.Addresses = append(m.Addresses, m.Addresses[len(m.Addresses)-1]) }, "there twice"},
		"subjects swapped":         {func(m *pb.HostPolicy) { m.Subjects[0], m.Subjects[1] = m.Subjects[1], m.Subjects[0] }, "out of order"},
		"a subject without a name": {func(m *pb.HostPolicy) { m.Subjects[0].Workload = "" }, "names no workload"},
		"a controller's name":      {func(m *pb.HostPolicy) { m.Controllers = []string{"controller:7443"} }, "controller 0"},
		"a quarantine level 8":     {func(m *pb.HostPolicy) { m.Subjects[0].Quarantine = 8 }, "level 8"},
		"on agent loss 8":          {func(m *pb.HostPolicy) { m.Subjects[0].OnAgentLoss = 8 }, "on-agent-loss 8"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m := PolicyToProto(fullPolicy(t))
			c.change(m)
			p, err := PolicyFromProto(overTheWire(t, m, &pb.HostPolicy{}))
			if err == nil || p != nil {
				t.Fatalf("it was taken: %+v", p)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
	if p, err := PolicyFromProto(nil); err == nil {
		t.Errorf("no message is policy %+v", p)
	}
}

func TestTruncatedSnapshotIsNeverAnotherPolicy(t *testing.T) {
	want := fullPolicy(t)
	data, err := proto.Marshal(PolicyToProto(want))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for n := range len(data) {
		var m pb.HostPolicy
		if proto.Unmarshal(data[:n], &m) != nil {
			refused++
			continue
		}
		// A cut between two fields is a whole message to protobuf. Whatever is still well-formed must at least have
		// another hash, by which the agent's acknowledgement tells the controller.
		p, err := PolicyFromProto(&m)
		if err != nil {
			refused++
			continue
		}
		if p.Hash() == want.Hash() {
			t.Fatalf("cut at byte %d of %d, and nobody can tell", n, len(data))
		}
	}
	if refused < len(data)*9/10 {
		t.Errorf("of %d cuts only %d were refused", len(data), refused)
	}
}

func TestTruncatedDeltaIsRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	old, new := randomPolicy(r), fullPolicy(t)
	data, err := proto.Marshal(Diff(old, new))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(data) {
		var d pb.HostPolicyDelta
		if proto.Unmarshal(data[:n], &d) != nil {
			continue
		}
		if p, err := ApplyDelta(old, &d); err == nil && p.Hash() != new.Hash() {
			t.Fatalf("a delta cut at byte %d of %d was applied", n, len(data))
		}
	}
}

func TestTamperedDeltaIsRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	old, new := randomPolicy(r), fullPolicy(t)
	cases := map[string]struct {
		change func(*pb.HostPolicyDelta)
		want   error // nil: any error
	}{
		"another base":          {func(d *pb.HostPolicyDelta) { d.Base[0]++ }, ErrBase},
		"no base":               {func(d *pb.HostPolicyDelta) { d.Base = nil }, ErrBase},
		"a short base":          {func(d *pb.HostPolicyDelta) { d.Base = d.Base[:5] }, nil},
		"another result":        {func(d *pb.HostPolicyDelta) { d.Result[0]++ }, ErrResult},
		"no result":             {func(d *pb.HostPolicyDelta) { d.Result = nil }, ErrResult},
		"an address is missing": {func(d *pb.HostPolicyDelta) { d.UpsertAddresses = d.UpsertAddresses[1:] }, ErrResult},
		"an identity differs":   {func(d *pb.HostPolicyDelta) { d.UpsertAddresses[0].Identity++ }, ErrResult},
		"a set is missing":      {func(d *pb.HostPolicyDelta) { d.UpsertSets = d.UpsertSets[1:] }, ErrResult},
		"a verdict is changed": {func(d *pb.HostPolicyDelta) {
			c := d.UpsertSets[0].Ingress.Funcs[0].Cells[0]
			c.Verdict = (c.Verdict + 1) % 3
		}, ErrResult},
		"an address is bad": {func(d *pb.HostPolicyDelta) { d.UpsertAddresses[0].Addr = nil }, nil},
		"a port is bad":     {func(d *pb.HostPolicyDelta) { d.UpsertPorts[0].Port = 1 << 20 }, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := Diff(old, new)
			c.change(d)
			p, err := ApplyDelta(old, d)
			if err == nil || p != nil {
				t.Fatalf("it was taken: %+v", p)
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("error %q, want %q", err, c.want)
			}
		})
	}
	if p, err := ApplyDelta(old, nil); err == nil {
		t.Errorf("no message led to %+v", p)
	}
	if p, err := ApplyDelta(nil, Diff(old, new)); !errors.Is(err, ErrBase) {
		t.Errorf("a delta on nothing: %+v, %v", p, err)
	}
}

func FuzzPolicyFromProto(f *testing.F) {
	r := rand.New(rand.NewPCG(10, 10))
	for range 5 {
		data, err := proto.Marshal(PolicyToProto(randomPolicy(r)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m pb.HostPolicy
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		p, err := PolicyFromProto(&m)
		if err != nil {
			return
		}
		again, err := PolicyFromProto(PolicyToProto(p))
		if err != nil || again.Hash() != p.Hash() {
			t.Fatalf("a policy that was taken does not round-trip: %v", err)
		}
	})
}

func FuzzApplyDelta(f *testing.F) {
	r := rand.New(rand.NewPCG(11, 11))
	base := randomPolicy(r)
	for range 5 {
		data, err := proto.Marshal(Diff(base, randomPolicy(r)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d pb.HostPolicyDelta
		if proto.Unmarshal(data, &d) != nil {
			return
		}
		p, err := ApplyDelta(base, &d)
		if err != nil {
			return
		}
		if err := p.Check(); err != nil {
			t.Fatalf("applied, but %v", err)
		}
		if want, err := HashFromProto(d.GetResult()); err != nil || p.Hash() != want {
			t.Fatalf("applied, but the hash is %s and not %s (%v)", p.Hash(), want, err)
		}
	})
}
