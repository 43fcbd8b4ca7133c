package controller

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"bulkhead/internal/store"
)

// healthHandler serves /metrics, /healthz (the process runs) and /readyz (it can do its work).
func (p *parts) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.metrics.Registry, promhttp.HandlerOpts{Registry: p.metrics.Registry}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := p.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// ready reports why the controller cannot do its work.
func (p *parts) ready(ctx context.Context) error {
	if !p.listening.Load() {
		return fmt.Errorf("not listening yet")
	}
	if p.world.Snapshot() == nil {
		return fmt.Errorf("the world is not compiled yet")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := p.store.View(ctx, func(r store.Reader) error {
		_, err := r.AuditHead()
		return err
	}); err != nil {
		p.log.Error("the store cannot be read", "error", err)
		return fmt.Errorf("the store cannot be read; the controller's log says why")
	}
	return nil
}

// countElsewhere adds what other parts count to the metrics.
func (p *parts) countElsewhere() {
	m, c := p.metrics, p.flows.Counters()
	m.Gauge("bulkhead_agents_known", "Agents that have enrolled and not been revoked.", func() float64 { return float64(p.fleet.Totals().Known) })
	m.Gauge("bulkhead_agents_connected", "Agents that are connected.", func() float64 { return float64(p.fleet.Totals().Connected) })
	m.Gauge("bulkhead_agents_current", "Agents that are connected and have acknowledged the policy they should have.",
		func() float64 { return float64(p.fleet.Totals().Current) })
	m.Gauge("bulkhead_revision", "Number of the newest revision.", func() float64 { return float64(p.world.Snapshot().Revision()) })
	m.Gauge("bulkhead_workloads", "Workloads there are.", func() float64 { return float64(p.world.Snapshot().Len()) })
	m.Gauge("bulkhead_quarantines", "Workloads in quarantine.", func() float64 { return float64(len(p.quarantine.List())) })
	m.Counter("bulkhead_flow_records_total", "Flow records stored.", nil, func() float64 { return float64(c.Taken.Load()) })
	lost := func(where string, n func() uint64) {
		m.Counter("bulkhead_flow_records_lost_total", "Flow records that are missing from the history, by where they were lost.",
			map[string]string{"where": where}, func() float64 { return float64(n()) })
	}
	lost("agent", c.LostAgent.Load)
	lost("store", c.LostHere.Load)
	lost("rejected", c.Rejected.Load)
	m.Counter("bulkhead_flow_batches_repeated_total", "Batches of flow records that had been stored before.", nil, func() float64 { return float64(c.Repeated.Load()) })
	m.Counter("bulkhead_flow_records_shifted_total", "Flow records from the future, moved to the present.", nil, func() float64 { return float64(c.Shifted.Load()) })
	m.Counter("bulkhead_flow_store_failures_total", "Failures of the flow store.", nil, func() float64 { return float64(c.Failures.Load()) })
}
