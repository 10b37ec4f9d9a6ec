package discovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

var (
	// ErrNotJoined: no peer of the swarm can be reached, so nobody could be asked. Try again later; Status names who is tried.
	ErrNotJoined = errors.New("not joined to the swarm: no peer of the DHT is reachable")
	// ErrTooManyWalks: more experts are looked up at once than this node can. Try again later.
	ErrTooManyWalks = errors.New("too many look-ups at once")
	// ErrStopped: the service has ended.
	ErrStopped = errors.New("discovery has stopped")
)

// Sighting says when a peer was last found to provide an expert.
type Sighting struct {
	Peer peer.ID
	Seen time.Time
}

// Find returns the peers that host an expert, this node left out, as soon as one is known: from the cache, or with the first answer
// of a walk of the DHT, which then goes on behind; whom it finds later is told through the function given with WithFound. Empty
// without an error: a complete walk found nobody. Their addresses are in the peerstore when Find returns.
func (s *Service) Find(ctx context.Context, id expert.ID) ([]peer.AddrInfo, error) {
	s.mu.Lock()
	sightings, refresh := s.cache.get(id, time.Now())
	s.mu.Unlock()
	if found := s.reachable(sightings); len(found) > 0 {
		if refresh {
			_, _, _ = s.begin(id) // when there are too many, a later call will do it
		}
		s.metrics.found(answerCache)
		return found, nil
	}
	w, _, err := s.begin(id)
	if err != nil {
		s.metrics.found(answerError)
		return nil, err
	}
	select {
	case <-w.first:
	case <-s.stopped:
		err = ErrStopped
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	found, walkErr := w.result()
	switch {
	case len(found) > 0:
		s.metrics.found(answerWalk)
		return found, nil
	case err == nil:
		err = walkErr
	}
	if err != nil {
		s.metrics.found(answerError)
		return nil, fmt.Errorf("look-up of %s: %w", id, err)
	}
	s.metrics.found(answerNone)
	return nil, nil
}

// Walk returns the peers that a complete walk of the DHT finds, one begun after the call; one that is under way will do if it finds
// somebody. Empty without an error: nobody. With an error it returns whom it has found until then. Whoever is found is told through WithFound's
// function too.
func (s *Service) Walk(ctx context.Context, id expert.ID) ([]peer.AddrInfo, error) {
	for again := false; ; again = true {
		w, fresh, err := s.begin(id)
		if err != nil {
			return nil, fmt.Errorf("look-up of %s: %w", id, err)
		}
		select {
		case <-w.done:
		case <-s.stopped:
			return nil, fmt.Errorf("look-up of %s: %w", id, ErrStopped)
		case <-ctx.Done():
			found, _ := w.result()
			return found, fmt.Errorf("look-up of %s: %w", id, context.Cause(ctx))
		}
		found, err := w.result()
		switch {
		case len(found) > 0:
			return found, nil
		case !fresh && !again: // it had begun before this call; the next one has not
		case err != nil:
			return nil, fmt.Errorf("look-up of %s: %w", id, err)
		default:
			return nil, nil
		}
	}
}

// reachable gives the sightings their addresses. Peers without any, and without a connection, are left out: a walk will tell.
func (s *Service) reachable(sightings []Sighting) []peer.AddrInfo {
	found := make([]peer.AddrInfo, 0, len(sightings))
	for _, sighting := range sightings {
		info := s.host.Peerstore().PeerInfo(sighting.Peer)
		if len(info.Addrs) > 0 || s.host.Network().Connectedness(sighting.Peer) == network.Connected {
			found = append(found, info)
		}
	}
	return found
}
