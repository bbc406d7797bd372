package metrics

import (
	"context"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/metrics"
)

// ObserveClients counts the requests that client-go sends to API servers. The
// hooks are client-go's own package state: the first caller in a process has them.
func (m *Metrics) ObserveClients() {
	durations := []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0}
	sizes := []float64{64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"verb", "host"})
		m.main.MustRegister(h)
		return h
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.main.MustRegister(c)
		return c
	}
	metrics.Register(metrics.RegisterOpts{
		RequestLatency:     latency{histogram("rest_client_request_duration_seconds", "Request latency in seconds. Broken down by verb, and host.", durations)},
		RateLimiterLatency: latency{histogram("rest_client_rate_limiter_duration_seconds", "Client side rate limiter latency in seconds. Broken down by verb, and host.", durations)},
		RequestSize:        size{histogram("rest_client_request_size_bytes", "Request size in bytes. Broken down by verb and host.", sizes)},
		ResponseSize:       size{histogram("rest_client_response_size_bytes", "Response size in bytes. Broken down by verb and host.", sizes)},
		RequestResult:      result{counter("rest_client_requests_total", "Number of HTTP requests, partitioned by status code, method, and host.", "code", "method", "host")},
		RequestRetry:       retries{counter("rest_client_request_retries_total", "Number of request retries, partitioned by status code, verb, and host.", "code", "verb", "host")},
	})
}

type latency struct{ of *prometheus.HistogramVec }

func (l latency) Observe(_ context.Context, verb string, u url.URL, took time.Duration) {
	l.of.WithLabelValues(verb, u.Host).Observe(took.Seconds())
}

type size struct{ of *prometheus.HistogramVec }

func (s size) Observe(_ context.Context, verb, host string, bytes float64) {
	s.of.WithLabelValues(verb, host).Observe(bytes)
}

type result struct{ of *prometheus.CounterVec }

func (r result) Increment(_ context.Context, code, method, host string) {
	r.of.WithLabelValues(code, method, host).Inc()
}

type retries struct{ of *prometheus.CounterVec }

func (r retries) IncrementRetry(_ context.Context, code, verb, host string) {
	r.of.WithLabelValues(code, verb, host).Inc()
}
