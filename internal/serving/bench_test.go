package serving

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
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

// What natural batching is for: 16 calls of one row at the same time against one call of 16 rows, on an expert whose weights
// have to come from memory. ratio is the median time of the first by that of the second; they take turns in one run.
func BenchmarkTogether(b *testing.B) {
	const hidden, inner, callers = 2048, 768, 16
	pool := kernel.NewPool(runtime.GOMAXPROCS(0))
	defer pool.Close()
	e, err := expert.New(expert.Params{
		Kind: expert.KindGLU, Hidden: hidden, Inner: inner, DType: expert.DTypeBF16, Init: &expert.Init{Seed: 1},
	}, expert.Engine{Pool: pool, Numerics: kernel.Exact})
	require.NoError(b, err)
	h := newHost(b, nil)
	host(b, h, 1, e)
	x := CanaryInput(hidden)
	for len(x) < callers*hidden {
		x = append(x, x...)
	}
	batch := expert.NewRows(x[:callers*hidden], hidden)
	call := func(x *tensor.Dense) {
		if r := h.Local(context.Background(), x, pairs(1))[0]; r.Err != nil {
			b.Error(r.Err)
		}
	}

	var apart, one []time.Duration
	for b.Loop() {
		started := time.Now()
		var calls sync.WaitGroup
		for i := range callers {
			calls.Go(func() { call(expert.NewRows(x[i*hidden:(i+1)*hidden], hidden)) })
		}
		calls.Wait()
		apart = append(apart, time.Since(started))
		started = time.Now()
		call(batch)
		one = append(one, time.Since(started))
	}
	slices.Sort(apart)
	slices.Sort(one)
	b.ReportMetric(apart[len(apart)/2].Seconds()*1e3, "ms/16x1")
	b.ReportMetric(one[len(one)/2].Seconds()*1e3, "ms/1x16")
	b.ReportMetric(float64(apart[len(apart)/2])/float64(one[len(one)/2]), "ratio")
}
