package rpc_test

import (
	"bufio"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/wire"
)

func TestPool_BoundsTheStreamsToAPeer(t *testing.T) {
	s := newSwarm(t, options{clientCfg: func(c *rpc.ClientConfig) { c.StreamsPerPeer = 3 }})
	var busy, most int
	var mu sync.Mutex
	s.handler.run = func(_ context.Context, x *tensor.Dense, _ []expert.Pair) []expert.Result {
		mu.Lock()
		busy++
		most = max(most, busy)
		mu.Unlock()
		time.Sleep(2 * time.Millisecond) // work
		mu.Lock()
		busy--
		mu.Unlock()
		return []expert.Result{{Output: x}}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := s.client.Call(within(t), s.host.ID(), ramp(1, 8), all(7), codec.F32)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, most, 3)
	require.LessOrEqual(t, streams(s.caller, s.host.ID()), 3)
}

func TestPool_GivesUpWaitingWithItsCaller(t *testing.T) {
	s := newSwarm(t, options{clientCfg: func(c *rpc.ClientConfig) { c.StreamsPerPeer = 1 }})
	s.handler.run = func(_ context.Context, x *tensor.Dense, _ []expert.Pair) []expert.Result {
		<-s.handler.hold
		return []expert.Result{{Output: x}}
	}
	first := make(chan error, 1)
	go func() {
		_, err := s.client.Call(within(t), s.host.ID(), ramp(1, 8), all(7), codec.F32)
		first <- err
	}()
	require.Eventually(t, func() bool { return s.handler.ran.Load() == 1 }, waitFor, time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := s.client.Call(ctx, s.host.ID(), ramp(1, 8), all(7), codec.F32)
	require.ErrorIs(t, err, expert.ErrTimeout)
	_, err = s.client.Ping(within(t), s.host.ID())
	require.NoError(t, err, "a ping does not wait behind calls")
	close(s.handler.hold)
	require.NoError(t, <-first)
}

func TestPool_ClosesWhatNobodyUses(t *testing.T) {
	s := newSwarm(t, options{clientCfg: func(c *rpc.ClientConfig) { c.IdleTimeout = time.Second }})
	_, err := s.client.Ping(within(t), s.host.ID())
	require.NoError(t, err)
	require.Equal(t, 1, streams(s.caller, s.host.ID()))
	require.Eventually(t, func() bool { return streams(s.caller, s.host.ID()) == 0 && streams(s.host, s.caller.ID()) == 0 }, waitFor, 5*time.Millisecond)
	_, err = s.client.Ping(within(t), s.host.ID())
	require.NoError(t, err)
}

func TestPool_ForgetsThePeerUsedLongestAgo(t *testing.T) {
	s := newSwarm(t, options{clientCfg: func(c *rpc.ClientConfig) { c.Peers = 2 }})
	hosts := []host.Host{s.host}
	for range 2 {
		h := newHost(t)
		introduce(s.caller, h)
		server, err := rpc.NewServer(h, s.handler, rpc.DefaultServerConfig())
		require.NoError(t, err)
		background(t, server.Run)
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		require.Eventually(t, func() bool {
			_, err := s.client.Ping(within(t), h.ID())
			return err == nil
		}, waitFor, time.Millisecond)
	}
	require.Eventually(t, func() bool { return streams(s.caller, hosts[0].ID()) == 0 }, waitFor, time.Millisecond)
	require.Equal(t, 1, streams(s.caller, hosts[1].ID()))
	require.Equal(t, 1, streams(s.caller, hosts[2].ID()))
}

// A stream that the host closed while it rested costs the next call nothing but a new one.
func TestCall_TriesAgainOnAFreshStreamWhenThePooledOneIsStale(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := newSwarm(t, options{clientOpts: []rpc.ClientOption{rpc.WithClientMetrics(rpc.NewMetrics(reg))}})
	s.requireWell(t)
	for _, c := range s.host.Network().Conns() {
		for _, st := range c.GetStreams() {
			require.NoError(t, st.Reset())
		}
	}
	s.requireWell(t)
	require.InDelta(t, 0, counter(t, reg, "kwaai_rpc_exchanges_total", "RESET"), 0)
}

func TestCall_FindsAPeerThatCameBack(t *testing.T) {
	s := newSwarm(t, options{})
	key, _, err := crypto.GenerateEd25519Key(nil)
	require.NoError(t, err)
	id, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	life := func() (host.Host, func()) {
		h, err := libp2p.New(append(tcpOptions(), libp2p.Identity(key))...)
		require.NoError(t, err)
		server, err := rpc.NewServer(h, s.handler, rpc.DefaultServerConfig())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Run(ctx)
		}()
		return h, func() {
			require.NoError(t, h.Close())
			cancel()
			<-done
		}
	}
	for range 3 {
		h, end := life()
		s.caller.Peerstore().ClearAddrs(id)
		introduce(s.caller, h)
		require.Eventually(t, func() bool {
			_, err := s.client.Call(within(t), id, ramp(1, 8), all(7), codec.F32)
			return err == nil
		}, waitFor, time.Millisecond)
		end()
	}
	_, err = s.client.Call(within(t), id, ramp(1, 8), all(7), codec.F32)
	require.Error(t, err)
}

