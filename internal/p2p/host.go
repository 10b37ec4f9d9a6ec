package p2p

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

const (
	// maxKnownAddrs bounds the addresses kept of peers that we are not connected to, some 300 bytes each.
	maxKnownAddrs = 32768
	// dialTimeout bounds one dial with its handshakes; a SYN is repeated after 1 and 3 s.
	dialTimeout = 5 * time.Second
	// pingTimeout bounds the round trip that is measured when a peer connects.
	pingTimeout = 10 * time.Second
	// maxPings bounds how many are measured at once, when a crowd connects.
	maxPings = 8
	// eventBuffer takes the events of a crowd that connects while a callback runs.
	eventBuffer = 256
)

// Events tells who is connected. The callbacks run one at a time, in order, in Run's goroutine, so they must not block: a peer's
// first connection calls Connected, the end of its last one Disconnected. Either may be nil.
type Events struct {
	Connected    func(peer.ID)
	Disconnected func(peer.ID)
}

// Peer is a connected peer.
type Peer struct {
	ID       peer.ID
	Addrs    []ma.Multiaddr // the remote ends of its connections
	RTT      time.Duration  // smoothed round trip; 0: not measured yet
	Inbound  bool           // it dialled us
	Since    time.Time      // of its oldest connection
	Software string         // its user agent; empty until it has identified itself
}

// Host is a libp2p host that listens, dials and limits as the configuration says. Run must run for Events, round trips and
// Reachability to be kept up to date; everything else works without.
type Host struct {
	host.Host
	log      zerolog.Logger
	metrics  *Metrics
	events   Events
	nat      NAT
	listen   []ma.Multiaddr // as configured
	announce []ma.Multiaddr
	ours     []protocol.ID // see WithProtocols
	loopback bool          // every listen address is loopback
	made     chan struct{} // closed once Host is set

	autonat atomic.Int32 // network.Reachability as AutoNAT found it
	dialled atomic.Bool  // somebody dialled us from a public address
}

type options struct {
	log       zerolog.Logger
	metrics   *Metrics
	reg       prometheus.Registerer
	events    Events
	userAgent string
	protocols []Protocol
}

// Option adds to what New needs.
type Option func(*options)

// WithLogger logs what this package does; default: nothing. For libp2p's own logs see BridgeLogs.
func WithLogger(log zerolog.Logger) Option { return func(o *options) { o.log = log } }

// WithMetrics counts into m, and registers libp2p's own metrics with reg if that is not nil.
func WithMetrics(m *Metrics, reg prometheus.Registerer) Option {
	return func(o *options) { o.metrics, o.reg = m, reg }
}

// WithEvents calls e as peers come and go.
func WithEvents(e Events) Option { return func(o *options) { o.events = e } }

// WithUserAgent says what this software is called towards peers, such as kwaaid/1.2.3.
func WithUserAgent(s string) Option { return func(o *options) { o.userAgent = s } }

// WithProtocols gives protocols of ours their limits: Limits.StreamsPerPeer streams each way per peer.
func WithProtocols(p ...Protocol) Option { return func(o *options) { o.protocols = p } }

// New makes a host under the given key and listens on every configured address. Errors match *ListenError where one cannot be had.
// The host works from now on; Close ends it.
func New(key crypto.PrivKey, cfg Config, opts ...Option) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	o := options{log: zerolog.Nop(), userAgent: "kwaaid"}
	for _, opt := range opts {
		opt(&o)
	}
	listenAddrs, err := multiaddrs(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	announce, err := multiaddrs(cfg.Announce)
	if err != nil {
		return nil, fmt.Errorf("announce: %w", err)
	}
	h := &Host{
		log: o.log, metrics: o.metrics, events: o.events,
		nat: cfg.NAT, listen: listenAddrs, announce: announce, loopback: allLoopback(listenAddrs), made: make(chan struct{}),
	}
	for _, p := range o.protocols {
		h.ours = append(h.ours, p.ID)
	}
	h.nat.AutoNAT = h.nat.AutoNAT || h.nat.Relay
	if h.loopback {
		h.nat = NAT{}
	}
	h.Host, err = newLibp2p(key, cfg.Limits, h, o)
	if err != nil {
		return nil, fmt.Errorf("libp2p: %w", err)
	}
	close(h.made)
	if err := listen(h.Network(), listenAddrs, o.log); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// newLibp2p makes the host. Of the transports only TCP and QUIC, of the handshakes only TLS: every swarm is one of kwaaid nodes,
// and each of the others would cost memory and code.
func newLibp2p(key crypto.PrivKey, limits Limits, h *Host, o options) (host.Host, error) {
	store, err := pstoremem.NewPeerstore(pstoremem.WithMaxAddresses(maxKnownAddrs), pstoremem.WithMaxSignedPeerRecords(maxKnownAddrs/8))
	if err != nil {
		return nil, err
	}
	manager, err := connectionManager(limits)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	resources, err := resourceManager(limits, o.protocols)
	if err != nil {
		return nil, errors.Join(err, store.Close(), manager.Close())
	}
	tcpOptions := []tcp.Option{tcp.WithConnectionTimeout(dialTimeout)}
	if !h.nat.HolePunching {
		// SO_REUSEPORT is for hole punching alone. Without it a taken port is an error, and dials do not collide with connections
		// that a killed peer left behind.
		tcpOptions = append(tcpOptions, tcp.DisableReuseport())
	}
	refused := newRefusals()
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent(o.userAgent),
		libp2p.Peerstore(store),
		libp2p.ConnectionManager(manager),
		libp2p.ResourceManager(resources),
		libp2p.Transport(newTCP(refused, tcpOptions...)),
		libp2p.Transport(newQUIC(refused)),
		libp2p.Security(libp2ptls.ID, newSecureTransport),
		libp2p.AddrsFactory(h.advertise),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.WithDialTimeout(dialTimeout),
		// libp2p dials UDP and IPv6 only one time in a hundred once a hundred dials had fewer than five successes. It reckons with QUIC being
		// tried first. Here QUIC is for when TCP has failed, mostly at hosts that are gone; and whoever was cut off has to be back soon.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
	}
	if o.reg != nil {
		opts = append(opts, libp2p.PrometheusRegisterer(o.reg))
	} else {
		opts = append(opts, libp2p.DisableMetrics())
	}
	if h.loopback || len(h.listen) == 0 {
		opts = append(opts, libp2p.DisableIdentifyAddressDiscovery())
	}
	return libp2p.New(append(opts, h.natOptions()...)...)
}

