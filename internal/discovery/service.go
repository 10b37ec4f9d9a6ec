package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/rs/zerolog"

	"github.com/kwaai/kwaaid/internal/expert"
)

// cleanUpEvery is how often expired records of others are deleted from disk.
const cleanUpEvery = 10 * time.Minute

// Service finds the hosts of experts, and announces those that this node hosts. Run does the work; Close ends what New began.
type Service struct {
	cfg          Config
	host         host.Host
	hosted       Hosted // nil: this node hosts nothing
	found        func(expert.ID, peer.AddrInfo)
	reachability func() network.Reachability
	log          zerolog.Logger
	metrics      *Metrics

	store      *store
	gate       *gate
	messages   *messenger
	dht        *dht.IpfsDHT
	remembered *peerCache
	bootstraps []*bootstrapPeer
	announcer  *announcer

	cacheTried atomic.Bool   // every remembered peer was dialled once
	joining    chan struct{} // closed when the swarm was met, or could not be for now
	stopped    chan struct{} // closed when Run has ended
	wake       chan struct{} // there may be a walk waiting

	mu      sync.Mutex
	cache   *cache
	walks   map[expert.ID]*walk // waiting or running
	waiting []*walk             // in the order in which they came
}

type options struct {
	dir          string
	found        func(expert.ID, peer.AddrInfo)
	reachability func() network.Reachability
	log          zerolog.Logger
	metrics      *Metrics
}

// Option adds to what New needs.
type Option func(*options)

// WithDataDir keeps records and seen peers in a directory; default: in memory.
func WithDataDir(dir string) Option { return func(o *options) { o.dir = dir } }

// WithFound calls f for every provider that a walk finds, the first one included, from the walk's goroutine: f must not block.
// This node itself is never among them.
func WithFound(f func(id expert.ID, p peer.AddrInfo)) Option {
	return func(o *options) { o.found = f }
}

// WithReachability asks f, every second, whether others can dial this node; default: it is never known.
func WithReachability(f func() network.Reachability) Option {
	return func(o *options) { o.reachability = f }
}

// WithLogger logs what this package does; default: nothing.
func WithLogger(log zerolog.Logger) Option { return func(o *options) { o.log = log } }

// WithMetrics counts into m.
func WithMetrics(m *Metrics) Option { return func(o *options) { o.metrics = m } }

// New makes the service on a host. hosted may be nil for a node that only asks. Nothing is sent before Run.
func New(h host.Host, hosted Hosted, cfg Config, opts ...Option) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	o := options{log: zerolog.Nop(), reachability: func() network.Reachability { return network.ReachabilityUnknown }}
	for _, opt := range opts {
		opt(&o)
	}
	s := &Service{
		cfg: cfg, host: h, hosted: hosted, found: o.found, reachability: o.reachability, log: o.log, metrics: o.metrics,
		gate: &gate{Host: h}, announcer: newAnnouncer(),
		joining: make(chan struct{}), stopped: make(chan struct{}), wake: make(chan struct{}, 1),
		cache: newCache(maxCached), walks: map[expert.ID]*walk{},
	}
	bootstraps, err := ParsePeers(cfg.Bootstrap)
	if err != nil {
		return nil, err
	}
	for _, info := range bootstraps {
		if info.ID != h.ID() { // the same list can be given to all nodes
			s.bootstraps = append(s.bootstraps, &bootstrapPeer{info: info})
		}
	}
	if s.remembered, err = openPeerCache(o.dir); err != nil {
		s.log.Warn().Err(err).Msg("peers of earlier days cannot be read, beginning anew")
	}
	if s.store, err = openStore(o.dir, h.ID(), o.log); err != nil {
		return nil, err
	}
	if s.dht, err = s.newDHT(); err != nil {
		return nil, errors.Join(fmt.Errorf("DHT: %w", err), s.store.Close())
	}
	s.gate.serve(s.shouldServe())
	return s, nil
}

