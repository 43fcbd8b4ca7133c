// Package coexist tests that the dataplanes leave alone what others have put into the kernel: the rules of Docker, kube-proxy,
// firewalld and ufw are there before, meanwhile and afterwards, byte for byte, and go on doing their work.
package coexist

import (
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
	"bulkhead/internal/dataplane/ebpf"
	"bulkhead/internal/dataplane/nft"
)

//go:embed testdata
var rulesets embed.FS

func TestMain(m *testing.M) { dataplanetest.Main(m) }

// neighbour is somebody else who has rules on the host.
type neighbour struct {
	name, file string
	load       string // the program that takes the file
	probe      func(h *host)
}

func neighbours() []neighbour {
	var all []neighbour
	for _, tables := range []string{"legacy", "nft"} {
		restore := "iptables-" + tables + "-restore"
		all = append(all,
			neighbour{"docker, " + tables, "docker.rules", restore, published},
			neighbour{"kube-proxy, " + tables, "kube-proxy.rules", restore, service},
			neighbour{"ufw, " + tables, "ufw.rules", restore, closedPort("timeout")},
		)
	}
	return append(all,
		neighbour{"kube-proxy, nftables", "kube-proxy.nft", "nft -f -", service},
		neighbour{"firewalld", "firewalld.nft", "nft -f -", closedPort("EHOSTUNREACH")},
		neighbour{"marks of connections", "marks.nft", "nft -f -", marks},
	)
}

// kind is a dataplane as an agent opens it.
type kind struct {
	name string
	open func(at dataplanetest.Place) (dataplane.Dataplane, error)
}

var kinds = []kind{
	{"eBPF", func(at dataplanetest.Place) (dataplane.Dataplane, error) {
		cfg := ebpf.DefaultConfig()
		cfg.CgroupRoot, cfg.BPFFS = at.CgroupRoot, at.BPFFS
		return ebpf.Open(cfg)
	}},
	{"nftables", func(dataplanetest.Place) (dataplane.Dataplane, error) { return nft.Open(nft.DefaultConfig()) }},
}

// host is the near host of a lab, with a neighbour's rules on it.
type host struct {
	t        *testing.T
	bed      *dataplanetest.Bed
	one, far *dataplanetest.Process
	rules    string // of others, as they are when nobody has touched them
}

const (
	patience   = 10 * time.Second
	unanswered = 300 * time.Millisecond // that nothing comes can only be waited for
)

// TestCoexistence takes the dataplane through its life beside each neighbour.
func TestCoexistence(t *testing.T) {
	for _, k := range kinds {
		for _, n := range neighbours() {
			t.Run(k.name+"/"+n.name, func(t *testing.T) {
				t.Parallel()
				h := newHost(t, n)
				n.probe(h)
				h.life(k, n.probe)
			})
		}
	}
}

func newHost(t *testing.T, n neighbour) *host {
	bed := dataplanetest.NewBed(t)
	h := &host{t: t, bed: bed, one: bed.Start("one"), far: bed.StartFar()}
	bed.On(false, func() { // services have addresses that are nobody's
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		dst, err := netlink.ParseIPNet(netip.PrefixFrom(dataplanetest.PeerAddr(0), 8).Masked().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst}); err != nil {
			t.Fatal(err)
		}
	})
	h.loadRules(n)
	h.rules = h.others()
	if h.rules == "" {
		t.Fatal("the neighbour has no rules")
	}
	h.one.Listen("tcp4", dataplanetest.Near4+":20001")
	h.one.Listen("tcp4", dataplanetest.Near4+":31000")
	h.one.Listen("tcp4", dataplanetest.Near4b+":28080")
	h.far.Listen("tcp4", dataplanetest.Far4+":20080")
	h.far.Listen("tcp4", dataplanetest.Far4+":9999")
	return h
}

func (h *host) loadRules(n neighbour) {
	h.t.Helper()
	rules, err := rulesets.ReadFile("testdata/" + n.file)
	if err != nil {
		h.t.Fatal(err)
	}
	h.command(string(rules), strings.Fields(n.load)...)
}

// command runs a program on the host and returns what it prints.
func (h *host) command(input string, args ...string) string {
	h.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		dataplanetest.Cannot(h.t, "firewalls", fmt.Errorf("%w; make test installs it", err))
	}
	var out []byte
	var err error
	h.bed.On(false, func() {
		c := exec.Command(args[0], args[1:]...)
		c.Stdin = strings.NewReader(input)
		out, err = c.Output()
	})
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			h.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, exit.Stderr)
		}
		h.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// others returns all rules on the host that are not ours, without what counts packets.
func (h *host) others() string {
	h.t.Helper()
	var all strings.Builder
	for _, table := range strings.Split(h.command("", "nft", "list", "tables"), "\n") {
		if table = strings.TrimSpace(table); table != "" && table != "table inet bulkhead" {
			all.WriteString(h.command("", append([]string{"nft", "-s", "list"}, strings.Fields(table)...)...))
		}
	}
	for _, save := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		for _, line := range strings.Split(h.command("", save), "\n") {
			if !strings.HasPrefix(line, "#") { // the time
				line, _, _ = strings.Cut(line, " [")
				all.WriteString(line + "\n")
			}
		}
	}
	return strings.TrimSpace(all.String())
}

func (h *host) untouched(when string) {
	h.t.Helper()
	h.command("", "nft", "list", "ruleset") // ours must not be more than it can bear
	if now := h.others(); now != h.rules {
		h.t.Fatalf("%s the rules of others are not what they were:\n%s\n--- they were:\n%s", when, now, h.rules)
	}
}

