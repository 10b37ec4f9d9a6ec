package rpc_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/rpc"
)

func TestCall_ReturnsTheSameBitsInF32(t *testing.T) {
	s := newSwarm(t, options{})
	for _, shape := range [][2]int{{1, 1}, {1, 1024}, {17, 300}, {64, 256}, {65, 256}, {2048, 1024}} {
		x := ramp(shape[0], shape[1])
		reply, err := s.client.Call(within(t), s.host.ID(), x, all(7), codec.F32)
		require.NoError(t, err)
		require.Len(t, reply.Results, 1)
		require.NoError(t, reply.Results[0].Err)
		require.Equal(t, digestOf(7), reply.Results[0].Digest)
		require.Equal(t, "exact-1", reply.Results[0].Numerics)
		require.Equal(t, x.Shape(), reply.Results[0].Output.Shape())
		require.Equal(t, x.Float32s(), reply.Results[0].Output.Float32s())
		require.Less(t, reply.Bytes-int64(2*4*shape[0]*shape[1]), int64(128), "bytes that are not rows")
	}
	require.Equal(t, s.handler.admitted.Load(), s.handler.released.Load())
	require.Equal(t, 1, streams(s.caller, s.host.ID()), "one call after another takes one stream")
}

func TestCall_RoundsAsTheCodecDoes(t *testing.T) {
	s := newSwarm(t, options{})
	for _, c := range []codec.DType{codec.BF16, codec.F16} {
		for _, rows := range []int{1, 5000} {
			x := ramp(rows, 64)
			reply, err := s.client.Call(within(t), s.host.ID(), x, all(7), c)
			require.NoError(t, err)
			want := make([]float32, rows*64)
			bytes := make([]byte, c.Size(len(want)))
			codec.Encode(bytes, c, x.Float32s())
			codec.Decode(want, c, bytes)
			require.Equal(t, want, reply.Results[0].Output.Float32s())
			require.Less(t, reply.Bytes-int64(2*len(bytes)), int64(128))
		}
	}
}

func TestCall_CarriesManyPairsWithAStatusEach(t *testing.T) {
	s := newSwarm(t, options{})
	s.handler.refuse = func(_ int, p expert.Pair) error {
		switch p.Expert {
		case 2:
			return &expert.OverloadedError{RetryAfter: 250 * time.Millisecond}
		case 3:
			return errors.Join(expert.ErrNotFound, errors.New("no such expert here"))
		}
		return nil
	}
	s.handler.load = expert.Load{QueuedRows: 12, ServiceTime: 345 * time.Nanosecond}
	x := ramp(8, 16)
	pairs := []expert.Pair{{Expert: 1, Rows: []int32{7, 0, 7}}, {Expert: 2}, {Expert: 3, Rows: []int32{1}}, {Expert: 4}}
	reply, err := s.client.Call(within(t), s.host.ID(), x, pairs, codec.F32)
	require.NoError(t, err)
	require.Equal(t, s.handler.load, reply.Load)
	require.Equal(t, gather(x, pairs[0].Rows).Float32s(), reply.Results[0].Output.Float32s())
	require.ErrorIs(t, reply.Results[1].Err, expert.ErrOverloaded)
	overloaded, ok := errors.AsType[*expert.OverloadedError](reply.Results[1].Err)
	require.True(t, ok)
	require.Equal(t, 250*time.Millisecond, overloaded.RetryAfter)
	require.ErrorIs(t, reply.Results[2].Err, expert.ErrNotFound)
	require.ErrorContains(t, reply.Results[2].Err, "no such expert here")
	require.Equal(t, x.Float32s(), reply.Results[3].Output.Float32s())
}

func TestCall_ReturnsASumWherePairsHaveWeights(t *testing.T) {
	s := newSwarm(t, options{})
	s.handler.refuse = func(_ int, p expert.Pair) error {
		if p.Expert == 3 {
			return expert.ErrNotReady
		}
		return nil
	}
	for _, rows := range []int{3, 6000} { // in one write, and in many
		x := ramp(rows, 16)
		everywhere := slices.Repeat([]float32{0.25}, rows)
		pairs := []expert.Pair{
			{Expert: 1, Rows: []int32{2, 0, 2}, Weights: []float32{1, 0.5, 2}}, {Expert: 3, Rows: []int32{1}, Weights: []float32{9}}, {Expert: 4, Weights: everywhere},
		}
		reply, err := s.client.Call(within(t), s.host.ID(), x, pairs, codec.F32)
		require.NoError(t, err)
		require.ErrorIs(t, reply.Results[1].Err, expert.ErrNotReady)
		want := make([]float32, rows*16)
		expert.AddWeighted(want, gather(x, pairs[0].Rows).Float32s(), pairs[0].Rows, pairs[0].Weights, 16)
		expert.AddWeighted(want, x.Float32s(), nil, everywhere, 16)
		for _, i := range []int{0, 2} {
			require.NoError(t, reply.Results[i].Err)
			require.Nil(t, reply.Results[i].Output)
			require.Equal(t, digestOf(pairs[i].Expert), reply.Results[i].Digest)
		}
		require.Same(t, reply.Results[0].Sum, reply.Results[2].Sum)
		require.Nil(t, reply.Results[0].Sum.Rows, "all rows")
		require.Equal(t, want, reply.Results[0].Sum.Output.Float32s())
	}
	// Where nobody computes there is no sum.
	reply, err := s.client.Call(within(t), s.host.ID(), ramp(1, 16), []expert.Pair{{Expert: 3, Weights: []float32{1}}}, codec.F32)
	require.NoError(t, err)
	require.ErrorIs(t, reply.Results[0].Err, expert.ErrNotReady)
	require.Nil(t, reply.Results[0].Sum)
	require.Equal(t, s.handler.admitted.Load(), s.handler.released.Load())
	require.Equal(t, 1, streams(s.caller, s.host.ID()))
}

