package p2p

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts what happens to connections. A nil *Metrics counts nothing.
type Metrics struct {
	peers       prometheus.Gauge
	disconnects prometheus.Counter
}

// NewMetrics registers the metrics of this package.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		peers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kwaai_p2p_connected_peers", Help: "Peers that this node has a connection to.",
		}),
		disconnects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_p2p_disconnects_total", Help: "Peers whose last connection ended.",
		}),
	}
	reg.MustRegister(m.peers, m.disconnects)
	return m
}

func (m *Metrics) connected() {
	if m != nil {
		m.peers.Inc()
	}
}

func (m *Metrics) disconnected() {
	if m != nil {
		m.peers.Dec()
		m.disconnects.Inc()
	}
}