// NewStream opens a stream as libp2p does, but for a protocol of ours a relayed connection will do, and it dials even a peer whom
// libp2p would leave alone for 5 s to 5 min because the last dial failed: our callers have a breaker that knows when to try again,
// and a host that comes back has to be used within seconds.
func (h *Host) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	if slices.ContainsFunc(ids, func(id protocol.ID) bool { return slices.Contains(h.ours, id) }) && h.Network().Connectedness(p) != network.Connected {
		h.ForgetFailures(p)
		ctx = network.WithAllowLimitedConn(ctx, "kwaai")
	}
	return h.Host.NewStream(ctx, p, ids...)
}

// ForgetFailures makes the next dial to p a real one, however often it failed before.
func (h *Host) ForgetFailures(p peer.ID) {
	if s, ok := h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
}

// Run follows who connects and disconnects, measures the round trip to newcomers, and forgets addresses that are good no more, until ctx ends. It
// returns ctx's cause.
func (h *Host) Run(ctx context.Context) error {
	sub, err := h.EventBus().Subscribe([]any{new(event.EvtPeerConnectednessChanged), new(event.EvtLocalReachabilityChanged)},
		eventbus.BufSize(eventBuffer), eventbus.Name("p2p.Run"))
	if err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // in memory
	run := runner{Host: h, connected: map[peer.ID]struct{}{}, pings: make(chan struct{}, maxPings)}
	defer run.wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	for _, p := range h.Network().Peers() { // those who came before the subscription; the set tells them from events to come
		run.connect(ctx, p)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-forget.C:
			forgetExpired(h.Peerstore())
		case e, open := <-sub.Out():
			if !open {
				return errors.New("the host is closed")
			}
			switch e := e.(type) {
			case event.EvtPeerConnectednessChanged:
				if e.Connectedness == network.NotConnected {
					run.disconnect(e.Peer)
				} else {
					run.connect(ctx, e.Peer)
				}
			case event.EvtLocalReachabilityChanged:
				h.autonat.Store(int32(e.Reachability))
				h.log.Info().Stringer("reachability", e.Reachability).Msg("reachability found")
			}
		}
	}
}

// runner is what Run keeps to itself.
type runner struct {
	*Host
	connected map[peer.ID]struct{}
	pings     chan struct{}
	wg        sync.WaitGroup
}

func (r *runner) connect(ctx context.Context, p peer.ID) {
	for _, c := range r.Network().ConnsToPeer(p) {
		r.noteInbound(c)
	}
	if _, known := r.connected[p]; known {
		return
	}
	r.connected[p] = struct{}{}
	r.metrics.connected()
	r.log.Debug().Stringer("peer", p).Msg("peer connected")
	if r.events.Connected != nil {
		r.events.Connected(p)
	}
	r.wg.Go(func() { r.measure(ctx, p) })
}

func (r *runner) disconnect(p peer.ID) {
	if _, known := r.connected[p]; !known {
		return
	}
	delete(r.connected, p)
	r.metrics.disconnected()
	r.log.Debug().Stringer("peer", p).Msg("peer disconnected")
	if r.events.Disconnected != nil {
		r.events.Disconnected(p)
	}
}

// measure pings a peer once; libp2p's ping records the round trip in the peerstore. Whoever does not answer is left to his callers.
func (r *runner) measure(ctx context.Context, p peer.ID) {
	select {
	case r.pings <- struct{}{}:
		defer func() { <-r.pings }()
	case <-ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "ping"), pingTimeout)
	defer cancel()
	<-ping.Ping(ctx, r.Host, p)
}

// RTT returns the smoothed round trip to a peer, and whether it was ever measured.
func (h *Host) RTT(p peer.ID) (time.Duration, bool) {
	rtt := h.Peerstore().LatencyEWMA(p)
	return rtt, rtt > 0
}

// Peers lists the connected peers, sorted by ID.
func (h *Host) Peers() []Peer {
	byID := map[peer.ID]*Peer{}
	for _, c := range h.Network().Conns() {
		p := byID[c.RemotePeer()]
		if p == nil {
			p = &Peer{ID: c.RemotePeer(), Since: c.Stat().Opened}
			byID[p.ID] = p
		}
		p.Addrs = append(p.Addrs, c.RemoteMultiaddr())
		p.Inbound = p.Inbound || c.Stat().Direction == network.DirInbound
		if c.Stat().Opened.Before(p.Since) {
			p.Since = c.Stat().Opened
		}
	}
	peers := make([]Peer, 0, len(byID))
	for _, p := range byID {
		p.RTT = h.Peerstore().LatencyEWMA(p.ID)
		if v, err := h.Peerstore().Get(p.ID, "AgentVersion"); err == nil {
			p.Software, _ = v.(string)
		}
		peers = append(peers, *p)
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	return peers
}