func TestCall_SendsOnlyTheRowsThatPairsAskFor(t *testing.T) {
	s := newSwarm(t, options{})
	const hidden = 1000
	x := ramp(100, hidden)
	for name, pairs := range map[string][]expert.Pair{
		"one":       {{Expert: 1, Rows: []int32{99}}},
		"apart":     {{Expert: 1, Rows: []int32{98, 3}}, {Expert: 2, Rows: []int32{3, 50}}},
		"neighbors": {{Expert: 1, Rows: []int32{10, 11, 12}}, {Expert: 2, Rows: []int32{12, 13, 40}}},
		"many":      {{Expert: 1, Rows: []int32{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48}}},
	} {
		distinct := map[int32]bool{}
		answered := 0
		for _, p := range pairs {
			answered += len(p.Rows)
			for _, r := range p.Rows {
				distinct[r] = true
			}
		}
		reply, err := s.client.Call(within(t), s.host.ID(), x, pairs, codec.F32)
		require.NoError(t, err, name)
		for i, p := range pairs {
			require.Equal(t, gather(x, p.Rows).Float32s(), reply.Results[i].Output.Float32s(), name)
		}
		require.InDelta(t, 4*hidden*(len(distinct)+answered), reply.Bytes, 400, name)

		for i := range pairs {
			pairs[i].Weights = slices.Repeat([]float32{1 + float32(i)}, len(pairs[i].Rows))
		}
		reply, err = s.client.Call(within(t), s.host.ID(), x, pairs, codec.F32)
		require.NoError(t, err, name)
		sum := reply.Results[0].Sum
		require.Equal(t, slices.Sorted(maps.Keys(distinct)), sum.Rows, name)
		want := make([]float32, 100*hidden)
		for _, p := range pairs {
			expert.AddWeighted(want, gather(x, p.Rows).Float32s(), p.Rows, p.Weights, hidden)
		}
		require.Equal(t, gather(expert.NewRows(want, hidden), sum.Rows).Float32s(), sum.Output.Float32s(), name)
		require.InDelta(t, 4*hidden*2*len(distinct), reply.Bytes, 600, name)
	}
}

func TestCall_EndsAtOnceWhenCancelledAndStopsTheWork(t *testing.T) {
	s := newSwarm(t, options{})
	running, stopped := make(chan struct{}), make(chan struct{})
	s.handler.run = func(ctx context.Context, _ *tensor.Dense, pairs []expert.Pair) []expert.Result {
		close(running)
		<-ctx.Done()
		close(stopped)
		return make([]expert.Result, len(pairs))
	}
	ctx, cancel := context.WithCancel(within(t))
	go func() {
		<-running
		cancel()
	}()
	_, err := s.client.Call(ctx, s.host.ID(), ramp(1, 8), all(7), codec.F32)
	require.ErrorIs(t, err, expert.ErrCancelled)
	select {
	case <-stopped:
	case <-time.After(waitFor):
		t.Fatal("the work goes on")
	}
	require.Eventually(t, func() bool { return s.handler.released.Load() == 1 }, waitFor, time.Millisecond)
	s.handler.run = nil
	require.Eventually(t, func() bool { return streams(s.caller, s.host.ID()) == 1 }, waitFor, time.Millisecond, "the burnt stream is replaced")
	_, err = s.client.Call(within(t), s.host.ID(), ramp(1, 8), all(7), codec.F32)
	require.NoError(t, err)
}

