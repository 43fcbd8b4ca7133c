package nft_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
	"bulkhead/internal/dataplane/nft"
)

// Ports of which each policy of flipped allows one half and denies the other.
const evenPort, oddPort = 20001, 30001

// flipped makes a policy of n peers in which nothing is as in the other one: every address has another identity, and what one
// allows the other denies.
func flipped(odd bool, n int) *hostpolicy.Policy {
	first, high, name := model.Allow, model.Deny, "even"
	base := model.IdentityID(1000)
	if odd {
		first, high, name, base = model.Deny, model.Allow, "odd", 2_000_000
	}
	cell := func(on string, v model.Verdict) hostpolicy.Cell {
		ports, err := model.ParsePortRange(on)
		if err != nil {
			panic(err)
		}
		return hostpolicy.Cell{Ports: ports, Verdict: v, Rule: model.RuleID(name + "/" + v.String())}
	}
	t := hostpolicy.Table{Funcs: []hostpolicy.Func{
		{cell("any", model.Deny)},
		{cell("any", model.Deny), cell("tcp/0-19999", high), cell("tcp/20000-29999", first), cell("tcp/30000-65535", high)},
	}}
	p := &hostpolicy.Policy{Host: "h"}
	peers := []netip.Addr{netip.MustParseAddr(dataplanetest.Far4)}
	for i := range n {
		peers = append(peers, dataplanetest.PeerAddr(i))
	}
	for i, a := range peers {
		id := base + model.IdentityID(i)
		p.Addresses = append(p.Addresses, hostpolicy.Address{Prefix: netip.PrefixFrom(a, 32), Identity: id})
		t.Peers = append(t.Peers, hostpolicy.PeerFunc{Peer: id, Func: 1})
	}
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	set := hostpolicy.PolicySet{Ingress: t, Egress: t}
	set.ID = set.ContentID()
	p.Sets = []hostpolicy.PolicySet{set}
	p.Subjects = []hostpolicy.Subject{{Workload: "h", Identity: 10, Set: set.ID, Isolation: set.ID}}
	return p
}

const victimEnv = "BULKHEAD_NFT_VICTIM"

// TestVictim is not a test of its own: it is the agent that TestAgentCrash kills.
func TestVictim(t *testing.T) {
	path := os.Getenv(victimEnv)
	if path == "" {
		t.Skip("only as a part of TestAgentCrash")
	}
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	d, err := nft.Open(nft.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	for version := 0; ; version++ {
		if _, err := d.Apply(context.Background(), &dataplane.State{Policy: flipped(version%2 == 1, 1000)}); err != nil {
			t.Fatal(err)
		}
		if version == 1 {
			fmt.Println("ready")
		}
	}
}

// TestAgentCrash kills agents in the middle of applying policies: the kernel judges by the old one or by the new one, and the
// next agent finds its way.
func TestAgentCrash(t *testing.T) {
	t.Parallel()
	bed := dataplanetest.NewBed(t)
	near, far := bed.Start(""), bed.StartFar()
	for _, port := range []int{evenPort, oddPort} {
		near.Listen("tcp4", fmt.Sprintf("%s:%d", dataplanetest.Near4, port))
		far.Listen("tcp4", fmt.Sprintf("%s:%d", dataplanetest.Far4, port))
	}
	// inForce tries each direction and kind of port, and says which policy all of it is of.
	inForce := func(when string) (odd bool) {
		t.Helper()
		passes := map[string]bool{}
		for _, port := range []int{evenPort, oddPort} {
			const unanswered = 1500 * time.Millisecond
			out := near.Try("tcp4", fmt.Sprintf("%s:%d", dataplanetest.Far4, port), unanswered)
			in := far.Try("tcp4", fmt.Sprintf("%s:%d", dataplanetest.Near4, port), unanswered)
			passes[fmt.Sprintf("out %d", port)], passes[fmt.Sprintf("in %d", port)] = out == "", in == ""
		}
		odd = passes[fmt.Sprintf("out %d", oddPort)]
		for what, pass := range passes {
			if ofOdd := what[len(what)-5:] == fmt.Sprint(oddPort); pass != (ofOdd == odd) {
				t.Fatalf("%s: a mixture of policies: %v", when, passes)
			}
		}
		return odd
	}
	seen := map[bool]int{}
	for range 5 {
		dataplanetest.KillVictim(t, victimEnv+"="+bed.NearNamespace(), time.Duration(rand.IntN(200))*time.Millisecond)
		odd := inForce("killed")
		seen[odd]++
		d := bed.Open(func(t testing.TB, _ dataplanetest.Place) dataplane.Dataplane {
			d, err := nft.Open(nft.DefaultConfig())
			if err != nil {
				t.Fatal(err)
			}
			return d
		})
		if inForce("taken over") != odd {
			t.Fatal("the next agent has changed the policy by itself")
		}
		if _, err := d.Apply(t.Context(), &dataplane.State{Policy: flipped(!odd, 1000)}); err != nil {
			t.Fatal(err)
		}
		if inForce("applied") == odd {
			t.Fatal("the next agent's policy is not in force")
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("found in force: %v", seen)
}
