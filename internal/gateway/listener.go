package gateway

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"
)

// http2Preface is what every gRPC connection begins with (RFC 9113, section 3.4).
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// listener bounds the connections of a face and counts those that bring noise: bytes, but never a request.
type listener struct {
	net.Listener
	face    string
	preface string // a connection that begins with it is no noise; empty: one that markRequest was called for
	log     zerolog.Logger
	metrics *Metrics
}

func newListener(l net.Listener, face, preface string, log zerolog.Logger, metrics *Metrics) net.Listener {
	return &listener{Listener: netutil.LimitListener(l, maxConnections), face: face, preface: preface, log: log, metrics: metrics}
}

// Accept waits for room and for a connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, listener: l, awaited: l.preface}, nil
}

// conn remembers whether its bytes made sense.
type conn struct {
	net.Conn
	listener *listener
	awaited  string // what is still missing of the preface; only the reader touches it
	received atomic.Bool
	request  atomic.Bool
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
				c.request.Store(c.awaited == "")
			} else {
				c.awaited = ""
			}
		}
	}
	return n, err
}

// markRequest says that a request was understood.
func (c *conn) markRequest() {
	if !c.request.Load() {
		c.request.Store(true)
	}
}

// Close closes the connection, and counts it when it brought noise.
func (c *conn) Close() error {
	c.closed.Do(func() {
		if c.received.Load() && !c.request.Load() {
			c.listener.metrics.noisy(c.listener.face)
			c.listener.log.Debug().Str("face", c.listener.face).Stringer("remote", c.RemoteAddr()).Msg("connection brought bytes but no request")
		}
	})
	return c.Conn.Close()
}
