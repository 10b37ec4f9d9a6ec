package p2p

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// secureTransport is libp2p's TLS over connections that cost less: each write of the muxer is one system call, and none wakes the runtime's
// watchman (see quiet).
type secureTransport struct {
	*libp2ptls.Transport

	watchman *watchman
}

func newSecureTransport(id protocol.ID, key crypto.PrivKey, muxers []upgrader.StreamMuxer) (*secureTransport, error) {
	t, err := libp2ptls.New(id, key, muxers)
	return &secureTransport{Transport: t, watchman: newWatchman()}, err
}

// SecureInbound is libp2p's.
func (t *secureTransport) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	r := &records{Conn: quiet(insecure, t.watchman)}
	c, err := t.Transport.SecureInbound(ctx, r, p)
	return r.under(c, err)
}

// SecureOutbound is libp2p's.
func (t *secureTransport) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	r := &records{Conn: quiet(insecure, t.watchman)}
	c, err := t.Transport.SecureOutbound(ctx, r, p)
	return r.under(c, err)
}

// secureConn gathers the records that TLS makes of a write, of 16 KiB each: one by one each would be a system call, and wake the peer.
type secureConn struct {
	sec.SecureConn

	records *records
	writing atomic.Bool
}

// Write is for one goroutine at a time; the muxer has one for it.
func (c *secureConn) Write(b []byte) (int, error) {
	c.writing.Store(true)
	defer c.writing.Store(false)
	c.records.hold()
	n, err := c.SecureConn.Write(b)
	if flushErr := c.records.flush(); err == nil && flushErr != nil {
		return 0, flushErr
	}
	return n, err
}

// Close does not wait for a write that is under way, which may never end: as with TLS's own there is no farewell then.
func (c *secureConn) Close() error {
	if c.writing.Load() {
		return c.records.Close()
	}
	return c.SecureConn.Close()
}

// records is the connection under TLS. It keeps records back while it is told to hold them.
type records struct {
	net.Conn

	mu   sync.Mutex // held while records go out: they are in order, and none may be left out
	held bool
	kept []byte
	err  error // of a write that failed: what came after it would be garbage
}

// keptMost is how much memory for records stays with a connection: a frame of the muxer's is 64 KiB at most, and TLS adds little.
const keptMost = 72 << 10

// under returns the connection that TLS has made of r.
func (r *records) under(c sec.SecureConn, err error) (sec.SecureConn, error) {
	if err != nil {
		return nil, err
	}
	return &secureConn{SecureConn: c, records: r}, nil
}

func (r *records) hold() {
	r.mu.Lock()
	r.held = true
	r.mu.Unlock()
}

// Write takes records.
func (r *records) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held {
		r.kept = append(r.kept, b...)
		return len(b), nil
	}
	return r.send(b)
}

// flush sends what was kept back.
func (r *records) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = false
	if len(r.kept) == 0 {
		return nil
	}
	_, err := r.send(r.kept)
	r.kept = r.kept[:0]
	if cap(r.kept) > keptMost {
		r.kept = nil
	}
	return err
}

func (r *records) send(b []byte) (n int, err error) {
	if r.err == nil {
		n, r.err = r.Conn.Write(b)
	}
	return n, r.err
}
