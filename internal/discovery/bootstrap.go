package discovery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
)

const (
	// connectTimeout bounds one try to reach a bootstrap peer: names, TCP, QUIC.
	connectTimeout = 15 * time.Second
	// joinTimeout bounds how long first look-ups and announcements wait for the swarm; then they run with whom there is.
	joinTimeout = 10 * time.Second
	// joinPoll: the routing table tells nobody when it gets its first peer.
	joinPoll = 5 * time.Millisecond
	// The pause between two tries doubles from the first to the second.
	firstPause = 500 * time.Millisecond
	lastPause  = time.Minute
	// lastLonePause is how often whoever is alone looks for remembered peers in the end: there may be 256 of them, and nobody asked for
	// them to be dialled, as the operator did for bootstrap peers.
	lastLonePause = 10 * time.Minute
	// settled: a connection that lived so long was fine, and the next pause is the first again.
	settled = 10 * time.Minute
	// enoughPeers in the routing table: a bootstrap peer is not needed then, and is left alone (a large swarm's has others to serve)
	// but for a look every checkEvery.
	enoughPeers = 20
	checkEvery  = 10 * time.Minute
	// protocolGrace is what a bootstrap peer has, once connected, to say that it serves our swarm's DHT.
	protocolGrace = 10 * time.Second
)

// bootstrapPeer is one of the peers to join by.
type bootstrapPeer struct {
	info peer.AddrInfo

	mu    sync.Mutex
	tried bool      // at least one try has ended
	err   error     // of the last try; nil: it worked, or none has ended yet
	since time.Time // when the last try that worked, or the first that failed since then, ended
}

