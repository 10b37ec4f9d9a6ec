package rpc_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/wire"
)

// frame makes a request's frame up to its payload, without the limits of an honest caller.
func frame(t testing.TB, r wire.Request) []byte {
	t.Helper()
	limits := wire.DefaultLimits()
	limits.Frame, limits.Pairs, limits.Header = 1<<60, 1<<20, 64<<20
	b, err := wire.AppendRequest(nil, &r, limits)
	require.NoError(t, err)
	return b
}

func forward(rows, hidden int, pairs ...expert.Pair) wire.Request {
	return wire.Request{Op: wire.OpForward, Input: wire.Tensor{Rows: rows, Hidden: hidden, Codec: codec.F32}, Pairs: pairs}
}

func manyPairs(n int) []expert.Pair {
	pairs := make([]expert.Pair, n)
	for i := range pairs {
		pairs[i].Expert = expert.ID(i)
	}
	return pairs
}

// readReply reads a reply's header.
func readReply(t testing.TB, r *bufio.Reader, request wire.Request) wire.Reply {
	t.Helper()
	h, err := wire.ReadHeader(r, nil, 1<<20)
	require.NoError(t, err)
	reply, err := wire.DecodeReply(h, wire.Wanted{
		Op: request.Op, Pairs: request.Pairs, Rows: request.Input.Rows, Hidden: request.Input.Hidden, Codec: request.Input.Codec,
	})
	require.NoError(t, err)
	return reply
}

// requireWell makes sure that the host still answers.
func (s *swarm) requireWell(t testing.TB) {
	t.Helper()
	x := ramp(3, 5)
	reply, err := s.client.Call(within(t), s.host.ID(), x, all(7), codec.F32)
	require.NoError(t, err)
	require.Equal(t, x.Float32s(), reply.Results[0].Output.Float32s())
	require.Eventually(t, func() bool { return s.handler.admitted.Load() == s.handler.released.Load() }, waitFor, time.Millisecond)
}

func TestServer_AnswersRefusalsAndKeepsTheStream(t *testing.T) {
	s := newSwarm(t, options{serverCfg: func(c *rpc.ServerConfig) { c.Limits.Frame = 1 << 20 }})
	st := s.rawStream(t)
	require.NoError(t, st.SetDeadline(time.Now().Add(waitFor)))
	r := bufio.NewReader(st)
	pair := expert.Pair{Expert: 7}
	exchange := func(request wire.Request, payload int) wire.Reply {
		t.Helper()
		_, err := st.Write(append(frame(t, request), make([]byte, payload)...))
		require.NoError(t, err)
		return readReply(t, r, request)
	}
	require.Equal(t, wire.Unimplemented, exchange(wire.Request{Op: 99}, 0).Status)
	require.Equal(t, wire.ResourceExhausted, exchange(forward(40, 1024, manyPairs(7)...), 40*1024*4).Status, "the reply would be too large")
	require.Equal(t, wire.ResourceExhausted, exchange(forward(1, 4, manyPairs(1025)...), 16).Status)
	require.Equal(t, wire.OK, exchange(wire.Request{Op: wire.OpPing}, 0).Status)
	lie := forward(2, 4, pair)
	header := frame(t, lie)
	at := bytes.Index(header, []byte{4 << 3, 32}) // field 4 of the tensor: 32 bytes for 2 rows of 4
	require.Positive(t, at)
	header[at+1] = 31
	_, err := st.Write(append(header, make([]byte, 31)...))
	require.NoError(t, err)
	require.Equal(t, wire.InvalidArgument, readReply(t, r, lie).Status)
	// A refused small payload is skipped.
	s.handler.refuse = func(int, expert.Pair) error { return expert.ErrNotReady }
	for range 3 {
		reply := exchange(forward(16, 1024, pair, pair), 64<<10)
		require.Equal(t, wire.OK, reply.Status)
		require.Equal(t, wire.NotReady, reply.Results[1].Status)
	}
	require.Zero(t, s.handler.ran.Load())
	s.handler.refuse = nil
	require.Equal(t, wire.OK, exchange(forward(1, 4, pair), 16).Results[0].Status)
	_, err = io.CopyN(io.Discard, r, 16)
	require.NoError(t, err)
	s.requireWell(t)
}

