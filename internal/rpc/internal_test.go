package rpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

func TestMetrics_CostNoAllocation(t *testing.T) {
	for _, m := range []*Metrics{nil, NewMetrics(prometheus.NewRegistry())} {
		o := outcome{op: wire.OpForward, codec: codec.BF16, status: wire.Overloaded, took: time.Millisecond, sent: 5, received: 6}
		require.Zero(t, testing.AllocsPerRun(100, func() {
			m.clientExchange(&o)
			m.serverExchange(&o)
			m.pool(true)
			m.clientStream(1)
			m.serverStream(-1)
			m.refusedStream()
			m.malformedFrame()
		}))
	}
}

func TestErrors_AreTheSentinelsThatCallersActOn(t *testing.T) {
	remote := func(code network.StreamErrorCode) error { return &network.StreamError{Remote: true, ErrorCode: code} }
	unsupported := fmt.Errorf("failed to negotiate protocol: %w", multistream.ErrNotSupported[protocol.ID]{Protos: []protocol.ID{Protocol}})
	for want, errs := range map[error][]error{
		expert.ErrReset:         {streamError(remote(codeFailed)), streamError(errors.New("connection reset"))},
		expert.ErrOverloaded:    {streamError(remote(codeStreams)), streamError(remote(network.StreamResourceLimitExceeded)), dialError(network.ErrResourceLimitExceeded)},
		expert.ErrUnimplemented: {streamError(unsupported), dialError(unsupported)},
		expert.ErrDialFailed:    {dialError(errors.New("refused"))},
	} {
		for _, err := range errs {
			require.ErrorIs(t, err, want)
			require.Equal(t, wire.StatusOf(want), wire.StatusOf(&ExchangeError{Peer: "p", Step: opWait, Err: err}))
		}
	}
}

func TestErrors_TellTheEndsOfAContextApart(t *testing.T) {
	require.NoError(t, endOf(t.Context()))
	for _, test := range []struct{ cause, want error }{
		{nil, expert.ErrCancelled},
		{context.DeadlineExceeded, expert.ErrTimeout},
		{expert.ErrTimeout, expert.ErrTimeout},
		{fmt.Errorf("another answered: %w", expert.ErrCancelled), expert.ErrCancelled},
		{fmt.Errorf("the swarm stops: %w", expert.ErrOverloaded), expert.ErrCancelled},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(test.cause)
		require.Equal(t, wire.StatusOf(test.want), wire.StatusOf(endOf(ctx)))
	}
}

func TestLimits_ForgetPeersWithoutStreams(t *testing.T) {
	cfg := DefaultServerConfig()
	cfg.StreamsPerPeer, cfg.RequestsPerPeer = 2, 5
	l, err := newPeerLimits(cfg)
	require.NoError(t, err)
	require.True(t, l.open("a"))
	require.True(t, l.open("a"))
	require.False(t, l.open("a"))
	require.True(t, l.open("b"))
	l.close("a")
	require.True(t, l.open("a"))
	l.close("a")
	l.close("a")
	l.close("b")
	require.Empty(t, l.streams)

	now := time.Now()
	for range 5 {
		_, ok := l.allow("a", now)
		require.True(t, ok)
	}
	retryAfter, ok := l.allow("a", now)
	require.False(t, ok)
	require.Equal(t, 200*time.Millisecond, retryAfter)
	_, ok = l.allow("b", now)
	require.True(t, ok, "each has its own")
	_, ok = l.allow("a", now.Add(retryAfter))
	require.True(t, ok)
	for i := range 2 * maxRated {
		l.allow(peer.ID(strconv.Itoa(i)), now)
	}
	require.Equal(t, maxRated, l.rates.Len())
}

func TestTrace_TravelsInTheHeader(t *testing.T) {
	require.Empty(t, traceparentOf(t.Context()))
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1, 2}, SpanID: trace.SpanID{3}, TraceFlags: trace.FlagsSampled})
	header := traceparentOf(trace.ContextWithSpanContext(t.Context(), span))
	require.Len(t, header, 55)
	back := trace.SpanContextFromContext(withTraceparent(t.Context(), header))
	require.Equal(t, span.TraceID(), back.TraceID())
	require.Equal(t, span.SpanID(), back.SpanID())
	require.True(t, back.IsSampled())
	require.True(t, back.IsRemote())
	require.Equal(t, t.Context(), withTraceparent(t.Context(), ""))
}

func TestFloatPool_LendsBySizeClass(t *testing.T) {
	var p floatPool
	for _, n := range []int{1, 2, 3, 4, 5, 1023, 1024, 1025} {
		f := p.get(n)
		require.Len(t, f.x, n)
		require.Less(t, cap(f.x), 2*n+1)
		p.put(f)
	}
}
