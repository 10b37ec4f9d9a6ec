package discovery

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// peerFile in the data directory holds the peers seen.
	peerFile = "peers.json"
	// maxRemembered peers of maxRememberedAddrs addresses take 100 KiB. Half of a swarm may be gone overnight; of so many some stay.
	maxRemembered      = 256
	maxRememberedAddrs = 8
	// maxPeerFile is far above what remembered peers take; a larger file is not ours.
	maxPeerFile = 1 << 20
	// rememberFor: whoever was not seen for a month has most likely another address.
	rememberFor = 30 * 24 * time.Hour
	// saveEvery bounds how often the file is written while peers come and go.
	saveEvery = 5 * time.Second
	// touchEvery is how often it is written to note that known peers are still there.
	touchEvery = 10 * time.Minute
)

// rememberedPeer is one line of the peer file.
type rememberedPeer struct {
	ID    peer.ID   `json:"peer"`
	Addrs []string  `json:"addrs"`
	Seen  time.Time `json:"seen"`
}

// peerCache remembers peers on disk, so that a node finds its swarm again when every bootstrap peer is gone.
type peerCache struct {
	path string // empty: they are remembered for as long as the process runs

	mu    sync.Mutex
	peers map[peer.ID]rememberedPeer
	saved time.Time // when the file was written last
	dirty bool      // somebody new is in peers
}

// openPeerCache reads the peers of earlier days. A file that cannot be read costs nothing but those, so err is only to be logged;
// the cache is usable with it.
func openPeerCache(dir string) (c *peerCache, err error) {
	c = &peerCache{peers: map[peer.ID]rememberedPeer{}}
	if dir == "" {
		return c, nil
	}
	c.path = filepath.Join(dir, peerFile)
	info, err := os.Stat(c.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return c, err
	case info.Size() > maxPeerFile:
		return c, fmt.Errorf("%s: %d bytes are more than the peers of any node", c.path, info.Size())
	}
	data, err := os.ReadFile(c.path)
	if err != nil {
		return c, err
	}
	list, err := parsePeerFile(data)
	if err != nil {
		return c, fmt.Errorf("%s: %w", c.path, err)
	}
	for _, p := range list {
		c.peers[p.ID] = p
	}
	return c, nil
}

// parsePeerFile reads a peer file. Entries without a usable address are left out.
func parsePeerFile(data []byte) ([]rememberedPeer, error) {
	var list []rememberedPeer
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(p rememberedPeer) bool { return p.ID.Validate() != nil || len(p.info().Addrs) == 0 })
	return list[:min(len(list), maxRemembered)], nil
}

func (p rememberedPeer) info() peer.AddrInfo {
	info := peer.AddrInfo{ID: p.ID}
	for _, s := range p.Addrs[:min(len(p.Addrs), maxRememberedAddrs)] {
		if a, err := ma.NewMultiaddr(s); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}

// list returns the remembered peers, the latest seen first.
func (c *peerCache) list(now time.Time) []peer.AddrInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	var infos []peer.AddrInfo
	for _, p := range c.sorted(now) {
		infos = append(infos, p.info())
	}
	return infos
}

// sorted drops who was not seen for long or is one too many; called with mu held.
func (c *peerCache) sorted(now time.Time) []rememberedPeer {
	list := make([]rememberedPeer, 0, len(c.peers))
	for _, p := range c.peers {
		if now.Sub(p.Seen) < rememberFor {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b rememberedPeer) int { return cmp.Or(b.Seen.Compare(a.Seen), cmp.Compare(a.ID, b.ID)) })
	return list[:min(len(list), maxRemembered)]
}

// see notes the peers that are there now.
func (c *peerCache) see(peers []peer.AddrInfo, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, info := range peers {
		if len(info.Addrs) == 0 {
			continue
		}
		p := rememberedPeer{ID: info.ID, Seen: now}
		for _, a := range info.Addrs[:min(len(info.Addrs), maxRememberedAddrs)] {
			p.Addrs = append(p.Addrs, a.String())
		}
		old, known := c.peers[info.ID]
		c.dirty = c.dirty || !known || !slices.Equal(old.Addrs, p.Addrs)
		c.peers[info.ID] = p
	}
}

// save lets go of peers that are too many, and writes the file: if somebody new was seen, or if it is old, or always when last is set.
// Either the old or the new file is there, whenever the machine stops.
func (c *peerCache) save(now time.Time, last bool) error {
	c.mu.Lock()
	age := now.Sub(c.saved)
	if !last && age < touchEvery && (!c.dirty || age < saveEvery) {
		c.mu.Unlock()
		return nil
	}
	list := c.sorted(now)
	if len(list) < len(c.peers) { // let go of the others
		clear(c.peers)
		for _, p := range list {
			c.peers[p.ID] = p
		}
	}
	c.saved, c.dirty = now, false
	c.mu.Unlock()
	if c.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return err
	}
	return writeAtomic(c.path, data)
}

// writeAtomic replaces a file as a whole.
func writeAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o600), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
