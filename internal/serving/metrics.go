package serving

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// Metrics counts what a host does. A nil *Metrics counts nothing.
type Metrics struct {
	rows      prometheus.Counter
	batches   prometheus.Counter
	batchRows prometheus.Histogram
	queueRows prometheus.Gauge
	compute   prometheus.Counter
	panics    prometheus.Counter
	refused   map[wire.Status]prometheus.Counter
	experts   map[expert.State]prometheus.Gauge
}

// NewMetrics registers a host's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		rows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_serving_rows_total", Help: "Rows computed.",
		}),
		batches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_serving_batches_total", Help: "Passes through an expert.",
		}),
		batchRows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kwaai_serving_batch_rows", Help: "Rows per pass.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 13), // 1 to 4096, the default max_rows
		}),
		queueRows: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kwaai_serving_queue_rows", Help: "Rows admitted and not yet answered.",
		}),
		compute: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_serving_compute_seconds_total", Help: "Time spent in passes, all slots together.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_serving_panics_total", Help: "Panics of experts that were caught.",
		}),
		refused: make(map[wire.Status]prometheus.Counter),
		experts: make(map[expert.State]prometheus.Gauge),
	}
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kwaai_serving_refused_total", Help: "Pairs of calls that got no output, by status.",
	}, []string{"status"})
	experts := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "kwaai_serving_experts", Help: "Experts under an ID, by state.",
	}, []string{"state"})
	for _, s := range wire.Statuses() {
		if s.OnWire() && s != wire.OK || s == wire.Cancelled {
			m.refused[s] = refused.WithLabelValues(s.String())
		}
	}
	for _, s := range []expert.State{expert.StateLoading, expert.StateReady, expert.StateDraining, expert.StateFailed} {
		m.experts[s] = experts.WithLabelValues(string(s))
	}
	reg.MustRegister(m.rows, m.batches, m.batchRows, m.queueRows, m.compute, m.panics, refused, experts)
	return m
}

func (m *Metrics) passed(rows int, took time.Duration) {
	if m == nil {
		return
	}
	m.rows.Add(float64(rows))
	m.batches.Inc()
	m.batchRows.Observe(float64(rows))
	m.compute.Add(took.Seconds())
}

func (m *Metrics) queued(rows int) {
	if m == nil {
		return
	}
	m.queueRows.Set(float64(rows))
}

func (m *Metrics) panicked() {
	if m == nil {
		return
	}
	m.panics.Inc()
}

func (m *Metrics) refuse(err error) {
	if m == nil {
		return
	}
	c := m.refused[wire.StatusOf(err)]
	if c == nil {
		c = m.refused[wire.Internal]
	}
	c.Inc()
}

// moved counts an expert that goes from one state to another; "" is nowhere.
func (m *Metrics) moved(from, to expert.State) {
	if m == nil {
		return
	}
	if g := m.experts[from]; g != nil {
		g.Dec()
	}
	if g := m.experts[to]; g != nil {
		g.Inc()
	}
}
