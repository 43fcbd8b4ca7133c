package controller_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	. "bulkhead/internal/controller/controllertest"
)

// join enrols and connects a fleet of agents, a few at a time.
func join(b *testing.B, c *Controller, agents int) []*Agent {
	b.Helper()
	list := make([]*Agent, agents)
	token := map[string]string{
		"web": c.Token(&pb.CreateTokenRequest{Uses: uint32(agents), Labels: map[string]string{"app": "shop", "role": "web"}}),
		"db":  c.Token(&pb.CreateTokenRequest{Uses: uint32(agents), Labels: map[string]string{"app": "shop", "role": "db"}}),
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range list {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			role := "web"
			if i%10 == 0 {
				role = "db"
			}
			a := c.NewAgent(fmt.Sprintf("node-%d", i))
			if err := a.Enroll(token[role]); err != nil {
				b.Error(err)
				return
			}
			a.Connect()
			a.Report(&pb.HostInventory{Addresses: Addresses(fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255))})
			list[i] = a
		})
	}
	wg.Wait()
	waitCurrent(b, c, 0)
	return list
}

// waitCurrent waits until every agent has acknowledged the policy that it should have, of the revision at least.
func waitCurrent(b *testing.B, c *Controller, revision uint64) {
	b.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		s, err := c.API.GetStatus(b.Context(), &pb.GetStatusRequest{})
		if err != nil {
			b.Fatal(err)
		}
		if s.AgentsCurrent == s.AgentsKnown && s.Revision >= revision {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("agents do not become current: %v", s)
		}
	}
}

func percentile(list []time.Duration, p int) float64 {
	slices.Sort(list)
	return float64(list[min(len(list)*p/100, len(list)-1)].Microseconds()) / 1000
}

const fleetSize = 1000

// BenchmarkRuleChange prints how long it takes from the call of apply until every one of 1,000 connected agents has
// acknowledged a rule that changes what all of them may do. Agents and controller share the machine.
func BenchmarkRuleChange(b *testing.B) {
	c := Start(b)
	if _, err := c.API.Apply(b.Context(), &pb.ApplyRequest{Files: files(shop)}); err != nil {
		b.Fatal(err)
	}
	join(b, c, fleetSize)
	var took []time.Duration
	port := 1000
	for b.Loop() {
		port++
		start := time.Now()
		resp, err := c.API.Apply(b.Context(), &pb.ApplyRequest{Files: files(strings.Replace(shop, "5432", fmt.Sprint(port), 1))})
		if err != nil {
			b.Fatal(err)
		}
		waitCurrent(b, c, resp.Revision)
		took = append(took, time.Since(start))
	}
	b.ReportMetric(percentile(took, 50), "p50-ms")
	b.ReportMetric(percentile(took, 99), "p99-ms")
	b.ReportMetric(fleetSize, "agents")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkQuarantine prints how long the call takes at one of 1,000 connected agents, until that agent has said that
// the workload is isolated.
func BenchmarkQuarantine(b *testing.B) {
	c := Start(b)
	if _, err := c.API.Apply(b.Context(), &pb.ApplyRequest{Files: files(shop)}); err != nil {
		b.Fatal(err)
	}
	join(b, c, fleetSize)
	var took []time.Duration
	n := 0
	for b.Loop() {
		workload := fmt.Sprintf("node-%d", n%fleetSize)
		n++
		start := time.Now()
		resp, err := c.API.SetQuarantine(b.Context(), &pb.SetQuarantineRequest{Workload: workload, Level: isolate})
		if err != nil || !resp.Isolated {
			b.Fatalf("%v, %v", resp, err)
		}
		took = append(took, time.Since(start))
		waitCurrent(b, c, 0) // the next call finds the fleet at rest
	}
	b.ReportMetric(percentile(took, 50), "p50-ms")
	b.ReportMetric(percentile(took, 99), "p99-ms")
	b.ReportMetric(fleetSize, "agents")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFlows prints how many flow records a second the controller takes in from ten agents, from their streams
// until they are stored and acknowledged.
func BenchmarkFlows(b *testing.B) {
	c := Start(b)
	const hosts, perBatch, inFlight = 10, 1000, 8
	list := join(b, c, hosts)
	records := make([][]*pb.FlowRecord, hosts)
	for h, a := range list {
		for p := range uint32(perBatch) {
			records[h] = append(records[h], seen(a.Host, egress, fmt.Sprintf("10.1.0.%d", h), fmt.Sprintf("192.0.2.%d", p%200), p, allow, "open", 1))
		}
	}
	sent := uint64(0)
	for b.Loop() {
		sent++
		for h, a := range list {
			a.Flows(&pb.FlowBatch{Sequence: sent, Records: records[h]})
		}
		for _, a := range list {
			for uint64(len(a.Acked()))+inFlight < sent {
				time.Sleep(time.Millisecond)
			}
		}
	}
	for _, a := range list {
		for uint64(len(a.Acked())) < sent {
			time.Sleep(time.Millisecond)
		}
	}
	b.ReportMetric(float64(sent*hosts*perBatch)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(0, "ns/op")
}