// keepBootstrap joins by one bootstrap peer, and again when the connection is lost and the swarm around us is thin.
func (s *Service) keepBootstrap(ctx context.Context, b *bootstrapPeer) {
	pauses := &backoff.ExponentialBackOff{InitialInterval: firstPause, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: lastPause}
	pauses.Reset()
	for ctx.Err() == nil {
		err := s.connect(ctx, b.info)
		if ctx.Err() != nil {
			return
		}
		s.noteBootstrap(b, err)
		pause := time.Duration(0)
		if err == nil {
			connected := time.Now()
			s.whileConnected(ctx, b.info.ID)
			if time.Since(connected) > settled {
				pauses.Reset()
			}
			if s.tableSize() >= enoughPeers {
				pause = time.Duration(float64(checkEvery) * (0.5 + rand.Float64()))
			}
		}
		if pause == 0 {
			pause = pauses.NextBackOff()
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// connect dials a peer and waits until it has identified itself. Pauses after failures are ours: libp2p's, of 5 s to 5 min, are cut.
func (s *Service) connect(ctx context.Context, info peer.AddrInfo) error {
	if sw, ok := s.host.Network().(*swarm.Swarm); ok {
		sw.Backoff().Clear(info.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return s.host.Connect(ctx, info)
}

// whileConnected returns when p is connected no more, or ctx has ended.
func (s *Service) whileConnected(ctx context.Context, p peer.ID) {
	for s.host.Network().Connectedness(p) == network.Connected {
		if !sleep(ctx, tick) {
			return
		}
	}
}

func (s *Service) noteBootstrap(b *bootstrapPeer, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		b.since = time.Now()
		s.log.Info().Stringer("peer", b.info.ID).Msg("bootstrap peer connected")
	case b.err == nil:
		b.since = time.Now()
		s.log.Warn().Err(err).Stringer("peer", b.info.ID).Msg("bootstrap peer unreachable, trying on")
	default:
		s.log.Debug().Err(err).Stringer("peer", b.info.ID).Msg("bootstrap peer still unreachable")
	}
	b.tried, b.err = true, err
}

func (b *bootstrapPeer) hasTried() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tried
}

// problem says what is wrong with a bootstrap peer; empty: nothing, or nothing is known yet.
func (s *Service) problem(b *bootstrapPeer, now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err != nil:
		return fmt.Sprintf("bootstrap %s unreachable for %v: %v", b.name(), now.Sub(b.since).Round(time.Second), b.err)
	case b.tried && s.host.Network().Connectedness(b.info.ID) == network.Connected && now.Sub(b.since) > protocolGrace:
		if known, err := s.host.Peerstore().SupportsProtocols(b.info.ID, Protocol(s.cfg.Swarm)); err == nil && len(known) == 0 {
			return fmt.Sprintf("bootstrap %s serves no DHT of swarm %q: is it in another swarm, or a client?", b.name(), s.cfg.Swarm)
		}
	}
	return ""
}

func (b *bootstrapPeer) name() string {
	addrs, err := peer.AddrInfoToP2pAddrs(&b.info)
	if err != nil || len(addrs) == 0 {
		return b.info.ID.String()
	}
	return addrs[0].String()
}

// useCache joins by the peers of earlier days, at the start and whenever everybody is gone: soon, then with growing pauses, which begin
// anew once anybody was there.
func (s *Service) useCache(ctx context.Context) {
	pauses := &backoff.ExponentialBackOff{InitialInterval: firstPause, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: lastLonePause}
	pauses.Reset()
	for ctx.Err() == nil {
		s.tryRemembered(ctx)
		s.cacheTried.Store(true)
		next := time.Now().Add(pauses.NextBackOff())
		for met := s.tableSize() > 0; met || time.Now().Before(next); met = s.tableSize() > 0 {
			if met {
				pauses.Reset()
				next = time.Now().Add(pauses.NextBackOff())
			}
			if !sleep(ctx, tick) {
				return
			}
		}
	}
}

// tryRemembered dials remembered peers, the latest seen first and some at once, until a few are connected.
func (s *Service) tryRemembered(ctx context.Context) {
	const atOnce, wanted = 8, 4
	list := s.remembered.list(time.Now())
	for len(list) > 0 && ctx.Err() == nil && s.tableSize() < wanted {
		batch := list[:min(len(list), atOnce)]
		list = list[len(batch):]
		var wg sync.WaitGroup
		for _, info := range batch {
			wg.Go(func() {
				if err := s.connect(ctx, info); err != nil {
					s.log.Debug().Err(err).Stringer("peer", info.ID).Msg("remembered peer unreachable")
				}
			})
		}
		wg.Wait()
	}
}

// thicken looks for more peers while few are known. kad-dht does so once when it meets the first one, and then every ten minutes; if
// that first search is cut short, because a whole swarm starts at once on slow machines, ten minutes are long.
func (s *Service) thicken(ctx context.Context) {
	const first, last = 5 * time.Second, 10 * time.Minute
	pause := first
	for sleep(ctx, pause) {
		known := s.tableSize()
		if known >= enoughPeers {
			pause = last
			continue
		}
		if known > 0 {
			select {
			case err := <-s.dht.RefreshRoutingTable():
				if err != nil {
					s.log.Debug().Err(err).Msg("search for more peers ended early")
				}
			case <-ctx.Done():
				return
			}
		}
		pause = min(2*pause, last)
		if s.tableSize() != known || known == 0 {
			pause = first
		}
	}
}

// watchJoining closes joining when the swarm has been met, or everybody was tried in vain, or it takes too long.
func (s *Service) watchJoining(ctx context.Context) {
	defer close(s.joining)
	deadline := time.Now().Add(joinTimeout)
	for s.tableSize() == 0 && time.Now().Before(deadline) {
		tried := s.cacheTried.Load()
		connected := false
		for _, b := range s.bootstraps {
			tried = tried && b.hasTried()
			connected = connected || s.host.Network().Connectedness(b.info.ID) == network.Connected
		}
		if tried && !connected {
			return
		}
		if !sleep(ctx, joinPoll) {
			return
		}
	}
}

// WaitJoined waits until the swarm is met. When everybody was tried in vain, the error matches ErrNotJoined and says what was
// tried; trying goes on, and a later call may succeed. A node that is alone by intent has nobody to wait for.
func (s *Service) WaitJoined(ctx context.Context) error {
	if !s.waitJoined(ctx) {
		return fmt.Errorf("%w: %w", ErrNotJoined, context.Cause(ctx))
	}
	if s.tableSize() > 0 || s.alone() {
		return nil
	}
	return s.notJoined()
}

// notJoined is ErrNotJoined with what is wrong with whom.
func (s *Service) notJoined() error {
	err := ErrNotJoined
	for _, b := range s.bootstraps {
		if p := s.problem(b, time.Now()); p != "" {
			err = fmt.Errorf("%w; %s", err, p)
		}
	}
	return err
}

// waitJoined waits until joining is over, one way or the other; false: ctx ended first.
func (s *Service) waitJoined(ctx context.Context) bool {
	select {
	case <-s.joining:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// sleep waits; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
