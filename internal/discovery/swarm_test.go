package discovery_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// LevelDB's repair of a damaged database forgets a buffer pool, whose goroutine stays. One that is open has others besides.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb/util.(*BufferPool).drain"))
}

func TestFind_EveryNodeFindsEveryExpert(t *testing.T) {
	nodes := swarmtest.Swarm(t, 10, func(i int) []expert.ID { return []expert.ID{expert.ID(i), expert.ID(100 + i/2)} })
	for _, n := range nodes {
		swarmtest.Eventually(t, func() bool { return n.Discovery.Status().Announced == 2 }, "not announced")
	}
	for _, n := range nodes {
		for i, host := range nodes {
			found, err := n.Discovery.Find(t.Context(), expert.ID(i))
			require.NoError(t, err)
			if host == n {
				require.Empty(t, found)
				continue
			}
			require.Len(t, found, 1)
			require.Equal(t, host.Host.ID(), found[0].ID)
			require.NotEmpty(t, found[0].Addrs)
		}
		start := time.Now()
		none, err := n.Discovery.Find(t.Context(), 4711)
		require.NoError(t, err)
		require.Empty(t, none)
		t.Log("nobody:", time.Since(start))
	}
}
