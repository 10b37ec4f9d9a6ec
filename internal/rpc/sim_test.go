package rpc_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// oneWay is how long a packet takes in the simulated network.
const oneWay = 20 * time.Millisecond

// simulate runs a test between a caller and a host, QUIC in virtual time.
func simulate(t *testing.T, cfg rpc.ServerConfig, test func(t *testing.T, sim *swarmtest.Sim, client *rpc.Client, handler *fakeHandler)) {
	t.Helper()
	swarmtest.Simulate(t, 2, 1, func(t *testing.T, sim *swarmtest.Sim) {
		handler := new(fakeHandler)
		server, err := rpc.NewServer(sim.Hosts[1], handler, cfg)
		require.NoError(t, err)
		client, err := rpc.NewClient(sim.Hosts[0], rpc.DefaultClientConfig())
		require.NoError(t, err)
		background(t, server.Run)
		background(t, client.Run)
		synctest.Wait()
		swarmtest.Connect(t, sim.Hosts[0], sim.Hosts[1])
		test(t, sim, client, handler)
	})
}

// untilEnd is work that ends with its context, and says when.
func untilEnd(at chan<- time.Time) func(context.Context, *tensor.Dense, []expert.Pair) []expert.Result {
	return func(ctx context.Context, _ *tensor.Dense, _ []expert.Pair) []expert.Result {
		<-ctx.Done()
		at <- time.Now()
		return []expert.Result{{Err: ctx.Err()}}
	}
}

func TestCall_EndsAtItsDeadlineWhenThePeerIsFrozen(t *testing.T) {
	simulate(t, rpc.DefaultServerConfig(), func(t *testing.T, sim *swarmtest.Sim, client *rpc.Client, _ *fakeHandler) {
		_, err := client.Call(within(t), sim.Hosts[1].ID(), ramp(1, 8), all(7), codec.F32)
		require.NoError(t, err)
		sim.Weather.Cut(0, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err = client.Call(ctx, sim.Hosts[1].ID(), ramp(1, 8), all(7), codec.F32)
		require.ErrorIs(t, err, expert.ErrTimeout)
		require.Equal(t, 3*time.Second, time.Since(start))

		// A payload that the network does not take ends as punctually.
		ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start = time.Now()
		_, err = client.Call(ctx, sim.Hosts[1].ID(), ramp(1024, 1024), all(7), codec.F32)
		require.ErrorIs(t, err, expert.ErrTimeout)
		require.Equal(t, 3*time.Second, time.Since(start))
		sim.Weather.Heal()
	})
}

func TestCall_SendsItsDeadlineAlong(t *testing.T) {
	simulate(t, rpc.DefaultServerConfig(), func(t *testing.T, sim *swarmtest.Sim, client *rpc.Client, handler *fakeHandler) {
		ended := make(chan time.Time, 1)
		handler.run = untilEnd(ended)
		// Until the stream is open, its negotiation takes part of the way.
		_, err := client.Ping(within(t), sim.Hosts[1].ID())
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err = client.Call(ctx, sim.Hosts[1].ID(), ramp(1, 8), all(7), codec.F32)
		require.ErrorIs(t, err, expert.ErrTimeout)
		// The caller's reset is on its way when the host's own clock runs out.
		require.InDelta(t, time.Second+oneWay, (<-ended).Sub(start), float64(5*time.Millisecond))
	})
}

func TestCall_CancelReachesTheWorkInOneWay(t *testing.T) {
	simulate(t, rpc.DefaultServerConfig(), func(t *testing.T, sim *swarmtest.Sim, client *rpc.Client, handler *fakeHandler) {
		ended := make(chan time.Time, 1)
		handler.run = untilEnd(ended)
		_, err := client.Ping(within(t), sim.Hosts[1].ID())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var cancelled time.Time
		time.AfterFunc(500*time.Millisecond, func() {
			cancelled = time.Now()
			cancel()
		})
		_, err = client.Call(ctx, sim.Hosts[1].ID(), ramp(1, 8), all(7), codec.F32)
		require.ErrorIs(t, err, expert.ErrCancelled)
		require.Equal(t, cancelled, time.Now(), "the caller waits for nobody")
		require.InDelta(t, oneWay, (<-ended).Sub(cancelled), float64(5*time.Millisecond))
	})
}

func TestPool_ClosesStreamsAfterTheirRest(t *testing.T) {
	simulate(t, rpc.DefaultServerConfig(), func(t *testing.T, sim *swarmtest.Sim, client *rpc.Client, _ *fakeHandler) {
		caller, callee := sim.Hosts[0], sim.Hosts[1]
		open := func(a, b host.Host) int { return streams(a, b.ID()) }
		for range 5 { // used every 50 s, the stream lives
			_, err := client.Ping(within(t), callee.ID())
			require.NoError(t, err)
			time.Sleep(50 * time.Second)
			require.Equal(t, 1, open(caller, callee))
		}
		time.Sleep(30 * time.Second)
		require.Zero(t, open(caller, callee))
		require.Zero(t, open(callee, caller))
	})
}

func TestServer_LimitsRequestsPerPeer(t *testing.T) {
	cfg := rpc.DefaultServerConfig()
	cfg.RequestsPerPeer = 10
	simulate(t, cfg, func(t *testing.T, sim *swarmtest.Sim, client *rpc.Client, handler *fakeHandler) {
		sim.Weather.SetDelay(0) // so that all calls come at about the same time
		for second := range int64(2) {
			var refused error
			for range 50 {
				if _, refused = client.Call(within(t), sim.Hosts[1].ID(), ramp(1, 4), all(7), codec.F32); refused != nil {
					break
				}
			}
			require.ErrorIs(t, refused, expert.ErrOverloaded)
			require.Equal(t, 10*(second+1), handler.admitted.Load())
			require.Equal(t, 1, streams(sim.Hosts[0], sim.Hosts[1].ID()), "the stream lives on")
			time.Sleep(time.Second)
		}
	})
}
