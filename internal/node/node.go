package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/dispatch"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/gateway"
	"github.com/kwaai/kwaaid/internal/kernel"
	"github.com/kwaai/kwaaid/internal/moe"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/registry"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/sdnotify"
	"github.com/kwaai/kwaaid/internal/serving"
)

// Options are what the command line says beside the configuration.
type Options struct {
	KeepGoing bool // start with the other experts when one cannot be loaded
	// Progress is told how far the loading of the configuration's experts is, from one goroutine at a time; the last of an entry has all done.
	// It stands in for the log lines of long loading.
	Progress func(api.LoadProgress)
}

// Node is a running kwaaid: it hosts experts, announces them, answers calls and makes them.
type Node struct {
	*core
	version  string
	options  Options
	started  time.Time
	data     *p2p.DataDir
	hashes   *checkpoint.Hashes // of weights loaded before
	serving  *serving.Host
	server   *rpc.Server
	gateway  *gateway.Gateway
	notify   *sdnotify.Notifier
	beat     atomic.Int64 // when the watchdog last came round, in Unix nanoseconds
	loaded   atomic.Bool  // all experts of the configuration are loaded
	stopping atomic.Bool
	closers  []func() error // in the order of opening

	leftOutMu sync.Mutex
	leftOut   []string // what the configuration asks for and is not hosted, though the node keeps going
}

// Up says where a node is once it listens.
type Up struct {
	Peer  string
	Addrs []string // full multiaddrs, /p2p included, best first
	API   string   // HOST:PORT
	GRPC  string   // HOST:PORT
}

// UpMessage is the log line with which a node says where it is; demo and tests wait for it.
const UpMessage = "node is up"

// New opens the data directory, listens on every address and puts the parts together. Nothing is loaded, announced or answered
// before Run; Close ends a node that is not run.
func New(cfg *config.Config, version string, log zerolog.Logger, options Options) (_ *Node, err error) {
	n := &Node{version: version, options: options, started: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.data, err = p2p.OpenDataDir(cfg.Data); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.data.Close)
	key, err := p2p.LoadOrMakeIdentity(cfg.Data)
	if err != nil {
		return nil, err
	}
	if n.hashes, err = checkpoint.OpenHashes(filepath.Join(cfg.Data, "hashes.json")); err != nil {
		log.Warn().Err(err).Msg("hashes of weights cannot be read: they are computed again")
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	table := registry.New(registry.DefaultLimits(), time.Now())
	host, err := p2p.New(key, cfg.P2P(), p2p.WithLogger(log), p2p.WithMetrics(p2p.NewMetrics(reg), reg), p2p.WithEvents(events(table)),
		p2p.WithUserAgent("kwaaid/"+version), p2p.WithProtocols(p2p.Protocol{ID: rpc.Protocol, Service: rpc.Service}))
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, host.Close)
	if n.serving, err = serving.New(cfg.ServingHost(), serving.WithLogger(log), serving.WithMetrics(serving.NewMetrics(reg))); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, func() error { n.serving.Close(); return nil })
	pool := kernel.NewPool(0)
	n.closers = append(n.closers, func() error { pool.Close(); return nil })
	numerics, err := kernel.ParseNumerics(cfg.Serving.Numerics)
	if err != nil {
		return nil, fmt.Errorf("serving.numerics: %w", err)
	}
	calls := rpc.NewMetrics(reg)
	n.core, err = newCore(parts{
		cfg: cfg, log: log, host: host, table: table, local: n.serving, engine: expert.Engine{Pool: pool, Numerics: numerics}, rpc: calls, moe: moe.NewMetrics(reg),
		dispatch: []dispatch.Option{dispatch.WithMetrics(dispatch.NewMetrics(reg))},
		discovery: []discovery.Option{
			discovery.WithDataDir(cfg.Data), discovery.WithLogger(log), discovery.WithMetrics(discovery.NewMetrics(reg)),
			discovery.WithReachability(host.Reachability),
		},
	}, n.serving)
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.finder.Close, func() error { n.dispatch.Close(); return nil })
	n.server, err = rpc.NewServer(host, handler{n}, cfg.RPCServer(), rpc.WithLogger(log), rpc.WithServerMetrics(calls),
		rpc.WithOnGoodbye(func(p peer.ID) { table.Drained(p, time.Now()) }))
	if err != nil {
		return nil, err
	}
	face := []gateway.Option{gateway.WithLogger(log), gateway.WithRegistry(reg)}
	if most := maxFiles(); most >= 0 {
		face = append(face, gateway.WithFiles(most))
	}
	if n.gateway, err = gateway.Open(cfg.Gateway(), n, n, face...); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.gateway.Close)
	reg.MustRegister(newCollector(n))
	if n.notify, err = sdnotify.Open(os.Getenv); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.notify.Close)
	n.configure()
	n.beat.Store(n.started.UnixNano())
	return n, nil
}

