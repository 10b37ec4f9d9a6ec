package moe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// Metrics counts what layers do, by layer: those that a node routes are few and known. A nil *Metrics counts nothing.
type Metrics struct {
	calls   *prometheus.CounterVec
	rows    *prometheus.CounterVec
	skipped *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// NewMetrics registers the metrics. It panics when they are registered already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kwaai_moe_calls_total", Help: "Calls of MoE layers by what became of them.",
		}, []string{"layer", "status"}),
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kwaai_moe_rows_total", Help: "Rows that were routed to experts and answered.",
		}, []string{"layer"}),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kwaai_moe_skipped_experts_total", Help: "Experts that calls were answered without.",
		}, []string{"layer"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kwaai_moe_call_seconds", Help: "Time from rows to the layer's output, of calls that were answered.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2, 17), // 100 us to 6.5 s
		}, []string{"layer"}),
	}
	reg.MustRegister(m.calls, m.rows, m.skipped, m.seconds)
	return m
}

// Layer returns the counters of one layer.
func (m *Metrics) Layer(name expert.LayerName) *LayerMetrics {
	if m == nil {
		return nil
	}
	layer := name.String()
	l := &LayerMetrics{
		calls: make([]prometheus.Counter, len(wire.Statuses())), rows: m.rows.WithLabelValues(layer),
		skipped: m.skipped.WithLabelValues(layer), seconds: m.seconds.WithLabelValues(layer),
	}
	for _, s := range wire.Statuses() {
		l.calls[s] = m.calls.WithLabelValues(layer, s.String())
	}
	return l
}

// LayerMetrics counts what one layer does. A nil *LayerMetrics counts nothing.
type LayerMetrics struct {
	calls   []prometheus.Counter // by status
	rows    prometheus.Counter
	skipped prometheus.Counter
	seconds prometheus.Observer
}

func (m *LayerMetrics) called(out *Output, err error, took time.Duration) {
	if m == nil {
		return
	}
	m.calls[wire.StatusOf(err)].Inc()
	if err != nil {
		return
	}
	m.rows.Add(float64(out.Routing.Rows))
	m.skipped.Add(float64(len(out.Missing)))
	m.seconds.Observe(took.Seconds())
}
