package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what the gateway answers. A nil *Metrics counts nothing.
type Metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inflight prometheus.Gauge
	bodies   prometheus.Gauge
	noise    *prometheus.CounterVec
}

// NewMetrics makes the gateway's metrics and registers them. Routes and codes are closed sets: see routes.go and errors.go.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kwaai_gateway_requests_total",
			Help: "Requests answered, by route and status: an HTTP status, or the number of a gRPC code.",
		}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kwaai_gateway_request_seconds",
			Help:    "From a request's header to the last byte of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 3.1623, 12), // 0.1 ms to 31 s, two a decade
		}, []string{"route"}),
		inflight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kwaai_gateway_inflight_requests",
			Help: "Requests under way.",
		}),
		bodies: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kwaai_gateway_body_bytes",
			Help: "Memory reserved for the bodies of requests under way.",
		}),
		noise: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kwaai_gateway_noise_connections_total",
			Help: "Connections that sent bytes and never a request.",
		}, []string{"face"}),
	}
	reg.MustRegister(m.requests, m.seconds, m.inflight, m.bodies, m.noise)
	return m
}

func (m *Metrics) begin() {
	if m != nil {
		m.inflight.Inc()
	}
}

func (m *Metrics) end(route string, status int, took time.Duration) {
	if m == nil {
		return
	}
	m.inflight.Dec()
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(route).Observe(took.Seconds())
}

func (m *Metrics) reserved(bytes int64) {
	if m != nil {
		m.bodies.Add(float64(bytes))
	}
}

func (m *Metrics) noisy(face string) {
	if m != nil {
		m.noise.WithLabelValues(face).Inc()
	}
}