// liar is a host whose replies are whatever a test wants.
func liar(t testing.TB, s *swarm, reply func(request wire.Request) []byte) peer.ID {
	t.Helper()
	h := newHost(t)
	introduce(s.caller, h)
	h.SetStreamHandler(rpc.Protocol, func(st network.Stream) {
		defer st.Close()
		r := bufio.NewReader(st)
		for {
			header, err := wire.ReadHeader(r, nil, 1<<20)
			if err != nil {
				return
			}
			request, payload, err := wire.DecodeRequest(header, wire.DefaultLimits())
			if err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, r, payload); err != nil {
				return
			}
			if _, err := st.Write(reply(request)); err != nil {
				return
			}
		}
	})
	return h.ID()
}

func TestCall_NamesWhatIsWrongWithAReply(t *testing.T) {
	s := newSwarm(t, options{})
	digest := digestOf(7)
	pairs := []expert.Pair{{Expert: 7, Digest: digest}}
	well := wire.Result{Digest: digest, Numerics: "exact-1", Output: wire.Tensor{Rows: 2, Hidden: 4}}
	answer := func(change func(*wire.Result)) []byte {
		r := well
		change(&r)
		return append(wire.AppendReply(nil, &wire.Reply{Results: []wire.Result{r}}), make([]byte, r.Output.Length())...)
	}
	for name, bytes := range map[string][]byte{
		"noise":          []byte("\x0ahello, you"),
		"huge header":    {0xff, 0xff, 0xff, 0x7f},
		"no results":     wire.AppendReply(nil, &wire.Reply{}),
		"another digest": answer(func(r *wire.Result) { r.Digest[0]++ }),
		"other rows":     answer(func(r *wire.Result) { r.Output.Rows = 1 }),
		"other width":    answer(func(r *wire.Result) { r.Output.Hidden = 1 << 20 }),
		"other codec":    answer(func(r *wire.Result) { r.Output.Codec = codec.BF16 }),
		"more":           append(answer(func(*wire.Result) {}), 0),
	} {
		id := liar(t, s, func(wire.Request) []byte { return bytes })
		_, err := s.client.Call(within(t), id, ramp(2, 4), pairs, codec.F32)
		require.ErrorIs(t, err, expert.ErrBadReply, name)
		require.Equal(t, wire.BadReply, wire.StatusOf(err), name)
		var failed *rpc.ExchangeError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "decode", failed.Step, name)
		require.Equal(t, id, failed.Peer)
		require.Eventually(t, func() bool { return streams(s.caller, id) <= 1 }, waitFor, time.Millisecond, "a touched stream is not used again")
	}
	// A reply that breaks off is the stream's failure.
	id := liar(t, s, func(wire.Request) []byte { return answer(func(*wire.Result) {})[:20] })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := s.client.Call(ctx, id, ramp(2, 4), pairs, codec.F32)
	require.ErrorIs(t, err, expert.ErrTimeout)
}

func TestDescribe_BoundsWhatAPeerSaysOfItself(t *testing.T) {
	s := newSwarm(t, options{})
	id := liar(t, s, func(wire.Request) []byte { return wire.AppendReply(nil, &wire.Reply{Description: 17 << 20}) })
	_, err := s.client.Describe(within(t), id)
	require.ErrorIs(t, err, expert.ErrBadReply)
}

func TestReply_LendsEachOutputUntilAllAreReleased(t *testing.T) {
	s := newSwarm(t, options{})
	x := ramp(4, 64)
	first, err := s.client.Call(within(t), s.host.ID(), x, append(all(7), all(8)...), codec.F32)
	require.NoError(t, err)
	expert.Release(first.Results[0].Memory)
	second, err := s.client.Call(within(t), s.host.ID(), ramp(8, 32), all(8), codec.F32)
	require.NoError(t, err)
	require.Equal(t, x.Float32s(), first.Results[1].Output.Float32s())
	expert.Release(first.Results[1].Memory)
	third, err := s.client.Call(within(t), s.host.ID(), ramp(2, 128), all(9), codec.F32)
	require.NoError(t, err)
	require.Equal(t, ramp(8, 32).Float32s(), second.Results[0].Output.Float32s())
	require.Equal(t, ramp(2, 128).Float32s(), third.Results[0].Output.Float32s())
}

// A caller that cancels again and again finds an open stream each time, and leaves none behind.
func TestCall_LeavesNothingBehindWhenCancelledOften(t *testing.T) {
	s := newSwarm(t, options{})
	s.handler.run = func(ctx context.Context, _ *tensor.Dense, _ []expert.Pair) []expert.Result {
		<-ctx.Done()
		return []expert.Result{{Err: expert.ErrCancelled}}
	}
	for i := range 50 {
		ctx, cancel := context.WithCancel(within(t))
		started := int64(i + 1)
		go func() {
			for s.handler.ran.Load() < started && ctx.Err() == nil {
				time.Sleep(50 * time.Microsecond)
			}
			cancel()
		}()
		_, err := s.client.Call(ctx, s.host.ID(), ramp(1, 8), all(7), codec.F32)
		require.ErrorIs(t, err, expert.ErrCancelled)
		cancel()
	}
	require.Eventually(t, func() bool {
		// A call may open a stream while a burnt one is being replaced: few more than one, and they close when nobody uses them.
		here := streams(s.caller, s.host.ID())
		return s.handler.released.Load() == 50 && here > 0 && here < 10 && streams(s.host, s.caller.ID()) == here
	}, waitFor, time.Millisecond)
}
