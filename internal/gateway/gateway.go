package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
)

// Inference makes forward passes. Safe for concurrent use.
type Inference interface {
	// Call returns the document and the output, float32, row-major, of the input's shape. It keeps no reference to req.Input once it has
	// returned, and ends when ctx does. An error is an *api.Error, or matches a sentinel of package expert.
	Call(ctx context.Context, req api.CallRequest) (api.CallResult, *tensor.Dense, error)
	// CallLayer does the same with a MoE layer; it keeps no reference to the slices of req either.
	CallLayer(ctx context.Context, req api.LayerRequest) (api.LayerResult, api.LayerOutput, error)
}

// Node knows and runs everything else. Safe for concurrent use; errors as in Inference.
type Node interface {
	Status(ctx context.Context) (api.Status, error)
	Experts(ctx context.Context) ([]api.Expert, error)
	// Expert returns one of them, without going through all. The error matches expert.ErrNotFound where it is not known here.
	Expert(ctx context.Context, name string) (api.Expert, error)
	// Answerable tells whether somebody could answer for an expert now: this node, a host that is not out of reach, or that of a fallback.
	Answerable(name string) (bool, error)
	Layers(ctx context.Context) ([]api.Layer, error)
	Peers(ctx context.Context) ([]api.Peer, error)
	Resolve(ctx context.Context, name string) (api.Resolved, error)
	// Load hosts more experts. It calls progress, unless that is nil, from one goroutine at a time, and not after it has returned.
	Load(ctx context.Context, req api.LoadRequest, progress func(api.LoadProgress)) (api.ExpertList, error)
	Unload(ctx context.Context, name string) (api.ExpertList, error)
	// Bench makes load until it is done or ctx ends. It calls progress from one goroutine at a time, and not after it has returned.
	Bench(ctx context.Context, req api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error)
	// Checkup has the node examine itself: a walk of the DHT, a canary for each expert.
	Checkup(ctx context.Context) (api.Checkup, error)
	Ready(ctx context.Context) (api.Readiness, error)
	// Alive returns nil while the node's loops beat, else which one stopped.
	Alive() error
}

// errStopped is the cause with which requests end that outlive the drain time.
var errStopped = errors.New("the node stopped")

// maxConnections bounds each face: every connection costs a goroutine, buffers and a file descriptor. See WithFiles.
const maxConnections = 512

// Gateway is a node's HTTP and gRPC face. Open binds it, Run serves it.
type Gateway struct {
	cfg       Config
	inference Inference
	node      Node
	log       zerolog.Logger
	registry  *prometheus.Registry
	metrics   *Metrics
	bodies    budget
	room      int // connections of each face

	httpListener net.Listener // nil when HTTP is off
	grpcListener net.Listener // nil when gRPC is off
	stopping     chan struct{}
	stopOnce     sync.Once
}

// Option is an extra of New.
type Option func(*Gateway)

// WithLogger has the gateway log; without, it is silent.
func WithLogger(log zerolog.Logger) Option {
	return func(g *Gateway) { g.log = log }
}

// WithRegistry is what /metrics shows and where the gateway's own metrics are registered; without, /metrics is empty.
func WithRegistry(reg *prometheus.Registry) Option {
	return func(g *Gateway) {
		g.registry = reg
		g.metrics = NewMetrics(reg)
	}
}

// leastConnections keeps a face of use however few files there are.
const leastConnections = 8

// WithFiles leaves half of the process's file descriptors, of which it may hold n, to the swarm and the disk.
func WithFiles(n int) Option {
	return func(g *Gateway) { g.room = min(max(n/4, leastConnections), maxConnections) }
}

// Open checks cfg and binds its addresses; requests wait until Run. Call Close if Run is never called.
func Open(cfg Config, inference Inference, node Node, opts ...Option) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg:       cfg,
		inference: inference,
		node:      node,
		log:       zerolog.Nop(),
		registry:  prometheus.NewRegistry(),
		stopping:  make(chan struct{}),
		room:      maxConnections,
	}
	for _, o := range opts {
		o(g)
	}
	g.bodies = budget{free: bodiesPerNode * cfg.MaxFrame, metrics: g.metrics}
	var err error
	if g.httpListener, err = g.listen("api", cfg.API, ""); err != nil {
		return nil, err
	}
	if g.grpcListener, err = g.listen("grpc", cfg.GRPC, http2Preface); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// listen binds one face; nil when addr is empty.
func (g *Gateway) listen(face, addr, preface string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot listen on %s: %w; free the port, or set %s to another address", face, addr, err, face)
	}
	return newListener(l, face, preface, g.room, g.log, g.metrics), nil
}

// Addr returns the HTTP address that is really bound, nil when HTTP is off.
func (g *Gateway) Addr() net.Addr { return addrOf(g.httpListener) }

// GRPCAddr returns the gRPC address that is really bound, nil when gRPC is off.
func (g *Gateway) GRPCAddr() net.Addr { return addrOf(g.grpcListener) }

func addrOf(l net.Listener) net.Addr {
	if l == nil {
		return nil
	}
	return l.Addr()
}

// Run serves until ctx ends; then it takes no new requests, gives those under way cfg.Drain to finish, and ends what is left with a
// reset. It returns nil after that, or why a face could not go on. It is called once.
func (g *Gateway) Run(ctx context.Context) error {
	// Requests outlive ctx by the drain time, so they descend from a context of their own.
	requests, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(errStopped)
	group, ctx := errgroup.WithContext(ctx)
	var httpServer *http.Server
	var grpcServer *grpc.Server
	if g.httpListener != nil {
		httpServer = g.newHTTPServer(requests)
		group.Go(func() error {
			if err := httpServer.Serve(g.httpListener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving HTTP on %s: %w", g.Addr(), err)
			}
			return nil
		})
	}
	if g.grpcListener != nil {
		grpcServer = g.newGRPCServer()
		group.Go(func() error {
			if err := grpcServer.Serve(g.grpcListener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serving gRPC on %s: %w", g.GRPCAddr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		g.stop(requests, httpServer, grpcServer, cut)
		return nil
	})
	return group.Wait()
}

// stop drains both faces at once, within cfg.Drain; ctx is that of the requests.
func (g *Gateway) stop(ctx context.Context, httpServer *http.Server, grpcServer *grpc.Server, cut context.CancelCauseFunc) {
	g.stopOnce.Do(func() { close(g.stopping) })
	drain, cancel := context.WithTimeout(ctx, g.cfg.Drain)
	defer cancel()
	var faces sync.WaitGroup
	if httpServer != nil {
		faces.Go(func() {
			if httpServer.Shutdown(drain) != nil {
				cut(errStopped)
				_ = httpServer.Close()
			}
		})
	}
	if grpcServer != nil {
		faces.Go(func() {
			late := time.AfterFunc(g.cfg.Drain, grpcServer.Stop)
			defer late.Stop()
			grpcServer.GracefulStop()
		})
	}
	faces.Wait()
}

// Close gives the addresses back when Run was never called; twice is fine.
func (g *Gateway) Close() error {
	var errs []error
	for _, l := range []net.Listener{g.httpListener, g.grpcListener} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
