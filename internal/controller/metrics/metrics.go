// Package metrics holds what the controller counts for Prometheus. Each controller has a registry of its own.
package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics are the controller's own counters. What is known elsewhere is added by Gauge and Counter.
type Metrics struct {
	Registry *prometheus.Registry

	CompileSeconds  prometheus.Histogram
	CompileFailures prometheus.Counter
	PushSeconds     prometheus.Histogram   // from sending a policy to its acknowledgement
	PoliciesSent    *prometheus.CounterVec // by form: snapshot, delta
	PolicyRefusals  prometheus.Counter
	Enrollments     *prometheus.CounterVec // by result: ok, refused
	Renewals        prometheus.Counter
	Denials         *prometheus.CounterVec // by service
	IsolateSeconds  prometheus.Histogram   // from the call to the agent's word
	BadMessages     prometheus.Counter     // of agents, that made no sense
	StoreFailures   prometheus.Counter
	Requests        *prometheus.HistogramVec // by procedure and code
}

// Seconds from 1 ms to 16 s.
var seconds = prometheus.ExponentialBuckets(0.001, 2, 15)

// New returns metrics with a registry that also knows the process.
func New() *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		CompileSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulkhead_compile_seconds", Help: "Time to compile the world.", Buckets: seconds}),
		CompileFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_compile_failures_total", Help: "Compilations that failed."}),
		PushSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulkhead_push_seconds", Help: "Time from sending a policy to an agent to its acknowledgement.", Buckets: seconds}),
		PoliciesSent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_policies_sent_total", Help: "Policies sent to agents."}, []string{"form"}),
		PolicyRefusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_policies_refused_total", Help: "Policies that agents refused."}),
		Enrollments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_enrollments_total", Help: "Enrolments of agents."}, []string{"result"}),
		Renewals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_certificate_renewals_total", Help: "Certificates renewed by agents."}),
		Denials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_denials_total", Help: "Requests that were not let in."}, []string{"service"}),
		IsolateSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulkhead_quarantine_seconds", Help: "Time from the call for a quarantine to the agent's word that it is in its kernel.", Buckets: seconds}),
		BadMessages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_bad_messages_total", Help: "Messages of agents that made no sense."}),
		StoreFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_store_failures_total", Help: "Failures of the store."}),
		Requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bulkhead_rpc_seconds", Help: "Time to serve a request, streams excepted.", Buckets: seconds}, []string{"procedure", "code"}),
	}
	m.Registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.CompileSeconds, m.CompileFailures, m.PushSeconds, m.PoliciesSent, m.PolicyRefusals, m.Enrollments, m.Renewals,
		m.Denials, m.IsolateSeconds, m.BadMessages, m.StoreFailures, m.Requests,
	)
	return m
}

// Gauge adds a value that is asked for when Prometheus asks.
func (m *Metrics) Gauge(name, help string, value func() float64) {
	m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Counter adds a count that is kept elsewhere.
func (m *Metrics) Counter(name, help string, labels map[string]string, value func() float64) {
	m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, value))
}