func TestCall_SaysTimeoutWhenTheDeadlinePasses(t *testing.T) {
	s := newSwarm(t, options{})
	left := make(chan time.Duration, 1)
	s.handler.run = func(ctx context.Context, _ *tensor.Dense, pairs []expert.Pair) []expert.Result {
		deadline, ok := ctx.Deadline()
		if ok {
			left <- time.Until(deadline)
		}
		<-ctx.Done()
		<-s.handler.hold // the caller's clock and ours end together; let the caller be first
		return make([]expert.Result, len(pairs))
	}
	_, err := s.client.Ping(within(t), s.host.ID()) // opens the stream, which on a busy machine takes its time
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err = s.client.Call(ctx, s.host.ID(), ramp(1, 8), all(7), codec.F32)
	close(s.handler.hold)
	require.ErrorIs(t, err, expert.ErrTimeout)
	var failed *rpc.ExchangeError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, s.host.ID(), failed.Peer)
	require.Equal(t, "wait", failed.Step)
	require.LessOrEqual(t, <-left, 300*time.Millisecond, "the host knows what is left")
	require.Eventually(t, func() bool { return s.handler.released.Load() == 1 }, waitFor, time.Millisecond)
}

func TestCall_RefusesWhatNoHostWouldTake(t *testing.T) {
	s := newSwarm(t, options{})
	x := ramp(4, 8)
	for name, test := range map[string]struct {
		x     *tensor.Dense
		pairs []expert.Pair
		as    codec.DType
		want  error
	}{
		"no tensor":   {nil, all(1), codec.F32, expert.ErrInvalidArgument},
		"no pairs":    {x, nil, codec.F32, expert.ErrInvalidArgument},
		"row outside": {x, []expert.Pair{{Expert: 1, Rows: []int32{4}}}, codec.F32, expert.ErrInvalidArgument},
		"no rows":     {x, []expert.Pair{{Expert: 1, Rows: []int32{}}}, codec.F32, expert.ErrInvalidArgument},
		"codec":       {x, all(1), codec.MXFP4, expert.ErrUnimplemented},
		"too many":    {x, make([]expert.Pair, 1025), codec.F32, expert.ErrTooLarge},
	} {
		_, err := s.client.Call(within(t), s.host.ID(), test.x, test.pairs, test.as)
		require.ErrorIs(t, err, test.want, name)
	}
	require.Zero(t, s.handler.admitted.Load())
	require.Equal(t, 1, streams(s.caller, s.host.ID()), "none of them costs the stream")
}

func TestCall_SaysDialFailedWhenNobodyIsThere(t *testing.T) {
	s := newSwarm(t, options{})
	gone := newHost(t)
	introduce(s.caller, gone)
	require.NoError(t, gone.Close())
	_, err := s.client.Call(within(t), gone.ID(), ramp(1, 8), all(1), codec.F32)
	require.ErrorIs(t, err, expert.ErrDialFailed)
	_, err = s.client.Call(within(t), peer.ID("nowhere"), ramp(1, 8), all(1), codec.F32)
	require.ErrorIs(t, err, expert.ErrDialFailed)
}

func TestCall_SaysUnimplementedWhenThePeerHasNoSuchProtocol(t *testing.T) {
	s := newSwarm(t, options{})
	other := newHost(t)
	introduce(s.caller, other)
	_, err := s.client.Call(within(t), other.ID(), ramp(1, 8), all(1), codec.F32)
	require.ErrorIs(t, err, expert.ErrUnimplemented)
}

func TestDescribe_TellsWhatTheHostHas(t *testing.T) {
	s := newSwarm(t, options{})
	want := expert.Description{
		Version: "0.1.0", FreeMemory: 1 << 40, SpeedGFLOPS: 228.5, Draining: true, Load: expert.Load{QueuedRows: 3, ServiceTime: time.Microsecond},
	}
	for i := range 5000 {
		want.Experts = append(want.Experts, expert.Hosted{
			ID: expert.ID(i), Name: expert.Name{LayerName: expert.LayerName{Model: "m", Revision: "main", Layer: "3"}, Index: i}.String(),
			State: expert.StateReady,
			Spec: expert.Spec{
				Kind: "glu", Hidden: 2048, Inner: 768, DType: "bf16", Digest: digestOf(expert.ID(i + 1)), Numerics: "exact-1", Bytes: 9 << 20,
			},
		})
	}
	s.handler.description = want
	got, err := s.client.Describe(within(t), s.host.ID())
	require.NoError(t, err)
	want.Experts[255].Digest = got.Experts[255].Digest // all zero, which means none
	require.Equal(t, want, got)
}

func TestPing_Answers(t *testing.T) {
	s := newSwarm(t, options{})
	rtt, err := s.client.Ping(within(t), s.host.ID())
	require.NoError(t, err)
	require.Positive(t, rtt)
}

func TestGoodbye_ReachesConnectedPeersAlone(t *testing.T) {
	heard := make(chan peer.ID, 1)
	s := newSwarm(t, options{serverOpts: []rpc.ServerOption{rpc.WithOnGoodbye(func(p peer.ID) { heard <- p })}})
	require.ErrorIs(t, s.client.Goodbye(within(t), s.host.ID()), expert.ErrDialFailed)
	_, err := s.client.Ping(within(t), s.host.ID())
	require.NoError(t, err)
	require.NoError(t, s.client.Goodbye(within(t), s.host.ID()))
	require.Equal(t, s.caller.ID(), <-heard)
}