func (s *Service) newDHT() (*dht.IpfsDHT, error) {
	return dht.New(s.gate,
		dht.ProtocolPrefix(prefix(s.cfg.Swarm)),
		dht.Mode(dht.ModeServer), // the gate decides
		dht.DisableValues(),
		dht.Datastore(s.store),
		dht.ProviderManagerOpts(records.ProvideValidity(recordValidity), records.ProviderAddrTTL(recordValidity), records.CleanupInterval(cleanUpEvery)),
		dht.BucketSize(replicas),
		dht.OnRequestHook(s.inspect),
		dht.WithCustomMessageSender(func(h host.Host, protocols []protocol.ID) pb.MessageSenderWithDisconnect {
			s.messages = newMessenger(h, protocols[0])
			return s.messages
		}),
	)
}

// inspect sees every message of others before the DHT does. An announcement loses the addresses that do not belong on the network
// it came from; one from a peer that has too many records here loses its sender, and the DHT refuses it then.
func (s *Service) inspect(_ context.Context, st network.Stream, req *pb.Message) {
	if req.GetType() != pb.Message_ADD_PROVIDER {
		return
	}
	keepOnNetwork(req.ProviderPeers, st.Conn().RemoteMultiaddr())
	if s.store.full(st.Conn().RemotePeer()) {
		req.ProviderPeers = nil
	}
}

// Run joins the swarm, announces what is hosted, walks for Find and Walk, and keeps the caches fresh, until ctx ends. It returns
// ctx's cause; nothing it began is left then. It runs once.
func (s *Service) Run(ctx context.Context) error {
	defer close(s.stopped)
	var wg sync.WaitGroup
	for _, b := range s.bootstraps {
		wg.Go(func() { s.keepBootstrap(ctx, b) })
	}
	wg.Go(func() { s.useCache(ctx) })
	wg.Go(func() { s.watchJoining(ctx) })
	wg.Go(func() { s.thicken(ctx) })
	wg.Go(func() { s.runWalks(ctx) })
	wg.Go(func() { s.refresh(ctx) })
	wg.Go(func() { s.maintain(ctx) })
	if s.hosted != nil {
		wg.Go(func() { s.announce(ctx) })
	}
	wg.Wait()
	s.saveSeen(true)
	return context.Cause(ctx)
}

// maintain looks after what changes without telling: reachability, and who is in the routing table.
func (s *Service) maintain(ctx context.Context) {
	for sleep(ctx, tick) {
		if on := s.shouldServe(); s.gate.serve(on) {
			s.log.Info().Bool("server", on).Msg("DHT mode changed")
		}
		s.metrics.peers(s.tableSize())
		s.saveSeen(false)
	}
}

// saveSeen remembers the peers of the routing table.
func (s *Service) saveSeen(last bool) {
	now := time.Now()
	var seen []peer.AddrInfo
	for _, p := range s.dht.RoutingTable().ListPeers() {
		if s.host.Network().Connectedness(p) == network.Connected {
			seen = append(seen, s.host.Peerstore().PeerInfo(p))
		}
	}
	s.remembered.see(seen, now)
	if err := s.remembered.save(now, last); err != nil {
		s.log.Warn().Err(err).Msg("peers seen cannot be saved")
	}
}

// Close ends the DHT and lets go of the disk. Run has to have returned. Twice is fine.
func (s *Service) Close() error {
	s.gate.serve(false)
	s.messages.Close()
	return errors.Join(s.dht.Close(), s.store.Close())
}

func (s *Service) tableSize() int { return s.dht.RoutingTable().Size() }

// alone tells whether nobody else is known, by intent: no bootstrap peer is configured or remembered that could be missing.
func (s *Service) alone() bool {
	return s.tableSize() == 0 && len(s.bootstraps) == 0 && !slices.ContainsFunc(s.host.Network().Peers(), s.speaksDHT)
}

// speaksDHT tells whether a connected peer says that it serves our DHT.
func (s *Service) speaksDHT(p peer.ID) bool {
	known, err := s.host.Peerstore().SupportsProtocols(p, Protocol(s.cfg.Swarm))
	return err == nil && len(known) > 0
}
