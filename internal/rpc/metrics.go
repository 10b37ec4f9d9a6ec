package rpc

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/wire"
)

// Metrics counts exchanges on both sides. A nil *Metrics counts nothing.
type Metrics struct {
	client, server sideMetrics

	poolHits, poolMisses prometheus.Counter
	clientStreams        prometheus.Gauge
	serverStreams        prometheus.Gauge
	refusedStreams       prometheus.Counter
	malformed            prometheus.Counter
}

// sideMetrics are those that both sides have.
type sideMetrics struct {
	exchanges [codecLabels][]prometheus.Counter // by status
	seconds   prometheus.Observer
	sent      prometheus.Counter
	received  prometheus.Counter
}

// codecLabels counts the values of the label codec: those of the wire, and "none" for exchanges without rows.
const (
	codecNone   = 3
	codecLabels = 4
)

// NewMetrics registers the metrics and prepares all their children.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		poolHits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_rpc_pool_hits_total", Help: "Exchanges on a stream that was open already.",
		}),
		poolMisses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_rpc_pool_misses_total", Help: "Exchanges for which a stream had to be opened.",
		}),
		refusedStreams: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_rpc_refused_streams_total", Help: "Streams from peers that had too many open.",
		}),
		malformed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kwaai_rpc_malformed_total", Help: "Streams ended because what came was no frame of the protocol.",
		}),
	}
	streams := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "kwaai_rpc_streams", Help: "Open streams by who opened them: client is this node, server its peers.",
	}, []string{"side"})
	m.clientStreams, m.serverStreams = streams.WithLabelValues("client"), streams.WithLabelValues("server")
	exchanges := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kwaai_rpc_exchanges_total", Help: "Exchanges by side, status and codec; one with several pairs has the status of the first that failed.",
	}, []string{"side", "status", "codec"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kwaai_rpc_exchange_seconds", Help: "From the request's first byte to the reply's last, in seconds.",
		// 50 µs is an exchange on loopback; 6.5 s is above the default deadline.
		Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
	}, []string{"side"})
	transferred := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kwaai_rpc_transferred_bytes_total", Help: "Bytes of frames, headers included.",
	}, []string{"side", "direction"})
	reg.MustRegister(m.poolHits, m.poolMisses, m.refusedStreams, m.malformed, streams, exchanges, seconds, transferred)

	for side, to := range map[string]*sideMetrics{"client": &m.client, "server": &m.server} {
		to.seconds = seconds.WithLabelValues(side)
		to.sent = transferred.WithLabelValues(side, "sent")
		to.received = transferred.WithLabelValues(side, "received")
		for c := range codecLabels {
			label := "none"
			if c != codecNone {
				label = codec.DType(c).String()
			}
			for _, status := range wire.Statuses() {
				if side == "client" || status.OnWire() || status == wire.Reset {
					to.exchanges[c] = append(to.exchanges[c], exchanges.WithLabelValues(side, status.String(), label))
				} else {
					to.exchanges[c] = append(to.exchanges[c], nil)
				}
			}
		}
	}
	return m
}

// outcome is what one exchange came to: one log line, one metric.
type outcome struct {
	op             wire.Op
	codec          codec.DType // with rows alone
	rows           int
	status         wire.Status
	err            error // why it was not OK; nil where the status says it all
	took           time.Duration
	sent, received int64
}

func (m *sideMetrics) count(o *outcome) {
	c := codecNone
	if o.op == wire.OpForward && o.codec < codecNone {
		c = int(o.codec)
	}
	if counter := m.exchanges[c][o.status]; counter != nil {
		counter.Inc()
	}
	m.seconds.Observe(o.took.Seconds())
	m.sent.Add(float64(o.sent))
	m.received.Add(float64(o.received))
}

func (m *Metrics) clientExchange(o *outcome) {
	if m != nil {
		m.client.count(o)
	}
}

func (m *Metrics) serverExchange(o *outcome) {
	if m != nil {
		m.server.count(o)
	}
}

func (m *Metrics) pool(hit bool) {
	switch {
	case m == nil:
	case hit:
		m.poolHits.Inc()
	default:
		m.poolMisses.Inc()
	}
}

func (m *Metrics) clientStream(delta float64) {
	if m != nil {
		m.clientStreams.Add(delta)
	}
}

func (m *Metrics) serverStream(delta float64) {
	if m != nil {
		m.serverStreams.Add(delta)
	}
}

func (m *Metrics) refusedStream() {
	if m != nil {
		m.refusedStreams.Inc()
	}
}

func (m *Metrics) malformedFrame() {
	if m != nil {
		m.malformed.Inc()
	}
}
