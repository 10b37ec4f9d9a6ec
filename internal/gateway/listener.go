package gateway

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// http2Preface is what every gRPC connection begins with (RFC 9113, section 3.4).
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// listener bounds the connections of a face and counts those that bring noise: bytes, but never a request. When it is full, the
// connection that has waited longest for its next request makes room for a new one, so that idle ones keep nobody out.
type listener struct {
	net.Listener
	face    string
	preface string // a connection that begins with it is no noise; empty: one that beginRequest was called for
	room    int    // connections at once
	log     zerolog.Logger
	metrics *Metrics

	freed  chan struct{} // a connection was closed; one token tells as much as many
	closed chan struct{}
	close  sync.Once

	mu   sync.Mutex // guards open
	open map[*conn]struct{}
}

const (
	// patience is for a connection to bring its next request before it may be closed for another: who calls once a second keeps its own.
	patience = time.Second
	// firstPatience is for its first request, which comes right behind what opens the connection: so many that say nothing as a face has room
	// for hold up those behind them for so long.
	firstPatience = 100 * time.Millisecond
	// roomEvery is how often a full listener looks whether one has waited long enough.
	roomEvery = 20 * time.Millisecond
)

func newListener(l net.Listener, face, preface string, room int, log zerolog.Logger, metrics *Metrics) net.Listener {
	return &listener{
		Listener: l, face: face, preface: preface, room: room, log: log, metrics: metrics,
		freed: make(chan struct{}, 1), closed: make(chan struct{}), open: map[*conn]struct{}{},
	}
}

// Accept waits for room and for a connection.
func (l *listener) Accept() (net.Conn, error) {
	if err := l.makeRoom(); err != nil {
		return nil, err
	}
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	accepted := &conn{Conn: c, listener: l, awaited: l.preface}
	accepted.waits.Store(time.Now().UnixNano())
	l.mu.Lock()
	l.open[accepted] = struct{}{}
	l.mu.Unlock()
	return accepted, nil
}

// Close ends listening; it also ends an Accept that waits for room. Twice is fine.
func (l *listener) Close() error {
	l.close.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// makeRoom returns once there is room for a connection. The error is net.ErrClosed.
func (l *listener) makeRoom() error {
	for {
		full, idle := l.longestIdle()
		switch {
		case !full:
			return nil
		case idle != nil:
			l.log.Debug().Str("face", l.face).Stringer("remote", idle.RemoteAddr()).Msg("idle connection closed to make room")
			_ = idle.Close() // whoever reads from it will see
			continue
		}
		select {
		case <-l.freed:
		case <-time.After(roomEvery):
		case <-l.closed:
			return net.ErrClosed
		}
	}
}

// longestIdle tells whether there is no room, and which connection has waited longest past its patience for a request: nil if none has.
func (l *listener) longestIdle() (full bool, idle *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) < l.room {
		return false, nil
	}
	now, longest := time.Now().UnixNano(), time.Duration(0)
	for c := range l.open {
		at := c.waits.Load()
		if at == 0 {
			continue
		}
		allowed := patience
		if !c.request.Load() {
			allowed = firstPatience
		}
		if past := time.Duration(now-at) - allowed; past > longest {
			idle, longest = c, past
		}
	}
	return true, idle
}

// conn remembers whether its bytes made sense, and since when it waits.
type conn struct {
	net.Conn
	listener *listener
	awaited  string // what is still missing of the preface; only the reader touches it
	received atomic.Bool
	request  atomic.Bool
	waits    atomic.Int64 // since when no request is under way, in Unix nanoseconds; 0: one is, or may be
	closed   sync.Once
}

// Read reads, and compares the first bytes with the preface.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		if !c.received.Load() {
			c.received.Store(true)
		}
		if c.awaited != "" {
			k := min(n, len(c.awaited))
			if strings.HasPrefix(c.awaited, string(p[:k])) {
				c.awaited = c.awaited[k:]
				if c.awaited == "" {
					c.beginRequest() // of many; when all have ended gRPC closes it by itself
				}
			} else {
				c.awaited = ""
			}
		}
	}
	return n, err
}

// beginRequest says that a request was understood and is under way.
func (c *conn) beginRequest() {
	if !c.request.Load() {
		c.request.Store(true)
	}
	c.waits.Store(0)
}

// endRequest says that the connection waits for its next request.
func (c *conn) endRequest() { c.waits.Store(time.Now().UnixNano()) }

// Close closes the connection, and counts it when it brought noise.
func (c *conn) Close() error {
	c.closed.Do(func() {
		if c.received.Load() && !c.request.Load() {
			c.listener.metrics.noisy(c.listener.face)
			c.listener.log.Debug().Str("face", c.listener.face).Stringer("remote", c.RemoteAddr()).Msg("connection brought bytes but no request")
		}
		c.listener.mu.Lock()
		delete(c.listener.open, c)
		c.listener.mu.Unlock()
		select {
		case c.listener.freed <- struct{}{}:
		default:
		}
	})
	return c.Conn.Close()
}
