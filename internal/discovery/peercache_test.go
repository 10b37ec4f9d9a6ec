package discovery

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

func someInfo(t testing.TB, i int) peer.AddrInfo {
	t.Helper()
	id, err := peer.IDFromBytes(append([]byte{0, 36, 8, 1, 18, 32}, fmt.Appendf(nil, "%032d", i)...))
	require.NoError(t, err)
	return peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/10.0.0.1/tcp/%d", i+1))}}
}

func TestPeerCache_SurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	c, err := openPeerCache(dir)
	require.NoError(t, err)
	require.Empty(t, c.list(start))
	c.see([]peer.AddrInfo{someInfo(t, 1)}, start)
	c.see([]peer.AddrInfo{someInfo(t, 2), {ID: someInfo(t, 3).ID}}, start.Add(time.Minute))
	require.NoError(t, c.save(start.Add(time.Minute), false))

	c, err = openPeerCache(dir)
	require.NoError(t, err)
	require.Equal(t, []peer.AddrInfo{someInfo(t, 2), someInfo(t, 1)}, c.list(start.Add(time.Hour)), "the latest seen first, none without an address")
	require.Len(t, c.list(start.Add(rememberFor)), 1)
	require.Empty(t, c.list(start.Add(rememberFor+time.Minute)), "a month later")
}

func TestPeerCache_WritesSeldom(t *testing.T) {
	dir := t.TempDir()
	c, err := openPeerCache(dir)
	require.NoError(t, err)
	path := filepath.Join(dir, peerFile)
	written := func(now time.Time) bool {
		_ = os.Remove(path)
		require.NoError(t, c.save(now, false))
		_, err := os.Stat(path)
		return err == nil
	}
	c.see([]peer.AddrInfo{someInfo(t, 1)}, start)
	require.True(t, written(start))
	c.see([]peer.AddrInfo{someInfo(t, 1)}, start.Add(time.Second))
	require.False(t, written(start.Add(6*time.Second)), "nobody new")
	c.see([]peer.AddrInfo{someInfo(t, 2)}, start)
	require.False(t, written(start.Add(4*time.Second)))
	require.True(t, written(start.Add(5*time.Second)))
	require.True(t, written(start.Add(11*time.Minute)), "to note who is still there")
}

func TestPeerCache_IsBounded(t *testing.T) {
	now := start.Add(time.Hour)
	dir := t.TempDir()
	for _, at := range []string{dir, ""} { // with a file and without
		c, err := openPeerCache(at)
		require.NoError(t, err)
		for i := range 2 * maxRemembered {
			c.see([]peer.AddrInfo{someInfo(t, i)}, start.Add(time.Duration(i)*time.Second))
		}
		require.NoError(t, c.save(now, false))
		require.Len(t, c.peers, maxRemembered)
		require.Equal(t, someInfo(t, 2*maxRemembered-1).ID, c.list(now)[0].ID)
	}
	c, err := openPeerCache(dir)
	require.NoError(t, err)
	require.Len(t, c.list(now), maxRemembered)
}

func TestPeerCache_DamagedFileIsLeftBehind(t *testing.T) {
	for name, content := range map[string]string{
		"cut": `[{"peer":"12D3`, "other JSON": `{"a":1}`, "too large": string(make([]byte, maxPeerFile+1)), "empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, peerFile), []byte(content), 0o600))
			c, err := openPeerCache(dir)
			require.ErrorContains(t, err, peerFile)
			c.see([]peer.AddrInfo{someInfo(t, 1)}, start)
			require.NoError(t, c.save(start, false))
			c, err = openPeerCache(dir)
			require.NoError(t, err)
			require.Len(t, c.list(start), 1)
		})
	}
}

func FuzzParsePeerFile(f *testing.F) {
	data, err := json.Marshal([]rememberedPeer{{ID: someInfo(f, 1).ID, Addrs: []string{"/ip4/10.0.0.1/tcp/1"}, Seen: start}})
	require.NoError(f, err)
	f.Add(data)
	f.Add([]byte(`[{"peer":"","addrs":["x"]},{"peer":null,"addrs":null}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parsePeerFile(data)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(list), maxRemembered)
		for _, p := range list {
			require.NoError(t, p.ID.Validate())
			require.NotEmpty(t, p.info().Addrs)
			require.LessOrEqual(t, len(p.info().Addrs), maxRememberedAddrs)
		}
	})
}
