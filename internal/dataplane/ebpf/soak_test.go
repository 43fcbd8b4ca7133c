package ebpf

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

var soakFor = flag.Duration("dataplane.soak", 0, "how long TestSoak lasts; 0 skips it")

const (
	soakEnv     = "BULKHEAD_EBPF_SOAK"
	soakEvery   = 100 * time.Millisecond // between two policies
	soakBatch   = 250                    // connections, allowed and denied ones each
	soakPerSec  = 1000                   // of the allowed and the denied ones together
	soakPeers   = 500
	soakPolicy  = 64 // how many different ones there are
	soakStreams = 20 // connections that live as long as the test
)

// policyForSoak lets one port be reached, whatever the version; everything else differs between versions.
func policyForSoak(version int, port uint16) *hostpolicy.Policy {
	p := onePort(port)
	for i := range soakPeers {
		p.Addresses = append(p.Addresses, hostpolicy.Address{
			Prefix: netip.PrefixFrom(dataplanetest.PeerAddr(i), 32), Identity: model.IdentityID(1000 + (i+version)%soakPeers),
		})
	}
	p.Revision = uint64(version)
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	return p
}

// TestSoakAgent is not a test of its own: it is the agent that TestSoak kills. It prints what memory it has after some time.
func TestSoakAgent(t *testing.T) {
	place := strings.Split(os.Getenv(soakEnv), "|")
	if len(place) != 5 {
		t.Skip("only as a part of TestSoak")
	}
	port, err := strconv.ParseUint(place[3], 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.CgroupRoot, cfg.BPFFS = place[0], place[1]
	d, err := openIn(place[4], cfg)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := d.Events(context.Background(), func(*dataplane.Event) {}); err != nil {
			panic(err)
		}
	}()
	var policies []*hostpolicy.Policy
	for v := range soakPolicy {
		policies = append(policies, policyForSoak(v, uint16(port)))
	}
	units := map[string][]string{"a": {place[2]}}
	tick := time.NewTicker(soakEvery)
	for n := 0; ; n++ {
		st, err := d.Apply(context.Background(), &dataplane.State{Policy: policies[rand.IntN(soakPolicy)], Units: units})
		if err != nil {
			t.Fatal(err)
		}
		if n%10 == 0 {
			found, err := d.Repair(context.Background())
			if err := errors.Join(err, d.Beat(context.Background())); err != nil || len(found) > 0 {
				t.Fatalf("found %q, %v", found, err)
			}
		}
		fmt.Printf("soak %d %d %d\n", n, residentKiB(), st.Reset)
		<-tick.C
	}
}

// openIn opens the dataplane of the network namespace.
func openIn(path string, cfg Config) (d *Dataplane, err error) {
	n, err := openNamespace(path)
	if err != nil {
		return nil, err
	}
	err = n.run(func() (err error) {
		d, err = Open(cfg)
		return err
	})
	return d, errors.Join(err, n.Close())
}

func residentKiB() int {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	pages, _ := strconv.Atoi(strings.Fields(string(data))[1])
	return pages * os.Getpagesize() / 1024
}

// soakAgents starts agents one after the other and kills each some seconds later, until the context ends.
type soakAgents struct {
	killed, applied, reset int
	resident               []int // of each agent, KiB, when it was killed
}

func (a *soakAgents) run(ctx context.Context, bed *dataplanetest.Bed, port uint16) error {
	runtime.LockOSThread() // an agent dies with the thread that started it
	defer runtime.UnlockOSThread()
	for ctx.Err() == nil {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSoakAgent$", "-test.v", "-test.timeout=0")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%s|%d|%s", soakEnv, bed.Place.CgroupRoot, bed.Place.BPFFS, bed.Unit("one"), port,
			bed.NearNamespace()))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		die := time.AfterFunc(time.Second+time.Duration(rand.IntN(7000))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		var said strings.Builder
		n, resident := 0, 0
		for lines := bufio.NewScanner(io.TeeReader(out, &said)); lines.Scan(); {
			var reset int
			if k, _ := fmt.Sscanf(lines.Text(), "soak %d %d %d", &n, &resident, &reset); k == 3 {
				a.applied++
				a.reset += reset
			}
		}
		die.Stop()
		stop()
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			return fmt.Errorf("an agent ended by itself: %w: %s", err, said.String())
		}
		a.killed++
		if n >= 20 { // it has found its size
			a.resident = append(a.resident, resident)
		}
	}
	return nil
}