func TestServer_EndsTheWorkAtItsDeadlineThoughTheCallerIsSilent(t *testing.T) {
	s := newSwarm(t, options{})
	s.handler.run = func(ctx context.Context, _ *tensor.Dense, _ []expert.Pair) []expert.Result {
		<-ctx.Done()
		return []expert.Result{{Err: context.Cause(ctx)}}
	}
	st := s.rawStream(t)
	require.NoError(t, st.SetDeadline(time.Now().Add(waitFor)))
	r := bufio.NewReader(st)
	// The first is over before the host looks the first time; the stream carries the next all the same.
	for _, timeout := range []time.Duration{100 * time.Microsecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		request := forward(1, 4, expert.Pair{Expert: 7})
		request.Timeout = timeout
		start := time.Now()
		_, err := st.Write(append(frame(t, request), make([]byte, 16)...))
		require.NoError(t, err)
		reply := readReply(t, r, request)
		require.Equal(t, wire.OK, reply.Status)
		require.Equal(t, wire.DeadlineExceeded, reply.Results[0].Status)
		require.GreaterOrEqual(t, time.Since(start), timeout)
	}
	s.handler.run = nil
	s.requireWell(t)
}

func TestServer_SaysWhyItRefusesLargePayloadsAndReadsNone(t *testing.T) {
	s := newSwarm(t, options{serverCfg: func(c *rpc.ServerConfig) { c.Limits.Frame = 4 << 20 }})
	// The caller's own limit lets 8 MiB through; the host's does not.
	_, err := s.client.Call(within(t), s.host.ID(), ramp(2048, 1024), all(7), codec.F32)
	require.ErrorIs(t, err, expert.ErrTooLarge)
	require.ErrorContains(t, err, "above the 4194304 bytes")
	require.Zero(t, s.handler.admitted.Load())

	s.handler.refuse = func(int, expert.Pair) error { return &expert.OverloadedError{RetryAfter: time.Second} }
	reply, err := s.client.Call(within(t), s.host.ID(), ramp(1024, 1024), all(7), codec.F32)
	require.NoError(t, err)
	require.ErrorIs(t, reply.Results[0].Err, expert.ErrOverloaded)
	require.Less(t, reply.Bytes, int64(4<<20), "the payload was kept back")
	s.handler.refuse = nil
	s.requireWell(t)
}

func TestServer_ResetsWhatIsNoFrame(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := newSwarm(t, options{serverOpts: []rpc.ServerOption{rpc.WithServerMetrics(rpc.NewMetrics(reg))}})
	big := binary.AppendUvarint(nil, 2<<20)
	for i, noise := range [][]byte{
		[]byte("GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: someone who is curious\r\nAccept: */*\r\n\r\n"),
		big,
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		{0x03, 0xff, 0xff, 0xff},
		append(frame(t, forward(1, 4, expert.Pair{Expert: 7})), make([]byte, 17)...), // a byte behind the payload
	} {
		st := s.rawStream(t)
		_, err := st.Write(noise)
		require.NoError(t, err)
		require.NoError(t, st.SetReadDeadline(time.Now().Add(waitFor)))
		_, err = io.ReadAll(st)
		var reset *network.StreamError
		require.ErrorAs(t, err, &reset, "case %d", i)
		require.True(t, reset.Remote)
		require.Equal(t, network.StreamErrorCode(10_002), reset.ErrorCode)
	}
	require.InDelta(t, 5, counter(t, reg, "kwaai_rpc_malformed_total"), 0)
	s.requireWell(t)
}