func (h *host) open(k kind) dataplane.Dataplane {
	h.t.Helper()
	return h.bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane {
		d, err := k.open(at)
		if errors.Is(err, dataplane.ErrUnsupported) {
			dataplanetest.Cannot(t, "bpf", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

// life opens a dataplane, changes policy, isolates, repairs, hands over to the next one and removes it. After each step the
// neighbour's rules are there and do what they are for, as far as policy allows it.
func (h *host) life(k kind, probe func(*host)) {
	t := h.t
	d := h.open(k)
	defer func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	}()
	must := func(step string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		h.untouched("after: " + step)
	}
	units := map[string][]string{"a": {h.bed.Unit("one")}}
	apply := func(peers int) error {
		_, err := d.Apply(t.Context(), &dataplane.State{Policy: dataplanetest.PeersPolicy(peers), Units: units})
		return err
	}
	denied := func() {
		t.Helper()
		if err := h.one.Try("tcp4", dataplanetest.Far4+":9999", unanswered); err == "" {
			t.Error("a connection passes that policy denies")
		}
	}
	must("opening", nil)
	probe(h)
	must("a policy", apply(100))
	probe(h)
	denied()
	must("another policy", apply(50))
	probe(h)
	denied()
	_, err := d.Repair(t.Context())
	must("looking for damage", err)
	must("isolating", d.Isolate(t.Context(), "h/a", true))
	must("lifting it", d.Isolate(t.Context(), "h/a", false))
	must("breaking the glass", d.BreakGlass(t.Context(), time.Now().Add(time.Minute)))
	must("mending it", d.BreakGlass(t.Context(), time.Time{}))
	must("closing", d.Close())
	probe(h)
	denied()
	d = h.open(k)
	must("the next one opening", nil)
	must("its first policy", apply(100))
	probe(h)
	denied()
	must("removing", d.Remove())
	probe(h)
	if err := h.one.Try("tcp4", dataplanetest.Far4+":9999", patience); err != "" {
		t.Errorf("nothing is judged any more, but: %s", err)
	}
	if tables := h.command("", "nft", "list", "tables"); strings.Contains(tables, "bulkhead") {
		t.Errorf("something of ours is left: %s", tables)
	}
}

// published reaches a container's port where Docker publishes it.
func published(h *host) {
	h.t.Helper()
	if err := h.far.Try("tcp4", dataplanetest.Near4+":18080", patience); err != "" {
		h.t.Errorf("a published port: %s", err)
	}
}

// service reaches an endpoint at the address of its service.
func service(h *host) {
	h.t.Helper()
	if err := h.one.Try("tcp4", dataplanetest.PeerAddr(5).String()+":18081", patience); err != "" {
		h.t.Errorf("a service: %s", err)
	}
}

// closedPort tries a port that the neighbour leaves open and one that it does not, both of which policy allows.
func closedPort(want string) func(*host) {
	return func(h *host) {
		h.t.Helper()
		if err := h.far.Try("tcp4", dataplanetest.Near4+":20001", patience); err != "" {
			h.t.Errorf("a port that is open: %s", err)
		}
		wait := patience
		if want == "timeout" {
			wait = unanswered
		}
		if err := h.far.Try("tcp4", dataplanetest.Near4+":31000", wait); err != want {
			h.t.Errorf("a port that the neighbour closes: %q instead of %q", err, want)
		}
	}
}

// marks makes a connection and looks whether each of its packets still had the neighbour's mark.
func marks(h *host) {
	h.t.Helper()
	s := h.far.MustDial("tcp4", dataplanetest.Near4+":20001")
	defer s.Close()
	for range 3 {
		if err := s.Exchange("marked", ""); err != "" {
			h.t.Errorf("a marked connection: %s", err)
		}
	}
	if lost := h.command("", "nft", "list", "counter", "ip", "marks", "lost"); !strings.Contains(lost, "packets 0 ") {
		h.t.Errorf("marks of others were lost: %s", lost)
	}
	if kept := h.command("", "nft", "list", "counter", "ip", "marks", "kept"); strings.Contains(kept, "packets 0 ") {
		h.t.Errorf("no mark was seen: %s", kept)
	}
}

// TestOthersChangeMeanwhile has a neighbour write its rules anew again and again, as they do when services come and go, while
// policy changes: neither gets in the other's way.
func TestOthersChangeMeanwhile(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			n := neighbour{"kube-proxy", "kube-proxy.nft", "nft -f -", service}
			h := newHost(t, n)
			d := h.open(k)
			defer func() {
				if err := d.Remove(); err != nil {
					t.Error(err)
				}
			}()
			const changes = 20
			policies := make(chan error)
			go func() {
				for i := range changes {
					state := &dataplane.State{Policy: dataplanetest.PeersPolicy(50 + i), Units: map[string][]string{"a": {h.bed.Unit("one")}}}
					if _, err := d.Apply(t.Context(), state); err != nil {
						policies <- fmt.Errorf("policy %d: %w", i, err)
						return
					}
				}
				policies <- nil
			}()
			for range changes {
				h.command("delete table ip kube-proxy", "nft", "-f", "-")
				h.loadRules(n)
			}
			if err := <-policies; err != nil {
				t.Fatal(err)
			}
			h.untouched("in the end")
			service(h)
		})
	}
}