// configure tells the registry what the operator wrote: fallbacks and static providers.
func (n *Node) configure() {
	for of, list := range n.cfg.Fallbacks {
		ids := make([]expert.ID, 0, len(list))
		for _, f := range list {
			ids = append(ids, f.ID)
		}
		n.table.SetFallbacks(of.ID, ids)
	}
	for of, addrs := range n.cfg.Remotes {
		peers, err := discovery.ParsePeers(addrs)
		if err != nil { // checked with the configuration
			n.log.Error().Err(err).Stringer("expert", of.ID).Msg("static provider left out")
			continue
		}
		for _, p := range peers {
			n.host.Peerstore().AddAddrs(p.ID, p.Addrs, staticTTL)
			n.table.AddProvider(of.ID, p.ID, registry.Static, time.Now())
		}
	}
}

// staticTTL outlives any process.
const staticTTL = 100 * 365 * 24 * time.Hour

// Up says where the node is.
func (n *Node) Up() Up {
	up := Up{Peer: n.self.String()}
	addrs := n.host.Addrs()
	if len(addrs) == 0 {
		addrs = n.host.ListenAddrs()
	}
	slices.SortStableFunc(addrs, func(a, b ma.Multiaddr) int { return rankAddr(a) - rankAddr(b) })
	for _, a := range addrs {
		up.Addrs = append(up.Addrs, a.String()+"/p2p/"+up.Peer)
	}
	if a := n.gateway.Addr(); a != nil {
		up.API = a.String()
	}
	if a := n.gateway.GRPCAddr(); a != nil {
		up.GRPC = a.String()
	}
	return up
}

// rankAddr puts TCP, which is dialled first, before QUIC, and others' networks before loopback.
func rankAddr(a ma.Multiaddr) int {
	rank := 0
	if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
		rank++
	}
	if manet.IsIPLoopback(a) {
		rank += 2
	}
	return rank
}