// counter returns the sum of a metric's children.
func counter(t testing.TB, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			all := m.String()
			match := true
			for _, l := range labels {
				match = match && strings.Contains(all, `"`+l+`"`)
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestServer_LimitsStreamsPerPeer(t *testing.T) {
	s := newSwarm(t, options{
		serverCfg: func(c *rpc.ServerConfig) { c.StreamsPerPeer = 2 },
		clientCfg: func(c *rpc.ClientConfig) { c.StreamsPerPeer = 2 },
	})
	ping := frame(t, wire.Request{Op: wire.OpPing})
	for range 2 {
		st := s.rawStream(t)
		_, err := st.Write(ping)
		require.NoError(t, err)
		readReply(t, bufio.NewReader(st), wire.Request{Op: wire.OpPing})
	}
	_, err := s.client.Ping(within(t), s.host.ID())
	require.ErrorIs(t, err, expert.ErrOverloaded, "a full peer is no broken one")
	for _, c := range s.caller.Network().Conns() {
		for _, st := range c.GetStreams() {
			require.NoError(t, st.Reset())
		}
	}
	require.Eventually(t, func() bool {
		_, err := s.client.Ping(within(t), s.host.ID())
		return err == nil
	}, waitFor, 5*time.Millisecond)
}

func TestServer_ReservesMemoryPerExchange(t *testing.T) {
	limits := rcmgr.InfiniteLimits.ToPartialLimitConfig()
	limits.Service = map[string]rcmgr.ResourceLimits{rpc.Service: {
		Streams: rcmgr.Unlimited, StreamsInbound: rcmgr.Unlimited, StreamsOutbound: rcmgr.Unlimited,
		Conns: rcmgr.Unlimited, ConnsInbound: rcmgr.Unlimited, ConnsOutbound: rcmgr.Unlimited, FD: rcmgr.Unlimited, Memory: 1 << 20,
	}}
	resources, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)), rcmgr.WithMetricsDisabled())
	require.NoError(t, err)
	s := newSwarm(t, options{hostOpts: append(tcpOptions(), libp2p.ResourceManager(resources))})
	used := func() (bytes int64) {
		require.NoError(t, resources.ViewService(rpc.Service, func(scope network.ServiceScope) error {
			bytes = scope.Stat().Memory
			return nil
		}))
		return bytes
	}
	during := make(chan int64, 1)
	s.handler.run = func(_ context.Context, x *tensor.Dense, _ []expert.Pair) []expert.Result {
		during <- used()
		return []expert.Result{{Output: x}}
	}
	_, err = s.client.Call(within(t), s.host.ID(), ramp(100, 1024), all(7), codec.F32)
	require.NoError(t, err)
	require.InDelta(t, 2*100*1024*4, <-during, 8192, "request and reply")
	_, err = s.client.Call(within(t), s.host.ID(), ramp(80, 1024), []expert.Pair{{Expert: 7, Weights: make([]float32, 80)}}, codec.F32)
	require.NoError(t, err)
	require.InDelta(t, 3*80*1024*4, <-during, 8192, "request, output and sum")
	_, err = s.client.Call(within(t), s.host.ID(), ramp(200, 1024), all(7), codec.F32)
	require.ErrorIs(t, err, expert.ErrOverloaded, "above what is left")
	require.Eventually(t, func() bool { return used() <= 8192 }, waitFor, time.Millisecond, "given back, exchange by exchange")
	s.handler.run = nil
	s.requireWell(t)
}

func TestServer_DropsWhatIsIdleOrStalls(t *testing.T) {
	s := newSwarm(t, options{serverCfg: func(c *rpc.ServerConfig) { c.IdleTimeout, c.TransferTimeout = time.Second, time.Second }})
	request := frame(t, forward(1, 1024, expert.Pair{Expert: 7}))
	for name, test := range map[string]struct {
		sent []byte
		code network.StreamErrorCode
	}{
		"idle":              {frame(t, wire.Request{Op: wire.OpPing}), 10_004},
		"half a header":     {request[:3], 10_005},
		"half of a payload": {append(request, make([]byte, 512)...), 10_005},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := s.rawStream(t)
			_, err := st.Write(test.sent)
			require.NoError(t, err)
			require.NoError(t, st.SetReadDeadline(time.Now().Add(waitFor)))
			_, err = io.ReadAll(st)
			var reset *network.StreamError
			require.ErrorAs(t, err, &reset)
			require.Equal(t, test.code, reset.ErrorCode)
		})
	}
}

