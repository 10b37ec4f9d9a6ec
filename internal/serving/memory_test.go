package serving

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// inPlaceExpert is a fakeExpert that writes where it is told to.
type inPlaceExpert struct{ fakeExpert }

func (e *inPlaceExpert) ForwardRows(ctx context.Context, y, x []float32) error {
	out, err := e.Forward(ctx, expert.NewRows(x, e.width()))
	if err == nil {
		copy(y, out.Float32s())
	}
	return err
}

func TestRun_OutputsKeepTheirMemoryUntilAllThatShareItAreReleased(t *testing.T) {
	h := newHost(t, nil)
	host(t, h, 1, &inPlaceExpert{})
	both := []expert.Pair{{Expert: 1}, {Expert: 1, Rows: []int32{1}}} // one pass
	x := input(2, 0)
	results := h.Local(context.Background(), x, both)
	require.NoError(t, results[0].Err)
	require.NoError(t, results[1].Err)
	want := make([]float32, 0, 2*fakeHidden)
	for _, v := range x.Float32s() {
		want = append(want, 2*v)
	}
	check := func() {
		t.Helper()
		for range 10 {
			other := h.Local(context.Background(), input(3, 5), pairs(1))[0]
			require.NoError(t, other.Err)
			expert.Release(other.Memory)
		}
		require.Equal(t, want[fakeHidden:], results[1].Output.Float32s())
	}
	check()
	require.Equal(t, want, results[0].Output.Float32s())
	expert.Release(results[0].Memory)
	check()
	expert.Release(results[1].Memory)
	require.Zero(t, results[1].Memory.(*memory).shares.Load())
}

func TestRun_WhatNobodyTakesGivesItsMemoryBack(t *testing.T) {
	h := newHost(t, nil)
	host(t, h, 1, &inPlaceExpert{})
	b := &batch{lane: &h.experts[1].lanes[0], jobs: []*job{nil}} // its member has left
	y := output{memory: h.outputs.get(fakeHidden)}
	y.values = y.memory.values
	y.rows = y.memory.tensor(fakeHidden)
	h.deliver(b, 0, y.part(0, 1, fakeHidden))
	require.Equal(t, int32(1), y.memory.shares.Load())
	y.release()
	require.Zero(t, y.memory.shares.Load())
}
