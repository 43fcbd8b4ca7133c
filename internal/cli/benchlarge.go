package cli

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/livebench"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/prove"
)

// largeBench is what is measured in the largest world only.
type largeBench struct {
	Workloads int               `json:"workloads"`
	Rules     int               `json:"rules"`
	Changes   *livebench.Result `json:"changes"`

	Guardrails        int     `json:"guardrails"`
	GuardrailsHold    int     `json:"guardrails_hold"`
	GuardrailsSeconds float64 `json:"guardrails_seconds"` // to prove all of them

	GuardrailsCPUSeconds float64 `json:"guardrails_cpu_seconds"`

	Flows        int     `json:"flows"` // recorded flows that a plan judges
	FlowsChanged int     `json:"flows_changed"`
	PlanSeconds  float64 `json:"plan_seconds"`

	PlanCPUSeconds float64 `json:"plan_cpu_seconds"`
}

const (
	liveSamples    = 1000
	liveChecks     = 100 // hosts whose policy is compared with a full compile in the end
	benchProofs    = 100
	benchPlanFlows = 1_000_000
)

// benchLarge measures single changes, proofs and a plan. Each says what it found, so that work not done shows.
func benchLarge(size estate.Size, samples int) (*largeBench, error) {
	b := &largeBench{Workloads: size.Workloads, Rules: size.Rules, Guardrails: benchProofs, Flows: benchPlanFlows}
	start := time.Now()
	var err, unclocked error
	clock := func() time.Duration {
		t, err := cpuTime()
		unclocked = cmp.Or(unclocked, err)
		return t
	}
	thread := func() time.Duration {
		t, err := threadTime()
		unclocked = cmp.Or(unclocked, err)
		return t
	}
	runtime.LockOSThread()
	b.Changes, err = livebench.Run(size, samples, liveChecks, livebench.Clocks{Thread: thread, Process: clock})
	runtime.UnlockOSThread()
	if err = cmp.Or(err, unclocked); err != nil {
		return nil, fmt.Errorf("measure single changes: %w", err)
	}
	docs, inv := estate.Make(size)
	docs.Guardrails = estate.Guardrails(benchProofs)
	before, err := compile.Compile(docs, inv, compile.Options{Now: start})
	if err != nil {
		return nil, fmt.Errorf("compile the bench: %w", err)
	}
	begin, used := time.Now(), clock()
	proofs := prove.Guardrails(before)
	b.GuardrailsSeconds, b.GuardrailsCPUSeconds = time.Since(begin).Seconds(), (clock() - used).Seconds()
	for i := range proofs {
		if proofs[i].Undecided != "" {
			return nil, fmt.Errorf("guardrail %s is undecided: %s", proofs[i].Name, proofs[i].Undecided)
		}
		if proofs[i].Holds {
			b.GuardrailsHold++
		}
	}
	changed := *docs
	changed.Segments = slices.Clone(docs.Segments)
	changed.Segments[0].Mode = model.ModeEnforce
	after, err := compile.Compile(&changed, inv, compile.Options{Now: start})
	if err != nil {
		return nil, fmt.Errorf("compile the bench: %w", err)
	}
	flows := make([]model.RecordedFlow, benchPlanFlows)
	any := anyFlows(before, inv)
	for i := range flows {
		flows[i] = model.RecordedFlow{Flow: any[i%len(any)], Connections: 1}
	}
	begin, used = time.Now(), clock()
	p, err := plan.Make(before, after, flows, plan.Options{})
	if err != nil {
		return nil, fmt.Errorf("plan the bench: %w", err)
	}
	b.PlanSeconds, b.PlanCPUSeconds = time.Since(begin).Seconds(), (clock() - used).Seconds()
	if unclocked != nil {
		return nil, unclocked
	}
	b.FlowsChanged = len(p.Flows.Changed) + p.Flows.Omitted
	if p.Flows.Judged != len(flows) {
		return nil, fmt.Errorf("the plan judged %d of %d flows", p.Flows.Judged, len(flows))
	}
	return b, nil
}

func (b *largeBench) text(p *page) {
	p.line("")
	p.line("With %s workloads and %s rules:", thousands(uint64(b.Workloads)), thousands(uint64(b.Rules)))
	t := newTable("SINGLE CHANGE", ">SAMPLES", ">P50", ">P99", ">GREATEST", ">ALL THREADS", ">ONE HOST", ">P99", ">HOSTS TOLD", ">ALL", ">P99")
	for i := range b.Changes.Figures {
		f := &b.Changes.Figures[i]
		t.add(f.Kind, thousands(uint64(f.Samples)), micro(f.Apply.P50), micro(f.Apply.P99), micro(f.Apply.Max), micro(f.Process.P99),
			micro(f.One.P50), micro(f.One.P99), thousands(uint64(f.Hosts)), micro(f.All.P50), micro(f.All.P99))
	}
	p.table(t, "no change was measured")
	p.line("")
	p.line("Processor time, of the thread that makes the change, until the delta of any host can be drawn, which then takes as long as")
	p.line("ONE HOST says: that of the host which changed, or of any if documents did. ALL is to draw those of all other hosts that are")
	p.line("told something. ALL THREADS is the 99th percentile of the first with what other threads do meanwhile: collect garbage.")
	p.line("%s of %s guardrails hold; proved in %.3f s, %.3f s of processor time.", thousands(uint64(b.GuardrailsHold)), thousands(uint64(b.Guardrails)),
		b.GuardrailsSeconds, b.GuardrailsCPUSeconds)
	p.line("A plan against %s recorded flows, of which %s change, takes %.3f s, %.3f s of processor time.",
		thousands(uint64(b.Flows)), thousands(uint64(b.FlowsChanged)), b.PlanSeconds, b.PlanCPUSeconds)
}

// micro writes a duration to three digits or so.
func micro(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(100 * time.Nanosecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}
