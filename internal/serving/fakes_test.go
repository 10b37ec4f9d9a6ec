package serving

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// withSlots sets how many passes run at the same time.
func withSlots(n int) Option { return func(h *Host) { h.width = n } }

const fakeHidden = 4

// fakeExpert maps each element v to 2v + shift. before, if set, runs first, on the pass's rows, and may fail or panic.
type fakeExpert struct {
	hidden   int
	shift    float32
	numerics string
	bytes    int64
	before   func(ctx context.Context, rows int, x []float32) error
	after    func(y []float32)
	others   []expert.Expert
	closed   atomic.Int32
	passes   atomic.Int32
}

func (e *fakeExpert) Spec() expert.Spec {
	numerics := e.numerics
	if numerics == "" {
		numerics = "exact-1"
	}
	return expert.Spec{
		Kind: "mlp", Hidden: e.width(), DType: "f32", Digest: sha256.Sum256([]byte{byte(e.shift)}), Numerics: numerics, Bytes: e.bytes,
	}
}

func (e *fakeExpert) width() int {
	if e.hidden == 0 {
		return fakeHidden
	}
	return e.hidden
}

func (e *fakeExpert) Forward(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	values, err := expert.Rows(x, e.width())
	if err != nil {
		return nil, err
	}
	e.passes.Add(1)
	if e.before != nil {
		if err := e.before(ctx, x.Shape()[0], values); err != nil {
			return nil, err
		}
	}
	y := make([]float32, len(values))
	for i, v := range values {
		y[i] = 2*v + e.shift
	}
	if e.after != nil {
		e.after(y)
	}
	return expert.NewRows(y, e.width()), nil
}

func (e *fakeExpert) Variants() []expert.Expert { return e.others }

func (e *fakeExpert) Close() error {
	e.closed.Add(1)
	return nil
}

// Add loads an expert, proves it, and takes calls for it: Begin and Run in one. It blocks until the expert is ready or failed.
func (h *Host) Add(ctx context.Context, offer Offer) error {
	l, err := h.Begin(offer)
	if err != nil {
		return err
	}
	return l.Run(ctx)
}

// Canary asks an expert for its canary again. Its verdict counts: an expert that does not answer as it should is failed, and
// a failed one that does is ready again. The error matches ErrNotFound, ErrNotReady or ErrInternal, or is ctx's.
func (h *Host) Canary(ctx context.Context, id expert.ID) error {
	h.mu.Lock()
	e, ok := h.experts[id]
	switch {
	case !ok:
		h.mu.Unlock()
		return fmt.Errorf("%s: %w", id, expert.ErrNotFound)
	case e.impl == nil || e.retired:
		err := h.notReady(e)
		h.mu.Unlock()
		return err
	}
	e.refs++
	h.mu.Unlock()
	return h.prove(ctx, e)
}

// slowly returns a before that takes base + perRow for each row, and stops when ctx ends.
func slowly(base, perRow time.Duration) func(context.Context, int, []float32) error {
	return func(ctx context.Context, rows int, _ []float32) error {
		select {
		case <-time.After(base + time.Duration(rows)*perRow):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func newHost(t testing.TB, change func(*Config), opts ...Option) *Host {
	t.Helper()
	cfg := DefaultConfig()
	if change != nil {
		change(&cfg)
	}
	h, err := New(cfg, opts...)
	require.NoError(t, err)
	t.Cleanup(func() {
		h.Close()
		// A pass delivers its results before it gives its slot back.
		eventually(t, func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.slots == h.width
		}, "a slot was not given back")
		h.mu.Lock()
		defer h.mu.Unlock()
		require.Zero(t, h.taken, "a ticket was not released")
		require.Zero(t, h.queued)
		require.Zero(t, h.bytes)
		require.Zero(t, h.busy.running)
		require.Nil(t, h.line.first)
		require.Empty(t, h.experts, "an expert is still referenced")
		h.budget.mu.Lock()
		defer h.budget.mu.Unlock()
		require.Zero(t, h.budget.reserved)
		require.Zero(t, h.budget.pending)
	})
	return h
}

func offer(id expert.ID, e expert.Expert) Offer {
	return Offer{ID: id, Load: func(context.Context) (expert.Expert, error) { return e, nil }}
}

func host(t testing.TB, h *Host, id expert.ID, e expert.Expert) {
	t.Helper()
	require.NoError(t, h.Add(context.Background(), offer(id, e)))
}

// input returns rows whose element c of row r is from + r + c/8: exact in float32, like what fakeExpert makes of it.
func input(rows int, from float32) *tensor.Dense {
	x := make([]float32, rows*fakeHidden)
	for i := range x {
		x[i] = from + float32(i/fakeHidden) + float32(i%fakeHidden)/8
	}
	return expert.NewRows(x, fakeHidden)
}

// wanted returns what a fakeExpert makes of the chosen rows of x.
func wanted(x *tensor.Dense, rows []int32, shift float32) []float32 {
	values := x.Float32s()
	if rows != nil {
		chosen := make([]float32, len(rows)*fakeHidden)
		gather(chosen, values, rows, fakeHidden)
		values = chosen
	}
	y := make([]float32, len(values))
	for i, v := range values {
		y[i] = 2*v + shift
	}
	return y
}

func requireOutput(t testing.TB, r expert.Result, want []float32) {
	t.Helper()
	require.NoError(t, r.Err)
	values, err := expert.Rows(r.Output, fakeHidden)
	require.NoError(t, err)
	require.Equal(t, want, values)
}

// pairs asks for all rows through each expert.
func pairs(ids ...expert.ID) []expert.Pair {
	out := make([]expert.Pair, len(ids))
	for i, id := range ids {
		out[i].Expert = id
	}
	return out
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, 10*time.Second, time.Millisecond, what)
}
