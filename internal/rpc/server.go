package rpc

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/rs/zerolog"
)

// Server answers the exchanges of other peers.
type Server struct {
	host      host.Host
	handler   Handler
	cfg       ServerConfig
	log       zerolog.Logger
	metrics   *Metrics
	onGoodbye func(peer.ID)

	limits *peerLimits
	floats floatPool

	streams sync.WaitGroup // those being served

	mu      sync.Mutex                   // guards the rest
	stopped bool                         // no stream is taken any more
	rested  map[peer.ID][]network.Stream // those on which an exchange had ended a moment before Run's context did
}

// ServerOption adds what a Server can do without.
type ServerOption func(*Server)

// WithServerMetrics counts exchanges and streams.
func WithServerMetrics(m *Metrics) ServerOption { return func(s *Server) { s.metrics = m } }

// WithLogger logs each exchange at debug, and what is this host's fault at error.
func WithLogger(log zerolog.Logger) ServerOption { return func(s *Server) { s.log = log } }

// WithOnGoodbye calls f when a connected peer says that it takes no new calls. f returns soon and may be called by many at once.
func WithOnGoodbye(f func(peer.ID)) ServerOption { return func(s *Server) { s.onGoodbye = f } }

// NewServer makes a server on a host; Run makes it serve.
func NewServer(h host.Host, handler Handler, cfg ServerConfig, opts ...ServerOption) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	limits, err := newPeerLimits(cfg)
	if err != nil {
		return nil, err
	}
	s := &Server{host: h, handler: handler, cfg: cfg, log: zerolog.Nop(), onGoodbye: func(peer.ID) {}, limits: limits, rested: map[peer.ID][]network.Stream{}}
	for _, opt := range opts {
		opt(s)
	}
	return s, nil
}

// Run serves until ctx ends. Then it resets every stream, requests under way too, and returns when all of them have ended and what was answered
// a moment ago has arrived, unless that takes longer than arriveFor: a host that wants to answer what it has taken on drains its Handler first.
// It is called once.
func (s *Server) Run(ctx context.Context) error {
	s.host.SetStreamHandler(Protocol, func(st network.Stream) {
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			_ = st.ResetWithError(codeShutdown)
			return
		}
		s.streams.Add(1)
		s.mu.Unlock()
		defer s.streams.Done()
		s.serve(ctx, st)
	})
	<-ctx.Done()
	s.host.RemoveStreamHandler(Protocol)
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.streams.Wait()
	s.arrive(ctx)
	return context.Cause(ctx)
}

// arriveFor bounds the wait for what was answered at last, and says how long ago an answer has arrived or never will: 8 MiB take so long at
// 13 Mbit/s.
const arriveFor = 5 * time.Second

// arrive closes the streams on which something was answered a moment ago. What was written on them stands in buffers, which a reset, or the
// connection's end, would throw away at the peer's side too unless it has read that the stream is closed. A ping behind that comes back when it
// has. Run's context has ended: that is why.
func (s *Server) arrive(ctx context.Context) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(context.WithoutCancel(ctx), "the host stops"), arriveFor)
	defer cancel()
	var all sync.WaitGroup
	for p, rested := range s.rested {
		all.Go(func() {
			closed := make(chan struct{})
			go func() { // on a connection that does not move it ends with the connection
				defer close(closed)
				for _, st := range rested {
					_ = st.Close()
				}
			}()
			select {
			case <-closed:
				<-ping.Ping(ctx, s.host, p)
			case <-ctx.Done():
			}
		})
	}
	all.Wait()
}

// streamMemory is what an open stream holds while it is idle: its read buffer and two timers.
const streamMemory = 2 * readBuffer

// serve answers one exchange after another on a stream, until it ends.
func (s *Server) serve(ctx context.Context, st network.Stream) {
	p := st.Conn().RemotePeer()
	if !s.limits.open(p) {
		s.metrics.refusedStream()
		s.log.Debug().Stringer("peer", p).Int("streams", s.cfg.StreamsPerPeer).Msg("peer has too many streams open")
		_ = st.ResetWithError(codeStreams)
		return
	}
	defer s.limits.close(p)
	err := st.Scope().SetService(Service)
	if err == nil {
		err = st.Scope().ReserveMemory(streamMemory, network.ReservationPriorityAlways)
	}
	if err != nil {
		s.metrics.refusedStream()
		s.log.Debug().Stringer("peer", p).Err(err).Msg("no room for a stream")
		_ = st.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	defer st.Scope().ReleaseMemory(streamMemory)
	s.metrics.serverStream(1)
	defer s.metrics.serverStream(-1)

	l := newLine(st)
	t := &turn{server: s, peer: p, line: l, watch: newWatch(l), guard: newGuard(l, s.cfg.IdleTimeout, s.cfg.TransferTimeout)}
	stop := context.AfterFunc(ctx, func() {
		if t.guard.underWay() {
			l.abort(codeShutdown)
		} else {
			_ = l.SetReadDeadline(longAgo)
		}
	})
	defer stop()
	defer t.watch.stop()
	defer t.guard.stop()
	for {
		o, code := s.guarded(ctx, t)
		if code == keep {
			s.report(p, &o)
			continue
		}
		if o.op != 0 || o.err != nil {
			s.report(p, &o)
		}
		switch {
		case code == closed:
			_ = st.Close()
		case code == codeIdle && ctx.Err() != nil && t.guard.age() < arriveFor:
			s.mu.Lock()
			s.rested[p] = append(s.rested[p], st)
			s.mu.Unlock()
		default:
			l.abort(code)
		}
		return
	}
}

// What becomes of a stream after an exchange, beside the codes of resets.
const (
	keep   network.StreamErrorCode = iota // it can carry another
	closed                                // it is closed, and what was written still arrives
)

// guarded runs one exchange and turns a panic into a reset.
func (s *Server) guarded(ctx context.Context, t *turn) (o outcome, code network.StreamErrorCode) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error().Stringer("peer", t.peer).Interface("panic", v).Bytes("stack", debug.Stack()).Msg("exchange panicked")
			o.err, code = errPanic, codeFailed
		}
	}()
	return t.next(ctx)
}

var errPanic = errors.New("panic")

// report logs and counts an exchange.
func (s *Server) report(p peer.ID, o *outcome) {
	s.metrics.serverExchange(o)
	if e := s.log.Debug(); e.Enabled() {
		e.Stringer("peer", p).Stringer("op", o.op).Stringer("status", o.status).Int("rows", o.rows).Dur("took", o.took).
			AnErr("err", o.err).Msg("exchange")
	}
}
