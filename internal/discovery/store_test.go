package discovery

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// open opens a store and closes it at the end. LevelDB's last goroutine ends a second after its Close.
func open(t *testing.T, dir string) *store {
	t.Helper()
	s, err := openStore(dir, "self", zerolog.Nop())
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = s.Close() // the test may have done it
		require.Eventually(t, func() bool {
			stacks := make([]byte, 1<<20)
			return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "mpoolDrain")
		}, 5*time.Second, 10*time.Millisecond)
	})
	return s
}

func recordKey(expert int, p peer.ID) datastore.Key {
	return datastore.NewKey(fmt.Sprintf("/providers/KEY%d/%s", expert, peerPart(p)))
}

// fill stores n records of a peer in batches, as kad-dht does.
func fill(t *testing.T, s *store, p peer.ID, n int) {
	t.Helper()
	ctx := context.Background()
	for begin := 0; begin < n; begin += 256 {
		b, err := s.Batch(ctx)
		require.NoError(t, err)
		for i := begin; i < min(n, begin+256); i++ {
			require.NoError(t, b.Put(ctx, recordKey(i, p), []byte("time")))
		}
		require.NoError(t, b.Commit(ctx))
	}
}

func stored(t *testing.T, s *store, prefix string) int {
	t.Helper()
	r, err := s.Query(context.Background(), query.Query{Prefix: prefix})
	require.NoError(t, err)
	entries, err := r.Rest()
	require.NoError(t, err)
	return len(entries)
}

func TestStore_BoundsThePeersButNotItself(t *testing.T) {
	for name, dir := range map[string]string{"memory": "", "disk": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			s := open(t, dir)
			fill(t, s, "greedy", maxRecordsPerPeer+300)
			require.True(t, s.full("greedy"))
			require.False(t, s.full("modest"))
			fill(t, s, "modest", 10)
			require.Equal(t, maxRecordsPerPeer+10, stored(t, s, "/providers"))
			fill(t, s, "greedy", maxRecordsPerPeer) // the same again: refreshed, not counted twice
			require.Equal(t, maxRecordsPerPeer+10, s.at.Load().total)
			require.Equal(t, 300, s.at.Load().refused)
			require.NoError(t, s.Delete(t.Context(), recordKey(0, "greedy")))
			require.NoError(t, s.Delete(t.Context(), recordKey(0, "greedy")))
			require.False(t, s.full("greedy"))
			fill(t, s, "self", maxRecordsPerPeer+300)
			require.False(t, s.full("self"))
		})
	}
}

func TestStore_CountsWhatIsOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	fill(t, s, "a", 7)
	fill(t, s, "b", 5)
	require.NoError(t, s.Close())
	s = open(t, dir)
	require.Equal(t, 12, s.at.Load().total)
	require.Equal(t, map[string]int{peerPart("a"): 7, peerPart("b"): 5}, s.at.Load().perPeer)
}

func TestStore_BeginsAnewWhenItIsDamaged(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	fill(t, s, "a", 7)
	require.NoError(t, s.Close())
	files, err := filepath.Glob(filepath.Join(dir, "dht", "*"))
	require.NoError(t, err)
	for _, f := range files {
		require.NoError(t, os.WriteFile(f, []byte("garbage"), 0o600))
	}
	s = open(t, dir)
	fill(t, s, "b", 1)
	require.Equal(t, 1, stored(t, s, "/providers"))
}

func TestMemory_FindsTheRecordsOfOneKey(t *testing.T) {
	s := open(t, "")
	fill(t, s, "a", 20)
	fill(t, s, "b", 2)
	require.Equal(t, 2, stored(t, s, "/providers/KEY1"))
	require.Equal(t, 1, stored(t, s, "/providers/KEY19"))
	require.Equal(t, 0, stored(t, s, "/providers/KEY"))
	require.Equal(t, 22, stored(t, s, "/providers/"))
	require.Equal(t, 22, stored(t, s, ""))
	value, err := s.Get(t.Context(), recordKey(1, "a"))
	require.NoError(t, err)
	require.Equal(t, "time", string(value))
	size, err := s.GetSize(t.Context(), recordKey(1, "a"))
	require.NoError(t, err)
	require.Equal(t, 4, size)
	_, err = s.Get(t.Context(), recordKey(1, "c"))
	require.ErrorIs(t, err, datastore.ErrNotFound)
	require.NoError(t, s.Sync(t.Context(), datastore.NewKey("/")))
	require.NoError(t, s.Put(t.Context(), recordKey(1, "c"), nil))
	require.Equal(t, 3, stored(t, s, "/providers/KEY1"))
}
