package discovery

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// swarmOf makes up n peers and returns a perfect look-up among them.
func swarmOf(n int, dice *rand.Rand) func(where kb.ID) []peer.ID {
	peers := make([]peer.ID, n)
	for i := range peers {
		peers[i] = peer.ID(fmt.Sprintf("peer-%d-%d", i, dice.Uint64()))
	}
	return func(where kb.ID) []peer.ID { return kb.SortClosestPeers(peers, where)[:min(n, replicas)] }
}

// The grouped announcement against a look-up for each key: every key must get to the peers that a walk for it asks first.
func TestCovered_KeysGetToTheirNearestPeers(t *testing.T) {
	for _, size := range []int{1, 5, 19, 20, 21, 40, 100, 1000, 3000} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			const seed, keys = 1, 300
			dice := rand.New(rand.NewPCG(seed, uint64(size)))
			lookup := swarmOf(size, dice)
			ids := make([]expert.ID, keys)
			for i := range ids {
				ids[i] = expert.ID(dice.Uint64())
			}
			records := sortedRecords(ids)
			lookups, hits, want := 0, 0, 0
			for len(records) > 0 {
				found := lookup(records[0].where)
				n := covered(records, found)
				lookups++
				for _, r := range records[:n] {
					nearest := lookup(r.where)
					require.Subset(t, found, nearest[:min(len(nearest), minRegion)], "the nearest of %s are left out", r.id)
					for _, p := range nearest {
						want++
						if slices.Contains(found, p) {
							hits++
						}
					}
				}
				records = records[n:]
			}
			t.Logf("%d keys, %d look-ups, %.1f%% of the 20 nearest", keys, lookups, 100*float64(hits)/float64(want))
			require.Greater(t, float64(hits)/float64(want), 0.7)
			require.LessOrEqual(t, lookups, max(1, size/5))
		})
	}
}

func TestSortedRecords_AreInTheOrderOfTheKeySpace(t *testing.T) {
	records := sortedRecords([]expert.ID{5, 3, 9, 1})
	require.Len(t, records, 4)
	require.True(t, slices.IsSortedFunc(records, func(a, b record) int { return bytes.Compare(a.where, b.where) }))
	require.Empty(t, sortedRecords(nil))
}
