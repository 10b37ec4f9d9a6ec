package dispatch

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

func wireStatus(err error) string { return wire.StatusOf(err).String() }

// counted returns the counters that are not 0, such as `attempts{RESET}`.
func counted(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	values := map[string]float64{}
	for _, f := range families {
		name := strings.TrimSuffix(strings.TrimPrefix(f.GetName(), "kwaai_dispatch_"), "_total")
		for _, m := range f.GetMetric() {
			key := name
			if labels := m.GetLabel(); len(labels) > 0 { // none has more than one
				key += "{" + labels[0].GetValue() + "}"
			}
			switch {
			case m.GetCounter().GetValue() != 0:
				values[key] = m.GetCounter().GetValue()
			case m.GetHistogram().GetSampleCount() != 0:
				values[key] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return values
}

func TestMetrics_CountWhatHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		w, d := newWorld(t, suspicious(), WithMetrics(NewMetrics(reg)))
		w.provide(1, breaks(expert.ErrReset), "broken")
		w.dht[1] = append(w.dht[1], "good")
		w.provide(2, identity, "good")
		require.NoError(t, one(t, d, 1).Err)
		time.Sleep(time.Second)
		require.Equal(t, map[string]float64{
			"calls{OK}": 1, "call_seconds": 1, "attempts{RESET}": 2, "attempts{OK}": 1, "lookups": 2,
		}, counted(t, reg))

		w.table.SetFallbacks(3, []expert.ID{2})
		require.NoError(t, one(t, d, 3).Err)
		require.Error(t, one(t, d, 4).Err)
		values := counted(t, reg)
		require.InDelta(t, 1, values["fallbacks"], 0)
		require.InDelta(t, 1, values["calls{NOT_FOUND}"], 0)

		w.provide(5, after(200*time.Millisecond, identity), "slow", "slower")
		require.NoError(t, one(t, d, 5).Err)
		require.InDelta(t, 1, counted(t, reg)["hedges"], 0)
		require.InDelta(t, 1, counted(t, reg)["attempts{CANCELLED}"], 0)
		require.EqualValues(t, 1, d.Counts().Hedges)

		w.provide(6, identity, "a", "b", "c")
		w.provide(6, lies(1), "liar")
		w.connect("a", "b", "c", "liar")
		for range 20 {
			require.NoError(t, one(t, d, 6).Err)
			synctest.Wait()
		}
		values = counted(t, reg)
		require.InDelta(t, 1, values["liars"], 0)
		require.InDelta(t, 1, values["checks{different}"], 0)
		require.Greater(t, values["checks{same}"], 10.0)

		w.table.Connected("frozen", time.Now())
		w.provide(7, frozen, "frozen")
		w.do(func() { w.pings["frozen"] = silent })
		require.Error(t, one(t, d, 7).Err)
		require.GreaterOrEqual(t, counted(t, reg)["pings_missed"], 1.0)
	})
}

func TestMetrics_CostNothing(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry())
	a := Answer{Where: WhereFallback}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		m.decided(&a, time.Millisecond)
		m.attempted(expert.ErrReset)
		m.hedged()
		m.lookup()
	}))
	var none *Metrics
	none.decided(&a, time.Millisecond)
	none.checked(true)
}