// TestSoak makes connections without pause, allowed and denied ones, while policy changes ten times a second and agents are
// killed and replaced. Nothing denied may pass and nothing allowed fail, and memory stays what it is.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("run with -dataplane.soak=10m")
	}
	d, bed := openForTest(t, func(c *Config) { c.MaxConnections = DefaultConfig().MaxConnections })
	l := newLab(bed)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: policyForSoak(0, l.allowed.Port()), Units: map[string][]string{"a": {bed.Unit("one")}}}); err != nil {
		t.Fatal(err)
	}
	maps := d.kernelMemory(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var streams []*dataplanetest.Socket
	for range soakStreams {
		streams = append(streams, l.near.MustDial("tcp4", l.allowed.Addr))
	}

	ctx, cancel := context.WithTimeout(t.Context(), *soakFor)
	defer cancel()
	var wg sync.WaitGroup
	agents := &soakAgents{}
	wg.Go(func() {
		if err := agents.run(ctx, bed, l.allowed.Port()); err != nil {
			t.Error(err)
		}
		cancel()
	})
	sums := make([]dataplanetest.Result, 2)
	for i, to := range []*dataplanetest.Socket{l.allowed, l.denied} {
		sums[i].Errors = map[string]int{}
		wg.Go(func() {
			tick := time.NewTicker(2 * soakBatch * time.Second / soakPerSec)
			defer tick.Stop()
			for ctx.Err() == nil {
				sums[i].Add(l.near.Burst("tcp4", to.Addr, soakBatch, 4))
				<-tick.C
			}
		})
	}
	wg.Wait()
	yes, no := sums[0], sums[1]
	for _, s := range streams {
		if err := s.Exchange("still there", ""); err != "" {
			t.Errorf("a connection that has lived all the while: %s", err)
		}
	}
	_, accepted := l.denied.Seen()
	d = bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane {
		return openAt(t, at, func(c *Config) { c.MaxConnections = DefaultConfig().MaxConnections })
	}).(*Dataplane)
	after := d.kernelMemory(t)
	fmt.Printf("allowed %v\ndenied %v\nagents killed %d, policies applied %d, connections reset %d\n", yes, no, agents.killed, agents.applied, agents.reset)
	first, last := agents.resident, agents.resident
	if n := len(agents.resident) / 4; n > 0 {
		first, last = first[:n], last[len(last)-n:]
	}
	fmt.Printf("agent resident, median: first quarter %d KiB, last quarter %d KiB; maps before %d KiB, after %d KiB\n",
		median(first), median(last), maps/1024, after/1024)
	if yes.Bad > 0 || yes.Good == 0 {
		t.Errorf("allowed: %v", yes)
	}
	if no.Good > 0 || no.Bad == 0 || no.Errors["EPERM"] != no.Bad || accepted > 0 {
		t.Errorf("denied: %v, %d accepted", no, accepted)
	}
	if agents.reset > 0 {
		t.Errorf("%d connections were reset, of which none may be", agents.reset)
	}
	if after > maps+maps/20 {
		t.Errorf("the maps have grown from %d to %d bytes", maps, after)
	}
}

func median(all []int) int {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// kernelMemory returns what the pinned maps take, as the kernel tells.
func (d *Dataplane) kernelMemory(t *testing.T) (sum uint64) {
	t.Helper()
	for _, m := range d.pinned {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.Memlock()
		sum += n
	}
	return sum
}
