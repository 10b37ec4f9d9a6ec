package rpc

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/kwaai/kwaaid/internal/wire"
)

// ServerConfig says what a host takes.
type ServerConfig struct {
	Limits wire.Limits
	// StreamsPerPeer is how many streams one peer may have open here.
	StreamsPerPeer int
	// RequestsPerPeer is how many requests one peer may send in a second; 0: as many as it likes.
	RequestsPerPeer int
	// IdleTimeout ends a stream on which no request came for that long. It is above the caller's, who knows best.
	IdleTimeout time.Duration
	// TransferTimeout is how long one frame may take to come or to go.
	TransferTimeout time.Duration
}

// DefaultServerConfig returns the limits of the contract.
func DefaultServerConfig() ServerConfig {
	return ServerConfig{
		Limits:         wire.DefaultLimits(),
		StreamsPerPeer: 64,
		// Twice the caller's, so that a stream which the caller may still use is not closed.
		IdleTimeout: 2 * time.Minute,
		// 256 MiB at 5 MB/s, which is what a home's uplink moves.
		TransferTimeout: time.Minute,
	}
}

// Validate reports everything that would not work.
func (c ServerConfig) Validate() error {
	errs := []error{c.Limits.Validate()}
	if c.StreamsPerPeer < 1 {
		errs = append(errs, fmt.Errorf("streams_per_peer: %d is under 1: nobody could call", c.StreamsPerPeer))
	}
	if c.RequestsPerPeer < 0 {
		errs = append(errs, fmt.Errorf("requests_per_peer: %d is negative: 0 sets no limit", c.RequestsPerPeer))
	}
	if c.IdleTimeout < time.Second {
		errs = append(errs, fmt.Errorf("idle timeout: %v is under 1s: callers would open a stream for each call", c.IdleTimeout))
	}
	if c.TransferTimeout < time.Second {
		errs = append(errs, fmt.Errorf("transfer timeout: %v is under 1s: frames under way would be cut off", c.TransferTimeout))
	}
	return errors.Join(errs...)
}

// ClientConfig says how a caller keeps its streams.
type ClientConfig struct {
	Limits wire.Limits
	// StreamsPerPeer is how many calls run at one peer at once; further ones wait, pings do not. It is under the host's own limit,
	// where a stream that was cancelled here may still count for a moment.
	StreamsPerPeer int
	// Peers is to how many peers open streams are kept; those used longest ago give way.
	Peers int
	// IdleTimeout closes a stream that was not used for that long.
	IdleTimeout time.Duration
}

// DefaultClientConfig returns what fits DefaultServerConfig.
func DefaultClientConfig() ClientConfig {
	return ClientConfig{
		Limits:         wire.DefaultLimits(),
		StreamsPerPeer: 48,
		// A layer of 512 experts on hosts of their own, twice.
		Peers:       1024,
		IdleTimeout: time.Minute,
	}
}

// Validate reports everything that would not work.
func (c ClientConfig) Validate() error {
	errs := []error{c.Limits.Validate()}
	if c.StreamsPerPeer < 1 {
		errs = append(errs, fmt.Errorf("streams per peer: %d is under 1: no call could be made", c.StreamsPerPeer))
	}
	if c.Peers < 1 {
		errs = append(errs, fmt.Errorf("peers: %d is under 1: no stream would be used twice", c.Peers))
	}
	if c.IdleTimeout < time.Second {
		errs = append(errs, fmt.Errorf("idle timeout: %v is under 1s: a stream would be opened for each call", c.IdleTimeout))
	}
	return errors.Join(errs...)
}

// maxRated bounds the peers whose request rate is remembered. One that falls out starts with a full bucket again.
const maxRated = 4096

// peerLimits counts what each peer has open and how fast it asks. Safe for concurrent use.
type peerLimits struct {
	streamsPerPeer  int
	requestsPerPeer int

	mu      sync.Mutex
	streams map[peer.ID]int // Invariant: 0 < streams[p] <= streamsPerPeer.
	rates   *simplelru.LRU[peer.ID, *rate.Limiter]
}

func newPeerLimits(cfg ServerConfig) (*peerLimits, error) {
	rates, err := simplelru.NewLRU[peer.ID, *rate.Limiter](maxRated, nil)
	if err != nil {
		return nil, err
	}
	return &peerLimits{
		streamsPerPeer: cfg.StreamsPerPeer, requestsPerPeer: cfg.RequestsPerPeer,
		streams: make(map[peer.ID]int), rates: rates,
	}, nil
}

// open counts a stream in, unless the peer has all that it may have. Each true is answered by one close.
func (l *peerLimits) open(p peer.ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams[p] >= l.streamsPerPeer {
		return false
	}
	l.streams[p]++
	return true
}

func (l *peerLimits) close(p peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams[p]--; l.streams[p] == 0 {
		delete(l.streams, p)
	}
}

// allow takes a request of the peer's budget; when there is none left, it says after which time there is.
func (l *peerLimits) allow(p peer.ID, now time.Time) (retryAfter time.Duration, ok bool) {
	if l.requestsPerPeer == 0 {
		return 0, true
	}
	l.mu.Lock()
	limiter, found := l.rates.Get(p)
	if !found {
		limiter = rate.NewLimiter(rate.Limit(l.requestsPerPeer), l.requestsPerPeer)
		l.rates.Add(p, limiter)
	}
	l.mu.Unlock()
	if limiter.AllowN(now, 1) {
		return 0, true
	}
	return time.Second / time.Duration(l.requestsPerPeer), false
}