func TestServer_StopsTheWorkWhenThePeerTalksOutOfTurn(t *testing.T) {
	s := newSwarm(t, options{})
	stopped := make(chan struct{})
	s.handler.run = func(ctx context.Context, _ *tensor.Dense, _ []expert.Pair) []expert.Result {
		<-ctx.Done()
		close(stopped)
		return []expert.Result{{Err: expert.ErrCancelled}}
	}
	st := s.rawStream(t)
	_, err := st.Write(append(frame(t, forward(1, 4, expert.Pair{Expert: 7})), make([]byte, 16)...))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return s.handler.ran.Load() == 1 }, waitFor, time.Millisecond)
	_, err = st.Write([]byte{1})
	require.NoError(t, err)
	select {
	case <-stopped:
	case <-time.After(waitFor):
		t.Fatal("the work goes on")
	}
}

func TestServer_SurvivesItsHandler(t *testing.T) {
	s := newSwarm(t, options{})
	x := ramp(2, 4)
	for name, run := range map[string]func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result{
		"no results": func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result { return nil },
		"no output":  func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result { return make([]expert.Result, 1) },
		"wrong shape": func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result {
			return []expert.Result{{Output: ramp(2, 5)}}
		},
		"wrong rows": func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result {
			return []expert.Result{{Output: ramp(3, 4)}}
		},
		"a secret": func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result {
			return []expert.Result{{Err: errBoom}}
		},
		"panicking": func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result { panic(errBoom) },
		"not a status": func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result {
			return []expert.Result{{Err: io.EOF}}
		},
	} {
		s.handler.run = run
		reply, err := s.client.Call(within(t), s.host.ID(), x, all(7), codec.F32)
		if err == nil {
			err = reply.Results[0].Err
		}
		if name == "panicking" {
			require.ErrorIs(t, err, expert.ErrReset, name)
		} else {
			require.ErrorIs(t, err, expert.ErrInternal, name)
		}
		require.NotContains(t, err.Error(), "boom", name)
		s.handler.run = nil
		s.requireWell(t)
	}
}

func TestServer_EndsEverythingWithRun(t *testing.T) {
	caller, host := newHost(t), newHost(t)
	introduce(caller, host)
	handler := &fakeHandler{run: func(ctx context.Context, _ *tensor.Dense, _ []expert.Pair) []expert.Result {
		<-ctx.Done()
		return []expert.Result{{Err: ctx.Err()}}
	}}
	server, err := rpc.NewServer(host, handler, rpc.DefaultServerConfig())
	require.NoError(t, err)
	client, err := rpc.NewClient(caller, rpc.DefaultClientConfig())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	require.Eventually(t, func() bool {
		_, err := client.Ping(within(t), host.ID())
		return err == nil
	}, waitFor, time.Millisecond)
	failed := make(chan error, 1)
	go func() {
		_, err := client.Call(within(t), host.ID(), ramp(1, 4), all(7), codec.F32)
		failed <- err
	}()
	require.Eventually(t, func() bool { return handler.ran.Load() == 1 }, waitFor, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, int64(1), handler.released.Load())
	require.Error(t, <-failed)
	require.Eventually(t, func() bool { return streams(host, caller.ID()) == 0 }, waitFor, time.Millisecond)
}

