package discovery_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// by makes a node join by the given host.
func by(tb testing.TB, h host.Host) func(*discovery.Config) {
	tb.Helper()
	addrs := swarmtest.Addrs(tb, h)
	return func(cfg *discovery.Config) { cfg.Bootstrap = addrs }
}

func newHost(tb testing.TB) *p2p.Host {
	tb.Helper()
	return swarmtest.NewHost(tb, swarmtest.TCPConfig())
}

func status(n *swarmtest.Node) discovery.Status { return n.Discovery.Status() }

func TestJoin_BootstrapThatComesLater(t *testing.T) {
	key, err := p2p.NewIdentity()
	require.NoError(t, err)
	dead, err := p2p.New(key, swarmtest.TCPConfig()) // takes a free port, and leaves it again
	require.NoError(t, err)
	addrs := swarmtest.Addrs(t, dead)
	cfg := swarmtest.TCPConfig()
	cfg.Listen = []string{dead.ListenAddrs()[0].String()}
	require.NoError(t, dead.Close())

	node := swarmtest.NewNode(t, newHost(t), []expert.ID{1}, func(c *discovery.Config) { c.Bootstrap = addrs })
	swarmtest.Eventually(t, func() bool { return len(status(node).Degraded) > 0 && status(node).Settled }, "the node does not say that it is degraded")
	require.Contains(t, status(node).Degraded[0], "bootstrap "+addrs[0]+" unreachable")
	require.Zero(t, status(node).Announced, "nobody was told")

	began := time.Now()
	_, err = node.Discovery.Find(t.Context(), 7)
	require.ErrorIs(t, err, discovery.ErrNotJoined)
	require.ErrorContains(t, err, addrs[0])
	require.ErrorIs(t, node.Discovery.WaitJoined(t.Context()), discovery.ErrNotJoined)
	require.Less(t, time.Since(began), swarmtest.Deadline/4, "to be degraded is no reason to wait")

	late, err := p2p.New(key, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, late.Close()) })
	bootstrap := swarmtest.NewNode(t, late, nil, nil)
	swarmtest.Eventually(t, func() bool { return len(status(node).Degraded) == 0 }, "still degraded")
	swarmtest.Eventually(t, func() bool { return status(node).Announced == 1 }, "not announced after joining")
	require.NoError(t, node.Discovery.WaitJoined(t.Context()))
	found, err := bootstrap.Discovery.Find(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, found, 1)
}

func TestJoin_FromThePeerCacheWhenTheBootstrapIsGone(t *testing.T) {
	bootstrap := swarmtest.NewNode(t, newHost(t), nil, nil)
	other := swarmtest.NewNode(t, newHost(t), []expert.ID{5}, by(t, bootstrap.Host))
	join := by(t, bootstrap.Host)
	dir := t.TempDir()
	begin := func() *swarmtest.Node {
		return swarmtest.NewNode(t, newHost(t), nil, join, discovery.WithDataDir(dir))
	}
	node := begin()
	swarmtest.Eventually(t, func() bool { return status(node).Peers == 2 }, "the node does not meet both")
	swarmtest.Eventually(t, func() bool { return fileExists(t, filepath.Join(dir, "peers.json")) }, "a node that is killed would remember nobody")
	node.Stop(t)
	bootstrap.Stop(t)

	node = begin()
	swarmtest.Eventually(t, func() bool { return status(node).Peers == 1 }, "the node does not find the other by its peer cache")
	require.Equal(t, []peer.ID{other.Host.ID()}, node.Discovery.Peers())
	found, err := node.Discovery.Find(t.Context(), 5)
	require.NoError(t, err)
	require.Len(t, found, 1)
	swarmtest.Eventually(t, func() bool { return len(status(node).Degraded) == 1 }, "the dead bootstrap is not named")
	node.Stop(t)
	waitForLevelDB(t)
}

func TestJoin_AnyNodeIsABootstrapAndItselfIsNone(t *testing.T) {
	a := newHost(t)
	everybody := by(t, a)
	first := swarmtest.NewNode(t, a, []expert.ID{1}, everybody) // the same list for all: its own address is in it
	second := swarmtest.NewNode(t, newHost(t), []expert.ID{2}, everybody)
	third := swarmtest.NewNode(t, newHost(t), nil, by(t, second.Host))
	for _, id := range []expert.ID{1, 2} {
		swarmtest.Eventually(t, func() bool {
			found, err := third.Discovery.Find(t.Context(), id)
			return err == nil && len(found) == 1
		}, "not found")
	}
	require.Empty(t, status(first).Degraded)
}