// Close ends a node that is not run; Run does it by itself. Twice is fine.
func (n *Node) Close() error {
	var errs []error
	for _, c := range slices.Backward(n.closers) {
		errs = append(errs, c())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// errStopped is the cause with which the loops end after a drain.
var errStopped = errors.New("the node stopped")

// Run loads the experts and serves until ctx ends; then it drains: it stops announcing, tells its peers, answers what it has taken
// on, and ends everything it started. It returns nil after that, ErrCannotLoad where an expert of the configuration cannot be hosted,
// or why a loop could not go on. It is called once.
func (n *Node) Run(ctx context.Context) error {
	// The loops outlive ctx by the drain.
	loops, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(errStopped)
	g, loops := errgroup.WithContext(loops)
	services := n.loops()
	services["server"] = n.server.Run
	services["gateway"] = n.gateway.Run
	services["watchdog"] = n.watchdog
	for name, run := range services {
		g.Go(func() error {
			if err := run(loops); err != nil && loops.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	loading, stopLoading := context.WithCancel(loops)
	defer stopLoading()
	defer context.AfterFunc(ctx, stopLoading)()
	g.Go(func() error {
		err := n.loadAll(loading, n.cfg.Experts, n.cfg.Layers, n.options.KeepGoing)
		if err != nil && loading.Err() == nil {
			return err
		}
		n.loaded.Store(true)
		return nil
	})

	select {
	case <-ctx.Done():
		n.drain() //nolint:contextcheck // ctx has ended: that is why
	case <-loops.Done(): // a loop failed; what is under way is lost with it
	}
	stop(errStopped)
	err := g.Wait()
	closing := n.Close()
	if err == nil && closing != nil && ctx.Err() != nil {
		// All was answered. What could not be written, such as on a full disk, is a cache, or records that are announced again.
		n.log.Warn().Err(closing).Msg("state was not closed as it should")
		return nil
	}
	return errors.Join(err, closing)
}

// goodbyeTimeout bounds how long a draining node tries to tell its peers.
const goodbyeTimeout = time.Second

// goodbyes is how many peers are told at once.
const goodbyes = 32

// drain stops taking calls, lets everybody know, and answers what was taken on.
func (n *Node) drain() {
	n.stopping.Store(true)
	n.log.Info().Dur("drain", n.cfg.Serving.Drain).Msg("draining: a second signal ends the process at once")
	if err := n.notify.Stopping("draining"); err != nil {
		n.log.Debug().Err(err).Msg("the service manager was not told")
	}
	n.finder.Withdraw()
	var tell sync.WaitGroup
	tell.Go(n.sayGoodbye)
	if err := n.serving.Drain(context.Background()); err != nil {
		n.log.Warn().Err(err).Msg("not all calls were answered in time")
	}
	tell.Wait()
	n.log.Info().Msg("drained")
}

func (n *Node) sayGoodbye() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbyeTimeout)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(goodbyes)
	for _, p := range n.host.Network().Peers() {
		g.Go(func() error {
			if err := n.client.Goodbye(ctx, p); err != nil {
				n.log.Debug().Err(err).Stringer("peer", p).Msg("a peer was not told that this node stops")
			}
			return nil
		})
	}
	_ = g.Wait()
}

// watchdog tells systemd that the node is ready, and then that it lives.
func (n *Node) watchdog(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	every, told, beat := n.notify.BeatEvery(), false, time.Now()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			r, err := n.Ready(ctx)
			if err == nil {
				n.beat.Store(now.UnixNano())
			}
			if r.Ready && !told {
				told = n.notify.Ready("serving") == nil
			}
			if every > 0 && now.Sub(beat) >= every && n.Alive() == nil {
				beat = now
				_ = n.notify.Beat() // systemd restarts the node when beats stay out: nothing better can be done here
			}
		}
	}
}

// handler is rpc's view of serving, and the node's account of itself.
type handler struct{ n *Node }

// Admit is serving.Host's.
func (h handler) Admit(rows, hidden int, pairs []expert.Pair) rpc.Admission {
	return h.n.serving.Admit(rows, hidden, pairs)
}

// Load is serving.Host's.
func (h handler) Load() expert.Load { return h.n.serving.Load() }

// Describe adds what only the node knows.
func (h handler) Describe() expert.Description {
	d := h.n.serving.Describe()
	d.Version = h.n.version
	d.Draining = d.Draining || h.n.stopping.Load()
	return d
}

// Status is the node's account of itself for operators.
func (n *Node) Status(ctx context.Context) (api.Status, error) {
	r, err := n.Ready(ctx)
	if err != nil {
		return api.Status{}, err
	}
	d := n.finder.Status()
	s := api.Status{
		Peer: n.self.String(), Addrs: addrStrings(n.host.ListenAddrs()), Swarm: n.cfg.Swarm, Version: n.version,
		Ready: r.Ready, Degraded: append([]string{}, r.Degraded...), UptimeS: time.Since(n.started).Seconds(),
		Peers: len(n.host.Network().Peers()), Reachability: strings.ToLower(n.host.Reachability().String()), DHT: d.Mode,
		Draining: n.stopping.Load(),
	}
	load := n.serving.Load()
	rows, _ := n.serving.Rows()
	s.Load = api.Load{QueuedRows: load.QueuedRows, Inflight: n.serving.Inflight(), Rows: rows}
	about := n.serving.Describe()
	for _, h := range about.Experts {
		s.Experts.Hosted++
		if h.State == expert.StateReady {
			s.Experts.Ready++
		}
		s.Memory.Weights += h.Bytes
	}
	s.Experts.Announced = d.Announced
	s.Memory.Budget = s.Memory.Weights + about.FreeMemory
	s.Calls, s.Resting = n.calls()
	return s, nil
}

// Experts is core's, with what each of the node's own has computed.
func (n *Node) Experts(ctx context.Context) ([]api.Expert, error) {
	list, err := n.core.Experts(ctx)
	_, rows := n.serving.Rows()
	for i := range list {
		if list[i].Where == api.WhereLocal {
			list[i].Rows = rows[list[i].Expert]
		}
	}
	return list, err
}

// Ready tells whether every loaded expert passed its canary and a round of announcing ran; and what does not work as it should.
func (n *Node) Ready(context.Context) (api.Readiness, error) {
	var r api.Readiness
	d := n.finder.Status()
	switch {
	case n.stopping.Load():
		r.Reasons = append(r.Reasons, "draining")
	case !n.loaded.Load():
		r.Reasons = append(r.Reasons, "experts are being loaded")
	case !d.Settled:
		r.Reasons = append(r.Reasons, "the first round of announcing is under way")
	}
	for _, h := range n.serving.List() {
		if h.State == expert.StateFailed {
			r.Degraded = append(r.Degraded, fmt.Sprintf("%s failed: %s", h.ID, h.Problem))
		}
	}
	n.leftOutMu.Lock()
	r.Degraded = append(r.Degraded, n.leftOut...)
	n.leftOutMu.Unlock()
	r.Degraded = append(r.Degraded, d.Degraded...)
	r.Ready = len(r.Reasons) == 0
	return r, nil
}

// Alive returns nil while the node's loop beats: it asks every part how it is, so a part that hangs stops it.
func (n *Node) Alive() error {
	if since := time.Since(time.Unix(0, n.beat.Load())); since > beatLimit {
		return fmt.Errorf("the node's loop has not beaten for %v", since.Round(time.Second))
	}
	return nil
}

// beatLimit is ten beats: a machine that swaps is slow, not dead.
const beatLimit = 10 * time.Second
