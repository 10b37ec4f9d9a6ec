package discovery

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Forget drops an expert from the cache.
func (s *Service) Forget(id expert.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache.entries.Remove(id)
}

// Declare announces experts and returns once they are acknowledged, with their number.
func (s *Service) Declare(ctx context.Context, ids ...expert.ID) (int, error) {
	done, err := s.sweep(ctx, ids)
	return len(done), err
}

// Peers returns the peers in the DHT's routing table.
func (s *Service) Peers() []peer.ID { return s.dht.RoutingTable().ListPeers() }

// WalkEnded returns a channel that is closed when no walk for the expert is under way.
func (s *Service) WalkEnded(id expert.ID) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, ok := s.walks[id]; ok {
		return w.done
	}
	ended := make(chan struct{})
	close(ended)
	return ended
}

// Records returns how many records of others and its own the service keeps on disk or in memory.
func (s *Service) Records() int {
	r := s.store.at.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// MaxRecordsPerPeer is the bound of records for one peer.
const MaxRecordsPerPeer = maxRecordsPerPeer

// MaxFound is the bound of providers that one walk takes in.
const MaxFound = maxFound

// Known returns what the cache holds about an expert, without looking anywhere.
func (s *Service) Known(id expert.ID) []Sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cache.peek(id, time.Now())
}

// peek returns what get would, and leaves no trace of having been asked.
func (c *cache) peek(id expert.ID, now time.Time) []Sighting {
	e, ok := c.entries.Peek(id)
	if !ok {
		return nil
	}
	c.expire(e, now)
	return e.sightings()
}
