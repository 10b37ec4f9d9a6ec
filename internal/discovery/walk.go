package discovery

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

const (
	// walkTimeout bounds a walk: in a swarm of a million peers it takes some 6 steps of a round trip and a dial each.
	walkTimeout = 30 * time.Second
	// maxWalks run at once; each has up to 10 questions under way.
	maxWalks = 32
	// maxWaiting walks wait for their turn. More look-ups than that for different experts are turned away.
	maxWaiting = 4096
	// refreshEvery is how often the cache is searched for answers that will soon expire, and how many it walks for then.
	refreshEvery = time.Minute
	maxRefreshes = 64
	// addrTTL keeps the addresses of a provider for as long as its record may be valid.
	addrTTL = recordValidity
	// maxAddressless: a peer that was restarted knows who provides, but no longer where they are; so many of them are looked up.
	maxAddressless = 8
	// maxFound providers are taken in by one walk, and as many peers out of one reply. The registry keeps a few of them; a stranger could
	// make up any number.
	maxFound = 1024
)

// walk is one walk of the DHT for an expert: waiting, running or ended.
type walk struct {
	id    expert.ID
	first chan struct{} // closed when a provider is known, or with done
	done  chan struct{} // closed at the end

	mu    sync.Mutex
	known bool // first is closed
	found []peer.AddrInfo
	err   error // why the walk is not complete
}

func newWalk(id expert.ID) *walk {
	return &walk{id: id, first: make(chan struct{}), done: make(chan struct{})}
}

// full tells whether so many providers were found that there is no use in more.
func (w *walk) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.found) >= maxFound
}

// add takes a provider in, once, and tells whether it is new.
func (w *walk) add(info peer.AddrInfo) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.ContainsFunc(w.found, func(f peer.AddrInfo) bool { return f.ID == info.ID }) {
		return false
	}
	w.found = append(w.found, info)
	w.announce()
	return true
}

// announce wakes whoever waits for the first provider; called with mu held.
func (w *walk) announce() {
	if !w.known {
		w.known = true
		close(w.first)
	}
}

func (w *walk) end(err error) {
	w.mu.Lock()
	w.err = err
	w.announce()
	w.mu.Unlock()
	close(w.done)
}

// result returns what was found until now, and why the walk is not complete, if it ended early.
func (w *walk) result() ([]peer.AddrInfo, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.found), w.err
}

// begin returns the walk for an expert that is waiting or running, or lines up a new one (fresh).
func (s *Service) begin(id expert.ID) (w *walk, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, ok := s.walks[id]; ok {
		return w, false, nil
	}
	if len(s.walks) >= maxWalks+maxWaiting {
		return nil, false, ErrTooManyWalks
	}
	w = newWalk(id)
	s.walks[id] = w
	s.waiting = append(s.waiting, w)
	select {
	case s.wake <- struct{}{}:
	default: // awake already
	}
	return w, true, nil
}

// runWalks runs the walks that are lined up, maxWalks at once, until ctx ends.
func (s *Service) runWalks(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxWalks)
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		for w := s.nextWalk(); w != nil; w = s.nextWalk() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				s.finish(w, ErrStopped)
				return
			}
			wg.Go(func() {
				defer func() { <-slots }()
				start := time.Now()
				err := s.runWalk(ctx, w)
				s.metrics.walked(time.Since(start))
				s.finish(w, err)
			})
		}
	}
}

func (s *Service) nextWalk() *walk {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		return nil
	}
	w := s.waiting[0]
	s.waiting[0] = nil
	s.waiting = s.waiting[1:]
	return w
}

func (s *Service) finish(w *walk, err error) {
	s.mu.Lock()
	delete(s.walks, w.id)
	if err == nil {
		s.cache.complete(w.id, time.Now())
	}
	s.mu.Unlock()
	w.end(err)
}

// runWalk asks the DHT. Without error the walk is complete: all peers nearest to the key were asked.
func (s *Service) runWalk(ctx context.Context, w *walk) error {
	ctx, cancel := context.WithTimeout(ctx, walkTimeout)
	defer cancel()
	if !s.waitJoined(ctx) {
		return context.Cause(ctx)
	}
	var addressless []peer.ID
	for info := range s.dht.FindProvidersAsync(ctx, Key(w.id), 0) {
		switch {
		case info.ID == s.host.ID() || w.full():
		case len(info.Addrs) == 0 && len(s.host.Peerstore().Addrs(info.ID)) == 0 && s.host.Network().Connectedness(info.ID) != network.Connected:
			if len(addressless) < maxAddressless {
				addressless = append(addressless, info.ID)
			}
		default:
			s.provider(w, info)
		}
	}
	for _, p := range addressless {
		if info, err := s.dht.FindPeer(ctx, p); err == nil && len(info.Addrs) > 0 {
			s.provider(w, info)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("walk of the DHT cut short: %w", context.Cause(ctx))
	}
	if s.tableSize() == 0 && !s.alone() {
		return s.notJoined()
	}
	return nil
}

// provider takes in one provider that a walk found.
func (s *Service) provider(w *walk, info peer.AddrInfo) {
	s.host.Peerstore().AddAddrs(info.ID, info.Addrs, addrTTL)
	info = s.host.Peerstore().PeerInfo(info.ID)
	s.mu.Lock()
	s.cache.add(w.id, info.ID, time.Now())
	s.mu.Unlock()
	if w.add(info) && s.found != nil {
		s.found(w.id, info)
	}
}

// refresh walks again for what is in use and will soon expire, and drops from the cache what has expired.
func (s *Service) refresh(ctx context.Context) {
	clock := time.NewTicker(refreshEvery)
	defer clock.Stop()
	for {
		select {
		case <-clock.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		s.mu.Lock()
		due := s.cache.due(now, maxRefreshes)
		s.cache.prune(now)
		s.mu.Unlock()
		for _, id := range due {
			_, _, _ = s.begin(id) // where there are too many, the next tick tries again
		}
	}
}
