package serving

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestMetrics_CountWhatTheHostDoes(t *testing.T) {
	reg := prometheus.NewRegistry()
	h := newHost(t, nil, WithMetrics(NewMetrics(reg)))
	host(t, h, 1, &fakeExpert{})
	_, err := h.Begin(offer(2, &fakeExpert{}))
	require.NoError(t, err)
	require.NoError(t, h.Local(context.Background(), input(3, 0), pairs(1))[0].Err)
	h.Local(context.Background(), input(1, 0), pairs(2, 9, 9))
	queued := h.Admit(5, fakeHidden, pairs(1))
	defer queued.Release()

	got := values(t, reg)
	for name, want := range map[string]float64{
		"kwaai_serving_rows_total":                       3,
		"kwaai_serving_batches_total":                    1,
		"kwaai_serving_batch_rows":                       3,
		"kwaai_serving_queue_rows":                       5,
		"kwaai_serving_panics_total":                     0,
		"kwaai_serving_experts loading":                  1,
		"kwaai_serving_experts ready":                    1,
		"kwaai_serving_experts draining":                 0,
		"kwaai_serving_experts failed":                   0,
		"kwaai_serving_refused_total NOT_FOUND":          2,
		"kwaai_serving_refused_total NOT_READY":          1,
		"kwaai_serving_refused_total OVERLOADED":         0,
		"kwaai_serving_refused_total RESOURCE_EXHAUSTED": 0,
		"kwaai_serving_refused_total CANCELLED":          0,
	} {
		require.Contains(t, got, name)
		require.InDelta(t, want, got[name], 0, name)
	}
	require.Positive(t, got["kwaai_serving_compute_seconds_total"])
}

// values gathers a registry: by name and label value, histograms by their sum.
func values(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			if labels := m.GetLabel(); len(labels) > 0 {
				name += " " + labels[0].GetValue()
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetHistogram().GetSampleSum()
		}
	}
	return out
}

func TestMetrics_AllocateNothing(t *testing.T) {
	for name, m := range map[string]*Metrics{"none": nil, "some": NewMetrics(prometheus.NewRegistry())} {
		t.Run(name, func(t *testing.T) {
			require.Zero(t, testing.AllocsPerRun(100, func() {
				m.passed(3, time.Millisecond)
				m.queued(5)
				m.panicked()
				m.refuse(expert.ErrOverloaded)
				m.moved(expert.StateLoading, expert.StateReady)
				m.moved(expert.StateReady, "")
			}))
		})
	}
}
