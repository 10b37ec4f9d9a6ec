package dispatch

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kwaai/kwaaid/internal/wire"
)

// Metrics counts what calls do. A nil *Metrics counts nothing.
type Metrics struct {
	calls     []prometheus.Counter // by status
	attempts  []prometheus.Counter // by status
	seconds   prometheus.Observer
	fallbacks prometheus.Counter
	lookups   prometheus.Counter
	hedges    prometheus.Counter
	unhedged  prometheus.Counter
	missed    prometheus.Counter
	same      prometheus.Counter
	different prometheus.Counter
	undecided prometheus.Counter
	liars     prometheus.Counter
}

// NewMetrics registers the metrics. It panics when they are registered already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	byStatus := func(name, help string) []prometheus.Counter {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"status"})
		reg.MustRegister(v)
		children := make([]prometheus.Counter, len(wire.Statuses()))
		for _, s := range wire.Statuses() {
			children[s] = v.WithLabelValues(s.String())
		}
		return children
	}
	one := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	seconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "kwaai_dispatch_call_seconds", Help: "Time from request to answer, of the pairs of calls.",
		Buckets: prometheus.ExponentialBuckets(100e-6, 2, 17), // 100 us to 6.5 s
	})
	reg.MustRegister(seconds)
	checks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kwaai_dispatch_checks_total", Help: "Answers that were compared with another host's, by what came of it.",
	}, []string{"result"})
	reg.MustRegister(checks)
	return &Metrics{
		calls:     byStatus("kwaai_dispatch_calls_total", "Pairs of calls by what became of them."),
		attempts:  byStatus("kwaai_dispatch_attempts_total", "Attempts at peers and at this node by what became of them."),
		seconds:   seconds,
		fallbacks: one("kwaai_dispatch_fallbacks_total", "Pairs that a fallback expert answered."),
		lookups:   one("kwaai_dispatch_lookups_total", "Look-ups of providers that calls caused."),
		hedges:    one("kwaai_dispatch_hedges_total", "Exchanges that were made because the first host was slow."),
		unhedged:  one("kwaai_dispatch_hedges_refused_total", "Hedges that were not made because the budget was used up."),
		missed:    one("kwaai_dispatch_pings_missed_total", "Pings that silent peers missed."),
		same:      checks.WithLabelValues("same"),
		different: checks.WithLabelValues("different"),
		undecided: checks.WithLabelValues("undecided"),
		liars:     one("kwaai_dispatch_liars_total", "Hosts that were shut out because two others, or their own outputs, contradicted them."),
	}
}

func (m *Metrics) decided(a *Answer, took time.Duration) {
	if m == nil {
		return
	}
	m.calls[wire.StatusOf(a.Err)].Inc()
	m.seconds.Observe(took.Seconds())
	if a.Where == WhereFallback {
		m.fallbacks.Inc()
	}
}

func (m *Metrics) attempted(err error) {
	if m != nil {
		m.attempts[wire.StatusOf(err)].Inc()
	}
}

func (m *Metrics) lookup() {
	if m != nil {
		m.lookups.Inc()
	}
}

func (m *Metrics) hedged() {
	if m != nil {
		m.hedges.Inc()
	}
}

func (m *Metrics) hedgeRefused() {
	if m != nil {
		m.unhedged.Inc()
	}
}

func (m *Metrics) pingMissed() {
	if m != nil {
		m.missed.Inc()
	}
}

// checked counts a check on which two hosts agreed; all: nobody disagreed.
func (m *Metrics) checked(all bool) {
	switch {
	case m == nil:
	case all:
		m.same.Inc()
	default:
		m.different.Inc()
	}
}

func (m *Metrics) checkUndecided() {
	if m != nil {
		m.undecided.Inc()
	}
}

func (m *Metrics) convicted() {
	if m != nil {
		m.liars.Inc()
	}
}
