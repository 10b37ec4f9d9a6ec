package swarmtest

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSimulate_WeatherDoesWhatItSays(t *testing.T) {
	Simulate(t, 3, 1, func(t *testing.T, sim *Sim) {
		Connect(t, sim.Hosts[0], sim.Hosts[1])
		Connect(t, sim.Hosts[0], sim.Hosts[2])
		rtt := func(to int) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(network.WithNoDial(t.Context(), "weather"), 5*time.Second)
			defer cancel()
			r, answered := <-ping.Ping(ctx, sim.Hosts[0], sim.Hosts[to].ID())
			if !answered {
				return 0, ctx.Err()
			}
			return r.RTT, r.Error
		}
		got, err := rtt(1)
		require.NoError(t, err)
		require.InDelta(t, 40*time.Millisecond, got, float64(time.Millisecond))

		sim.Weather.SetDelay(100 * time.Millisecond)
		got, err = rtt(1)
		require.NoError(t, err)
		require.InDelta(t, 200*time.Millisecond, got, float64(2*time.Millisecond))

		sim.Weather.Cut(0, 1)
		_, err = rtt(1)
		require.Error(t, err)
		_, err = rtt(2)
		require.NoError(t, err, "only one link is cut")

		sim.Weather.Heal()
		_, err = rtt(1)
		require.NoError(t, err)
		sim.Weather.SetLoss(1)
		_, err = rtt(2)
		require.Error(t, err)
	})
}

func TestSwarm_AllKnowAll(t *testing.T) {
	for _, n := range Swarm(t, 5, nil) {
		require.Equal(t, 4, n.Discovery.Status().Peers)
	}
}
