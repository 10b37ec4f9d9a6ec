package p2p

import (
	"context"
	"errors"
	"io"
	"maps"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// When a machine refuses a TCP connection, nobody listens there, and most likely the process is gone. libp2p then tries QUIC at once,
// as it should: TCP alone may be filtered. But a dead process does not refuse QUIC, it is silent, and the dial would fail only after
// 5 s. So after a refusal QUIC gets no more time than a living host needs for its handshake.
const (
	// refusalLasts covers the other dials of the same attempt.
	refusalLasts = 2 * time.Second
	// A handshake takes one round trip and some 3 ms of arithmetic: under 100 ms on one's own network even if the host is busy, and
	// up to 600 ms to the other side of the world.
	nearHandshake = 300 * time.Millisecond
	farHandshake  = 1500 * time.Millisecond
	// maxRefusals bounds how many are remembered before the old ones are dropped.
	maxRefusals = 1024
)

var errNoQUICEither = errors.New("TCP was refused, and QUIC was not answered")

// refusals remembers which peers have just refused TCP. Safe for concurrent use.
type refusals struct {
	mu sync.Mutex
	at map[peer.ID]time.Time
}

func newRefusals() *refusals { return &refusals{at: map[peer.ID]time.Time{}} }

func (r *refusals) note(p peer.ID, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.at) >= maxRefusals {
		maps.DeleteFunc(r.at, func(_ peer.ID, t time.Time) bool { return now.Sub(t) > refusalLasts })
	}
	if len(r.at) < maxRefusals {
		r.at[p] = now
	}
}

func (r *refusals) recent(p peer.ID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.at[p]
	return ok && now.Sub(t) <= refusalLasts
}

// tcpTransport is libp2p's, and notes refusals.
type tcpTransport struct {
	*tcp.TcpTransport
	refusals *refusals
}

// newTCP returns the constructor that libp2p calls.
func newTCP(r *refusals, opts ...tcp.Option) any {
	return func(u transport.Upgrader, manager network.ResourceManager) (transport.Transport, error) {
		t, err := tcp.NewTCPTransport(u, manager, nil, opts...)
		return &tcpTransport{TcpTransport: t, refusals: r}, err
	}
}

// Dial is libp2p's.
func (t *tcpTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, addr, p, nil)
}

// DialWithUpdates is libp2p's.
func (t *tcpTransport) DialWithUpdates(ctx context.Context, addr ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	c, err := t.TcpTransport.DialWithUpdates(ctx, addr, p, updates)
	if errors.Is(err, syscall.ECONNREFUSED) {
		t.refusals.note(p, time.Now())
	}
	return c, err
}

// quicTransport is libp2p's, with less patience after a refusal.
type quicTransport struct {
	transport.Transport
	refusals *refusals
}

// newQUIC returns the constructor that libp2p calls.
func newQUIC(r *refusals) any {
	return func(key crypto.PrivKey, m *quicreuse.ConnManager, psk pnet.PSK, gater connmgr.ConnectionGater, manager network.ResourceManager) (transport.Transport, error) {
		t, err := libp2pquic.NewTransport(key, m, psk, gater, manager)
		return &quicTransport{Transport: t, refusals: r}, err
	}
}

// Dial is libp2p's.
func (t *quicTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	punching, _, _ := network.GetSimultaneousConnect(ctx)
	if !punching && t.refusals.recent(p, time.Now()) {
		patience := nearHandshake
		if manet.IsPublicAddr(addr) {
			patience = farHandshake
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, patience, errNoQUICEither)
		defer cancel()
	}
	return t.Transport.Dial(ctx, addr, p)
}

// Close ends the listeners.
func (t *quicTransport) Close() error {
	if c, ok := t.Transport.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
