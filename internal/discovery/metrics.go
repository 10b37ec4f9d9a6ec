package discovery

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts look-ups and announcements. A nil *Metrics counts nothing.
type Metrics struct {
	finds     map[string]prometheus.Counter
	walks     prometheus.Histogram
	rounds    prometheus.Histogram
	records   *prometheus.CounterVec
	accepted  prometheus.Counter
	failed    prometheus.Counter
	announced prometheus.Gauge
	table     prometheus.Gauge
}

// How a Find was answered; the values of the label `answer`.
const (
	answerCache = "cache"
	answerWalk  = "walk"
	answerNone  = "none"
	answerError = "error"
)

// NewMetrics registers the metrics of this package.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	finds := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kwaai_discovery_finds_total", Help: "Look-ups of experts, by what answered them.",
	}, []string{"answer"})
	m := &Metrics{
		finds: map[string]prometheus.Counter{},
		walks: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kwaai_discovery_walk_seconds", Help: "Duration of walks of the DHT, to their end.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
		rounds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kwaai_discovery_announce_round_seconds", Help: "Duration of rounds of announcing.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 15),
		}),
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kwaai_discovery_announcements_total", Help: "Batches of records sent to a peer, by whether it took them.",
		}, []string{"result"}),
		announced: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kwaai_discovery_announced_experts", Help: "Experts of this node whose announcement is valid.",
		}),
		table: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kwaai_discovery_routing_table_peers", Help: "Peers in the DHT's routing table.",
		}),
	}
	for _, answer := range []string{answerCache, answerWalk, answerNone, answerError} {
		m.finds[answer] = finds.WithLabelValues(answer)
	}
	m.accepted, m.failed = m.records.WithLabelValues("accepted"), m.records.WithLabelValues("failed")
	reg.MustRegister(finds, m.walks, m.rounds, m.records, m.announced, m.table)
	return m
}

func (m *Metrics) found(answer string) {
	if m != nil {
		m.finds[answer].Inc()
	}
}

func (m *Metrics) walked(took time.Duration) {
	if m != nil {
		m.walks.Observe(took.Seconds())
	}
}

func (m *Metrics) sent(err error) {
	switch {
	case m == nil:
	case err == nil:
		m.accepted.Inc()
	default:
		m.failed.Inc()
	}
}

func (m *Metrics) round(took time.Duration, announced int) {
	if m != nil {
		m.rounds.Observe(took.Seconds())
		m.announced.Set(float64(announced))
	}
}

func (m *Metrics) peers(n int) {
	if m != nil {
		m.table.Set(float64(n))
	}
}
