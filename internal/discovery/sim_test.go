package discovery_test

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// clientOn starts a DHT client, which keeps no records and so has to ask.
func clientOn(t *testing.T, sim *swarmtest.Sim, i int, opts ...discovery.Option) *swarmtest.Node {
	t.Helper()
	node := swarmtest.NewNode(t, sim.Hosts[i], nil, func(cfg *discovery.Config) {
		cfg.DHT, cfg.Bootstrap = discovery.ModeClient, swarmtest.Addrs(t, sim.Hosts[0])
	}, opts...)
	require.NoError(t, node.Discovery.WaitJoined(t.Context()))
	time.Sleep(5 * time.Second)
	return node
}

// servers starts nodes on the first n hosts; node i hosts expert i.
func servers(t *testing.T, sim *swarmtest.Sim, n int) []*swarmtest.Node {
	t.Helper()
	return simulated(t, &swarmtest.Sim{Hosts: sim.Hosts[:n], Weather: sim.Weather}, func(i int) []expert.ID { return []expert.ID{expert.ID(i)} })
}

func TestFind_ReturnsTheFirstProviderAtOnce(t *testing.T) {
	swarmtest.Simulate(t, 7, 1, func(t *testing.T, sim *swarmtest.Sim) {
		nodes := servers(t, sim, 6)
		nodes[2].Hosted.Set(2, 100)
		nodes[3].Hosted.Set(3, 100)
		time.Sleep(2 * time.Second)
		var later sync.Map
		client := clientOn(t, sim, 6, discovery.WithFound(func(id expert.ID, p peer.AddrInfo) { later.Store(p.ID, id) }))
		for frozen := 3; frozen < 6; frozen++ {
			sim.Weather.CutOff(frozen, len(sim.Hosts))
		}
		began := time.Now()
		found, err := client.Discovery.Find(t.Context(), 100)
		require.NoError(t, err)
		require.NotEmpty(t, found)
		require.Less(t, time.Since(began), 200*time.Millisecond, "a round trip takes 40 ms")
		again, err := client.Discovery.Find(t.Context(), 100)
		require.NoError(t, err)
		require.NotEmpty(t, again)

		began = time.Now()
		all, err := client.Discovery.Walk(t.Context(), 100)
		require.NoError(t, err)
		require.Len(t, all, 2, "the walk behind it goes on to the end")
		require.Greater(t, time.Since(began), time.Second, "three of six are silent")
		for _, host := range []int{2, 3} {
			id, told := later.Load(sim.Hosts[host].ID())
			require.True(t, told)
			require.Equal(t, expert.ID(100), id)
		}
		require.Len(t, client.Discovery.Known(100), 2)
	})
}

func TestFind_OneWalkForAll(t *testing.T) {
	swarmtest.Simulate(t, 4, 1, func(t *testing.T, sim *swarmtest.Sim) {
		servers(t, sim, 3)
		var found atomic.Int64
		client := clientOn(t, sim, 3, discovery.WithFound(func(expert.ID, peer.AddrInfo) { found.Add(1) }))
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				providers, err := client.Discovery.Find(t.Context(), 1)
				require.NoError(t, err)
				require.Len(t, providers, 1)
			})
		}
		wg.Wait()
		time.Sleep(time.Second)
		require.EqualValues(t, 1, found.Load())
	})
}

func TestFind_RefreshesWhatIsInUse(t *testing.T) {
	swarmtest.Simulate(t, 4, 1, func(t *testing.T, sim *swarmtest.Sim) {
		servers(t, sim, 3)
		var walks atomic.Int64
		client := clientOn(t, sim, 3, discovery.WithFound(func(expert.ID, peer.AddrInfo) { walks.Add(1) }))
		for range 20 { // asked every two minutes, for forty minutes
			began := time.Now()
			providers, err := client.Discovery.Find(t.Context(), 1)
			require.NoError(t, err)
			require.Len(t, providers, 1)
			if walks.Load() > 1 {
				require.Zero(t, time.Since(began), "answered from the cache")
			}
			time.Sleep(2 * time.Minute)
		}
		require.InDelta(t, 4, walks.Load(), 1, "one walk in ten minutes")
		idle := walks.Load()
		time.Sleep(time.Hour)
		require.LessOrEqual(t, walks.Load(), idle+1, "nobody asks, nobody walks")
		require.Empty(t, client.Discovery.Known(1))
	})
}

func TestWalk_NobodyIsNoError(t *testing.T) {
	swarmtest.Simulate(t, 4, 1, func(t *testing.T, sim *swarmtest.Sim) {
		servers(t, sim, 3)
		client := clientOn(t, sim, 3)
		for _, look := range []func() ([]peer.AddrInfo, error){
			func() ([]peer.AddrInfo, error) { return client.Discovery.Find(t.Context(), 4711) },
			func() ([]peer.AddrInfo, error) { return client.Discovery.Walk(t.Context(), 4711) },
		} {
			found, err := look()
			require.NoError(t, err)
			require.Empty(t, found)
		}
	})
}

func TestJoin_AgainAfterAPartition(t *testing.T) {
	swarmtest.Simulate(t, 4, 1, func(t *testing.T, sim *swarmtest.Sim) {
		nodes := servers(t, sim, 4)
		require.Equal(t, 3, status(nodes[3]).Peers)
		sim.Weather.CutOff(3, 4)
		time.Sleep(3 * time.Minute)
		require.Zero(t, status(nodes[3]).Peers)
		require.NotEmpty(t, status(nodes[3]).Degraded)
		require.Empty(t, status(nodes[1]).Degraded)
		_, err := nodes[3].Discovery.Find(t.Context(), 99)
		require.ErrorIs(t, err, discovery.ErrNotJoined)
		sim.Weather.Heal()
		time.Sleep(2 * time.Minute)
		require.Empty(t, status(nodes[3]).Degraded)
		require.NotZero(t, status(nodes[3]).Peers)
		found, err := nodes[3].Discovery.Walk(t.Context(), 1)
		require.NoError(t, err)
		require.Len(t, found, 1)
	})
}

