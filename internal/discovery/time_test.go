package discovery_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// simulated makes one node on each host of a simulated network, all servers that join by the first.
func simulated(t *testing.T, sim *swarmtest.Sim, hosts func(i int) []expert.ID, opts ...discovery.Option) []*swarmtest.Node {
	t.Helper()
	nodes := make([]*swarmtest.Node, len(sim.Hosts))
	for i, h := range sim.Hosts {
		nodes[i] = swarmtest.NewNode(t, h, hosts(i), func(cfg *discovery.Config) {
			cfg.DHT = discovery.ModeServer
			if i > 0 {
				cfg.Bootstrap = swarmtest.Addrs(t, sim.Hosts[0])
			}
		}, opts...)
	}
	time.Sleep(5 * time.Second)
	synctest.Wait()
	return nodes
}

func TestAnnounce_AgainEveryTenMinutesWithJitter(t *testing.T) {
	swarmtest.Simulate(t, 3, 1, func(t *testing.T, sim *swarmtest.Sim) {
		nodes := simulated(t, sim, func(i int) []expert.ID { return []expert.ID{expert.ID(i)} })
		rounds := func() int { return nodes[1].Discovery.Status().Rounds }
		require.Equal(t, 1, nodes[1].Discovery.Status().Announced)
		begun := rounds()
		time.Sleep(8*time.Minute + 50*time.Second)
		require.Equal(t, begun, rounds(), "not before 9 minutes")
		time.Sleep(2*time.Minute + 20*time.Second)
		require.Equal(t, begun+1, rounds(), "not after 11 minutes")
		time.Sleep(50 * time.Minute)
		require.InDelta(t, begun+6, rounds(), 1)
		found, err := nodes[2].Discovery.Walk(t.Context(), 1)
		require.NoError(t, err)
		require.Len(t, found, 1, "an hour later the record is fresh")
	})
}

func TestAnnounce_RecordsRunOutAfterWithdraw(t *testing.T) {
	swarmtest.Simulate(t, 3, 1, func(t *testing.T, sim *swarmtest.Sim) {
		nodes := simulated(t, sim, func(i int) []expert.ID { return []expert.ID{expert.ID(i)} })
		nodes[1].Discovery.Withdraw()
		nodes[1].Discovery.Withdraw()
		time.Sleep(29 * time.Minute)
		found, err := nodes[2].Discovery.Walk(t.Context(), 1)
		require.NoError(t, err)
		require.Len(t, found, 1, "valid for 30 minutes")
		time.Sleep(2 * time.Minute)
		found, err = nodes[2].Discovery.Walk(t.Context(), 1)
		require.NoError(t, err)
		require.Empty(t, found)
		require.Zero(t, nodes[1].Discovery.Status().Announced)
		require.Equal(t, 1, nodes[0].Discovery.Status().Announced)
	})
}