// A host that drains stops as soon as its last answer is out, which is long before it has arrived.
func TestServer_WhatItAnsweredArrivesThoughItStops(t *testing.T) {
	const rows, hidden = 128, 4096 // 2 MiB
	caller := newHost(t)
	client, err := rpc.NewClient(caller, rpc.DefaultClientConfig())
	require.NoError(t, err)
	for range 5 {
		host := newHost(t)
		introduce(caller, host)
		ctx, stop := context.WithCancel(context.Background())
		server, err := rpc.NewServer(host, &lastHandler{fakeHandler: new(fakeHandler), released: stop}, rpc.DefaultServerConfig())
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() {
			_ = server.Run(ctx)
			done <- host.Close()
		}()
		require.Eventually(t, func() bool { return slices.Contains(host.Mux().Protocols(), rpc.Protocol) }, waitFor, time.Millisecond)
		x := ramp(rows, hidden)
		reply, err := client.Call(within(t), host.ID(), x, all(7), codec.F32)
		require.NoError(t, err)
		require.Equal(t, x.Float32s(), reply.Results[0].Output.Float32s())
		require.NoError(t, <-done)
	}
}

// lastHandler stops the server with its first answer.
type lastHandler struct {
	*fakeHandler
	released func()
}

func (h *lastHandler) Admit(rows, hidden int, pairs []expert.Pair) rpc.Admission {
	return lastAdmission{h.fakeHandler.Admit(rows, hidden, pairs), h.released}
}

type lastAdmission struct {
	rpc.Admission
	released func()
}

func (a lastAdmission) Release() {
	a.Admission.Release()
	a.released()
}

func TestMetrics_CountBothSides(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := rpc.NewMetrics(reg)
	s := newSwarm(t, options{
		clientOpts: []rpc.ClientOption{rpc.WithClientMetrics(m)}, serverOpts: []rpc.ServerOption{rpc.WithServerMetrics(m)},
	})
	x := ramp(1, 1024)
	for range 3 {
		_, err := s.client.Call(within(t), s.host.ID(), x, all(7), codec.BF16)
		require.NoError(t, err)
	}
	s.handler.refuse = func(int, expert.Pair) error { return expert.ErrNotFound }
	_, err := s.client.Call(within(t), s.host.ID(), x, all(7), codec.F32)
	require.NoError(t, err)
	for _, side := range []string{"client", "server"} {
		require.Eventually(t, func() bool { return counter(t, reg, "kwaai_rpc_exchanges_total", side) == 4 }, waitFor, time.Millisecond)
		require.InDelta(t, 3, counter(t, reg, "kwaai_rpc_exchanges_total", side, "OK", "bf16"), 0)
		require.InDelta(t, 1, counter(t, reg, "kwaai_rpc_exchanges_total", side, "NOT_FOUND", "f32"), 0)
		require.InDelta(t, 1, counter(t, reg, "kwaai_rpc_streams", side), 0)
	}
	require.InDelta(t, counter(t, reg, "kwaai_rpc_transferred_bytes_total", "client", "sent"),
		counter(t, reg, "kwaai_rpc_transferred_bytes_total", "server", "received"), 0)
	require.InDelta(t, counter(t, reg, "kwaai_rpc_transferred_bytes_total", "client", "received"),
		counter(t, reg, "kwaai_rpc_transferred_bytes_total", "server", "sent"), 0)
	require.InDelta(t, 1, counter(t, reg, "kwaai_rpc_pool_misses_total"), 0)
	require.InDelta(t, 3, counter(t, reg, "kwaai_rpc_pool_hits_total"), 0)
}

func TestConfigs_ReportAllThatIsWrong(t *testing.T) {
	require.NoError(t, rpc.DefaultServerConfig().Validate())
	require.NoError(t, rpc.DefaultClientConfig().Validate())
	err := rpc.ServerConfig{RequestsPerPeer: -1}.Validate()
	for _, key := range []string{"max_frame", "streams_per_peer", "requests_per_peer", "idle timeout", "transfer timeout"} {
		require.ErrorContains(t, err, key)
	}
	err = rpc.ClientConfig{}.Validate()
	for _, key := range []string{"max_frame", "streams per peer", "peers", "idle timeout"} {
		require.ErrorContains(t, err, key)
	}
	_, err = rpc.NewServer(nil, nil, rpc.ServerConfig{})
	require.Error(t, err)
	_, err = rpc.NewClient(nil, rpc.ClientConfig{})
	require.Error(t, err)
}