// dials counts what a node logs of remembered peers that it dialled in vain.
type dials struct {
	mu sync.Mutex
	n  int
}

func (d *dials) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("remembered peer unreachable")) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.n++
	}
	return len(line), nil
}

// take returns the count, and begins a new one.
func (d *dials) take() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() { d.n = 0 }()
	return d.n
}

func TestJoin_AloneEasesOffWithThoseItRemembers(t *testing.T) {
	const others = 3
	swarmtest.Simulate(t, others+2, 1, func(t *testing.T, sim *swarmtest.Sim) {
		servers(t, sim, others)
		var vain dials
		server := func(cfg *discovery.Config) { cfg.DHT = discovery.ModeServer }
		node := swarmtest.NewNode(t, sim.Hosts[others], nil, server, discovery.WithLogger(zerolog.New(&vain)))
		swarmtest.Connect(t, sim.Hosts[others], sim.Hosts[0]) // nobody is its bootstrap: all that it has later is its memory
		time.Sleep(time.Minute)
		require.Equal(t, others, status(node).Peers)
		require.Zero(t, vain.take())

		sim.Weather.CutOff(others, others)
		time.Sleep(5 * time.Minute)
		require.Zero(t, status(node).Peers)
		require.GreaterOrEqual(t, vain.take(), 3*others, "it looks for them soon, and again")
		time.Sleep(25 * time.Minute)
		vain.take()
		time.Sleep(time.Hour) // after a hundred dials in vain libp2p would refuse to dial at all; a p2p.Host has that switched off
		hourly := vain.take()
		require.LessOrEqual(t, hourly, 10*others, "every ten minutes, dice between half and one and a half")
		require.GreaterOrEqual(t, hourly, 3*others, "it never gives up")

		// Somebody who comes and goes is reason enough to look for the others again at once.
		guest := swarmtest.NewNode(t, sim.Hosts[others+1], nil, server)
		swarmtest.Connect(t, sim.Hosts[others+1], sim.Hosts[others])
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, status(node).Peers)
		vain.take()
		require.NoError(t, sim.Hosts[others+1].Network().ClosePeer(node.Host.ID()))
		guest.Stop(t)
		sim.Weather.Heal()
		time.Sleep(time.Minute)
		require.NotZero(t, status(node).Peers, "back within a minute though pauses had grown to ten")
	})
}

func TestFind_ThroughLoss(t *testing.T) {
	swarmtest.Simulate(t, 6, 7, func(t *testing.T, sim *swarmtest.Sim) {
		servers(t, sim, 5)
		client := clientOn(t, sim, 5)
		sim.Weather.SetLoss(0.05)
		for id := range expert.ID(5) {
			found, err := client.Discovery.Walk(t.Context(), id)
			require.NoError(t, err)
			require.Len(t, found, 1)
		}
	})
}

func TestAnnounce_NewcomersAreToldWhenTheSwarmGrows(t *testing.T) {
	swarmtest.Simulate(t, 8, 1, func(t *testing.T, sim *swarmtest.Sim) {
		first := servers(t, sim, 1)[0]
		require.Equal(t, 1, status(first).Announced)
		require.Equal(t, 1, status(first).Rounds)
		for i := 1; i < 8; i++ {
			swarmtest.NewNode(t, sim.Hosts[i], nil, func(cfg *discovery.Config) {
				cfg.DHT, cfg.Bootstrap = discovery.ModeServer, swarmtest.Addrs(t, sim.Hosts[0])
			})
			time.Sleep(10 * time.Second)
		}
		require.Equal(t, 4, status(first).Rounds, "with 0, 1, 3 and 7 others")
	})
}

// simlibp2p's hosts have public addresses, so they meet each other from outside.
func TestMode_ClientUntilKnownToBeReachable(t *testing.T) {
	swarmtest.Simulate(t, 2, 1, func(t *testing.T, sim *swarmtest.Sim) {
		var reachable atomic.Int32
		alone := swarmtest.NewNode(t, sim.Hosts[0], nil, nil, discovery.WithReachability(func() network.Reachability {
			return network.Reachability(reachable.Load())
		}))
		other := swarmtest.NewNode(t, sim.Hosts[1], nil, func(cfg *discovery.Config) { cfg.DHT = discovery.ModeServer })
		require.Equal(t, discovery.ModeServer, status(alone).Mode, "it has met nobody from outside")
		step := func(r network.Reachability) string {
			reachable.Store(int32(r))
			time.Sleep(2 * time.Second)
			synctest.Wait()
			return status(alone).Mode
		}
		swarmtest.Connect(t, sim.Hosts[0], sim.Hosts[1])
		require.Equal(t, discovery.ModeClient, step(network.ReachabilityUnknown))
		require.Empty(t, other.Discovery.Peers(), "a client is in nobody's routing table")
		require.Equal(t, discovery.ModeServer, step(network.ReachabilityPublic))
		require.Len(t, other.Discovery.Peers(), 1)
		require.Equal(t, discovery.ModeClient, step(network.ReachabilityPrivate))
		require.Empty(t, other.Discovery.Peers())
	})
}
