package rpc

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/wire"
)

// pool keeps open streams to peers. Safe for concurrent use.
type pool struct {
	host    host.Host
	cfg     ClientConfig
	metrics *Metrics

	mu     sync.Mutex
	peers  *simplelru.LRU[peer.ID, *lines]
	doomed []*line // to be closed by tidy: on a connection that does not move, a close takes its time, which no call shall wait
	closed bool    // nothing is kept any more

	untidy chan struct{} // tells that doomed is not empty; one place
}

// lines are the streams to one peer.
type lines struct {
	peer peer.ID
	// work and signals hold a token for each stream that is in use or being opened: calls, and what must not wait behind them.
	work, signals chan struct{}

	// Guarded by pool.mu. A stream is opened only when none is idle, so no more are open than the two hold tokens.
	idle    []*line // used last, last
	burnt   int     // streams that were dropped and not replaced yet
	evicted bool    // no longer in the pool: what comes back is closed
}

func newPool(h host.Host, cfg ClientConfig, m *Metrics) (*pool, error) {
	p := &pool{host: h, cfg: cfg, metrics: m, untidy: make(chan struct{}, 1)}
	var err error
	p.peers, err = simplelru.NewLRU(cfg.Peers, func(_ peer.ID, ls *lines) {
		ls.evicted = true
		p.doom(ls.idle...)
		ls.idle = nil
	})
	return p, err
}

// maxSignals is how many pings and goodbyes are under way to one peer beside its calls.
const maxSignals = 4

// slot is a token of a peer's, to be given back once.
type slot chan struct{}

func (s slot) release() { <-s }

// acquire waits until the peer may be sent one more request. The slot is answered by one release, or by one put or drop of a stream
// that was used under it. A ping does not wait behind calls: it is to find out why they take so long.
func (p *pool) acquire(ctx context.Context, id peer.ID, op wire.Op) (*lines, slot, error) {
	p.mu.Lock()
	ls, found := p.peers.Get(id)
	if !found {
		ls = &lines{peer: id, work: make(chan struct{}, p.cfg.StreamsPerPeer), signals: make(chan struct{}, maxSignals)}
		p.peers.Add(id, ls)
	}
	p.mu.Unlock()
	tokens := ls.work
	if op == wire.OpPing || op == wire.OpGoodbye {
		tokens = ls.signals
	}
	select {
	case tokens <- struct{}{}:
		return ls, tokens, nil
	default:
	}
	select {
	case tokens <- struct{}{}:
		return ls, tokens, nil
	case <-ctx.Done():
		return nil, nil, endOf(ctx)
	}
}

// reuse returns the idle stream that was used last, or nil. Streams whose connection has ended are left out.
func (p *pool) reuse(ls *lines, now time.Time) *line {
	var l *line
	p.mu.Lock()
	defer p.mu.Unlock()
	for l == nil && len(ls.idle) > 0 {
		last := len(ls.idle) - 1
		l, ls.idle[last] = ls.idle[last], nil
		ls.idle = ls.idle[:last]
		if l.Conn().IsClosed() || now.Sub(l.idle) > p.cfg.IdleTimeout {
			p.doom(l)
			l = nil
		}
	}
	if l == nil && ls.burnt > 0 {
		ls.burnt-- // the caller opens one
	}
	return l
}

// open opens a stream; ctx ends the wait for it. The error matches a sentinel of package expert.
//
// libp2p resets a stream that it could not finish to open, and on a connection that does not move that takes until the connection is
// given up, at most 10 s. So a goroutine of its own does it, which ends with ctx otherwise.
func (p *pool) open(ctx context.Context, id peer.ID) (*line, error) {
	type opened struct {
		l   *line
		err error
	}
	done := make(chan opened)
	go func() {
		var o opened
		o.l, o.err = p.dial(ctx, id)
		select {
		case done <- o:
		case <-ctx.Done():
			if o.l != nil {
				o.l.abort(codeCancelled)
				p.metrics.clientStream(-1)
			}
		}
	}()
	select {
	case o := <-done:
		if o.err != nil && ctx.Err() != nil {
			return nil, endOf(ctx)
		}
		return o.l, o.err
	case <-ctx.Done():
		return nil, endOf(ctx)
	}
}

// dial opens a stream, on a new connection if there is none.
func (p *pool) dial(ctx context.Context, id peer.ID) (*line, error) {
	st, err := p.host.NewStream(ctx, id, Protocol)
	if err != nil {
		return nil, dialError(err)
	}
	if err := st.Scope().SetService(Service); err != nil {
		_ = st.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, dialError(err)
	}
	p.metrics.clientStream(1)
	return newLine(st), nil
}

// put gives back a stream on which nothing is under way.
func (p *pool) put(ls *lines, held slot, l *line, now time.Time) {
	l.fresh, l.idle = false, now
	p.mu.Lock()
	if p.closed || ls.evicted {
		p.doom(l)
	} else {
		ls.idle = append(ls.idle, l)
	}
	closed := p.closed
	p.mu.Unlock()
	held.release()
	if closed {
		p.tidy() // nobody else does any more
	}
}

// drop ends a stream on which something may be under way.
func (p *pool) drop(ls *lines, held slot, l *line, code network.StreamErrorCode) {
	l.abort(code)
	p.metrics.clientStream(-1)
	p.mu.Lock()
	ls.burnt = min(ls.burnt+1, cap(ls.work))
	p.mu.Unlock()
	held.release()
}

// wants takes a slot to open a stream in the place of one that was dropped, if no call has done so; nil if it need not be.
func (p *pool) wants(ls *lines) slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || ls.evicted || ls.burnt == 0 || len(ls.idle)+len(ls.work) >= cap(ls.work) {
		return nil
	}
	select {
	case ls.work <- struct{}{}:
		ls.burnt--
		return ls.work
	default:
		return nil
	}
}

// sweep dooms the streams that nobody used for the idle timeout or whose connection has ended, and forgets peers without any.
func (p *pool) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range p.peers.Keys() {
		ls, _ := p.peers.Peek(id)
		kept := ls.idle[:0]
		for _, l := range ls.idle {
			if l.Conn().IsClosed() || now.Sub(l.idle) > p.cfg.IdleTimeout {
				p.doom(l)
			} else {
				kept = append(kept, l)
			}
		}
		clear(ls.idle[len(kept):])
		ls.idle = kept
		if len(kept) == 0 && len(ls.work) == 0 && len(ls.signals) == 0 {
			p.peers.Remove(id)
		}
	}
}

// shut closes what is idle, now and from now on.
func (p *pool) shut() {
	p.mu.Lock()
	p.closed = true
	p.peers.Purge()
	p.mu.Unlock()
	p.tidy()
}

// doom has streams closed soon. Called with mu held.
func (p *pool) doom(ls ...*line) {
	if len(ls) == 0 {
		return
	}
	p.doomed = append(p.doomed, ls...)
	select {
	case p.untidy <- struct{}{}:
	default:
	}
}

// tidy closes the streams that are doomed: their hosts read the end of the stream, and know that nothing was lost.
func (p *pool) tidy() {
	p.mu.Lock()
	doomed := p.doomed
	p.doomed = nil
	p.mu.Unlock()
	for _, l := range doomed {
		if err := l.Close(); err != nil {
			_ = l.Reset()
		}
		p.metrics.clientStream(-1)
	}
}
