package discovery

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fillDisk makes every write to an open file fail as on a full disk.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer full.Close()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	found := 0
	for _, e := range fds {
		if at, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && at == path {
			fd, err := strconv.Atoi(e.Name())
			require.NoError(t, err)
			require.NoError(t, unix.Dup3(int(full.Fd()), fd, unix.O_CLOEXEC))
			found++
		}
	}
	require.Equal(t, 1, found, "open files at %s", path)
}

// LevelDB takes no write more once one has failed, and without its own records a node could announce none of its experts.
func TestStore_GoesOnInMemoryWhenTheDiskIsFull(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	fill(t, s, "a", 7)
	logs, err := filepath.Glob(filepath.Join(dir, "dht", "*.log"))
	require.NoError(t, err)
	require.Len(t, logs, 1)
	fillDisk(t, logs[0])

	fill(t, s, "b", 5)
	require.NoError(t, s.Put(t.Context(), recordKey(5, "b"), []byte("time")))
	require.Equal(t, 13, stored(t, s, "/providers"), "those before the disk was full too")
	require.Equal(t, map[string]int{peerPart("a"): 7, peerPart("b"): 6}, s.at.Load().perPeer)
	require.NoError(t, s.Delete(t.Context(), recordKey(0, "a")))
	require.Equal(t, 12, s.at.Load().total)
	fill(t, s, "greedy", maxRecordsPerPeer+300)
	require.True(t, s.full("greedy"))
}
