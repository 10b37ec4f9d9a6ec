package kernel

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMeasureLimits_FindsWhatThePathHas(t *testing.T) {
	if testing.Short() || underRace {
		t.Skip("takes a second of all CPUs")
	}
	pool := newTestPool(t, 0)
	l, err := MeasureLimits(context.Background(), pool)
	require.NoError(t, err)
	require.Equal(t, pool.threads, l.Threads)
	require.Positive(t, l.ReadGBs)
	require.Positive(t, l.FMAGFLOPS)
	require.Equal(t, pool.set.path == PathBF16, l.BF16GFLOPS > 0)
}

func TestMeasureLimits_StopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("gone")
	cancel(gone)
	_, err := MeasureLimits(ctx, newTestPool(t, 1))
	require.ErrorIs(t, err, gone)
}

func TestLimits_TheSlowerOfReadingAndArithmeticBinds(t *testing.T) {
	l := Limits{ReadGBs: 10, FMAGFLOPS: 100, BF16GFLOPS: 200}
	require.InDelta(t, 0.5, l.Of(2*time.Second, Work{FMA: 1e9, Bytes: 10e9}), 1e-9)
	require.InDelta(t, 0.25, l.Of(4*time.Second, Work{FMA: 100e9, Bytes: 1e9}), 1e-9)
	require.InDelta(t, 0.125, l.Of(4*time.Second, Work{BF16: 100e9, Bytes: 1e9}), 1e-9)
	require.InDelta(t, 0.375, l.Of(4*time.Second, Work{FMA: 100e9, BF16: 100e9, Bytes: 1e9}), 1e-9, "one after the other")
	l.BF16GFLOPS = 0
	require.InDelta(t, 0.25, l.Of(4*time.Second, Work{FMA: 100e9}), 1e-9, "a machine without VDPBF16PS")
}