func TestJoin_AloneIsReadyAtOnce(t *testing.T) {
	node := swarmtest.NewNode(t, newHost(t), []expert.ID{1, 2, 3}, nil)
	swarmtest.Eventually(t, func() bool { return status(node).Settled }, "no round ran")
	require.Equal(t, 3, status(node).Announced, "whoever comes asks this node")
	require.Equal(t, discovery.ModeServer, status(node).Mode)
	require.NoError(t, node.Discovery.WaitJoined(t.Context()))
	found, err := node.Discovery.Find(t.Context(), 1)
	require.NoError(t, err)
	require.Empty(t, found, "this node itself is never among the providers")
}

func TestJoin_OtherSwarmIsNamed(t *testing.T) {
	swarmtest.Simulate(t, 2, 1, func(t *testing.T, sim *swarmtest.Sim) {
		swarmtest.NewNode(t, sim.Hosts[0], nil, func(c *discovery.Config) { c.Swarm, c.DHT = "other", discovery.ModeServer })
		node := swarmtest.NewNode(t, sim.Hosts[1], nil, by(t, sim.Hosts[0]))
		time.Sleep(15 * time.Second)
		require.Equal(t, []string{"bootstrap " + swarmtest.Addrs(t, sim.Hosts[0])[0] + ` serves no DHT of swarm "kwaai": is it in another swarm, or a client?`},
			status(node).Degraded)
		require.Zero(t, status(node).Peers)
	})
}

func TestClient_AsksAndKeepsNothing(t *testing.T) {
	nodes := swarmtest.Swarm(t, 3, func(i int) []expert.ID { return []expert.ID{expert.ID(i)} })
	client := swarmtest.NewNode(t, swarmtest.NewHost(t, p2p.ClientConfig()), nil, func(c *discovery.Config) {
		by(t, nodes[0].Host)(c)
		c.DHT = discovery.ModeAuto
	})
	began := time.Now()
	require.NoError(t, client.Discovery.WaitJoined(t.Context()))
	found, err := client.Discovery.Find(t.Context(), 2)
	require.NoError(t, err)
	require.Len(t, found, 1)
	t.Log("joined and found after", time.Since(began))
	require.Equal(t, discovery.ModeClient, status(client).Mode, "it listens nowhere")
	for _, n := range nodes {
		require.NotContains(t, n.Discovery.Peers(), client.Host.ID())
	}
}

func TestFind_EndsWithItsCaller(t *testing.T) {
	node := swarmtest.NewNode(t, newHost(t), nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := node.Discovery.Find(ctx, 1)
	if err != nil { // it may have been answered already
		require.ErrorIs(t, err, context.Canceled)
	}
	node.Stop(t)
	_, err = node.Discovery.Find(t.Context(), 1)
	require.ErrorIs(t, err, discovery.ErrStopped)
	_, err = node.Discovery.Walk(t.Context(), 1)
	require.ErrorIs(t, err, discovery.ErrStopped)
}

func TestAnnounce_OnlyOnceReady(t *testing.T) {
	nodes := swarmtest.Swarm(t, 3, nil)
	swarmtest.Eventually(t, func() bool { return status(nodes[1]).Settled }, "no round ran")
	find := func() int {
		found, err := nodes[2].Discovery.Walk(t.Context(), 1)
		require.NoError(t, err)
		return len(found)
	}
	require.Zero(t, find())
	nodes[1].Hosted.Set(1)
	require.False(t, status(nodes[1]).Settled, "a ready expert waits for its round")
	swarmtest.Eventually(t, func() bool { return status(nodes[1]).Announced == 1 }, "not announced")
	require.True(t, status(nodes[1]).Settled)
	require.Equal(t, 1, find())
	nodes[1].Hosted.Set()
	swarmtest.Eventually(t, func() bool { return status(nodes[1]).Announced == 0 }, "still counted")
}

func TestAnnounce_ManyExperts(t *testing.T) {
	const experts = 1000
	nodes := swarmtest.Swarm(t, 5, func(i int) []expert.ID {
		if i != 3 {
			return nil
		}
		return sequence(0, experts)
	})
	swarmtest.Eventually(t, func() bool { return status(nodes[3]).Announced == experts }, "not announced")
	for _, id := range []expert.ID{0, 1, 499, experts - 1} {
		found, err := nodes[4].Discovery.Find(t.Context(), id)
		require.NoError(t, err)
		require.Len(t, found, 1)
	}
}
