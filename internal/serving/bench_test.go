package serving

import (
	"context"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

const benchHidden = 1024

// identityCall returns a call of the identity as rpc makes it: all rows, nobody else about.
func identityCall(tb testing.TB, checked bool, opts ...Option) func() {
	tb.Helper()
	h := newHost(tb, func(c *Config) { c.RefuseNonFinite = checked }, opts...)
	e, err := expert.NewIdentity(benchHidden)
	require.NoError(tb, err)
	host(tb, h, 1, e)
	x, asked, ctx := expert.NewRows(make([]float32, benchHidden), benchHidden), pairs(1), context.Background()
	return func() {
		ticket := h.Admit(1, benchHidden, asked)
		if r := ticket.Run(ctx, x); r[0].Err != nil {
			tb.Fatal(r[0].Err)
		}
		_ = h.Load()
		ticket.Release()
	}
}

func TestRun_AllocatesNothingOnTheQuickWay(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes pools allocate")
	}
	call := identityCall(t, true, WithMetrics(NewMetrics(prometheus.NewRegistry())))
	require.Zero(t, testing.AllocsPerRun(1000, call))
}

// What serving adds to a call: under a microsecond, and nothing to collect.
func BenchmarkIdentity(b *testing.B) {
	for name, c := range map[string]struct {
		checked bool
		opts    []Option
	}{
		"bare":              {false, nil},
		"nan-check":         {true, nil},
		"nan-check-metrics": {true, []Option{WithMetrics(NewMetrics(prometheus.NewRegistry()))}},
	} {
		b.Run(name, func(b *testing.B) {
			call := identityCall(b, c.checked, c.opts...)
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// The same by as many callers as there are CPUs.
func BenchmarkIdentityParallel(b *testing.B) {
	h := newHost(b, nil)
	e, err := expert.NewIdentity(benchHidden)
	require.NoError(b, err)
	host(b, h, 1, e)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		x, asked, ctx := expert.NewRows(make([]float32, benchHidden), benchHidden), pairs(1), context.Background()
		for pb.Next() {
			ticket := h.Admit(1, benchHidden, asked)
			ticket.Run(ctx, x)
			ticket.Release()
		}
	})
}

// together makes n calls of one row at the same time and waits for all.
func together(h *Host, n int, row []float32, hidden int) error {
	errs := make([]error, n)
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			errs[i] = h.Local(context.Background(), expert.NewRows(row, hidden), pairs(1))[0].Err
		})
	}
	calls.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
