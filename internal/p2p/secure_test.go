package p2p

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// counted counts the writes of a connection.
type counted struct {
	net.Conn

	writes atomic.Int32
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// pairOf returns the two ends of a connection on loopback.
func pairOf(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	a, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	b, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return a, b
}

// secured makes two ends secure.
func secured(t *testing.T, a, b net.Conn) (dialled, accepted sec.SecureConn) {
	t.Helper()
	var ends [2]*secureTransport
	var ids [2]peer.ID
	for i := range ends {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		require.NoError(t, err)
		ends[i], err = newSecureTransport(libp2ptls.ID, key, nil)
		require.NoError(t, err)
		ids[i], err = peer.IDFromPrivateKey(key)
		require.NoError(t, err)
	}
	g, ctx := errgroup.WithContext(t.Context())
	g.Go(func() (err error) {
		dialled, err = ends[0].SecureOutbound(ctx, a, ids[1])
		return err
	})
	g.Go(func() (err error) {
		accepted, err = ends[1].SecureInbound(ctx, b, "")
		return err
	})
	require.NoError(t, g.Wait())
	require.Equal(t, ids[0], accepted.RemotePeer())
	return dialled, accepted
}

func drawn(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, err := rand.Read(b)
	require.NoError(t, err)
	return b
}

func TestSecureConn_WritesOnceHoweverManyRecordsItTakes(t *testing.T) {
	a, b := pairOf(t)
	below := &counted{Conn: a}
	from, to := secured(t, below, b)
	for range 64 { // the first records of a connection are short
		sent, before := drawn(t, 60<<10), below.writes.Load()
		var g errgroup.Group
		g.Go(func() error {
			_, err := from.Write(sent)
			return err
		})
		got := make([]byte, len(sent))
		_, err := io.ReadFull(to, got)
		require.NoError(t, err)
		require.NoError(t, g.Wait())
		require.True(t, bytes.Equal(sent, got))
		require.EqualValues(t, 1, below.writes.Load()-before)
	}
}

// stalled is a connection whose writes stall from some time on, until it is closed.
type stalled struct {
	net.Conn

	stalls        atomic.Bool
	begun, closed chan struct{}
}

func (s *stalled) Write(b []byte) (int, error) {
	if !s.stalls.Load() {
		return s.Conn.Write(b)
	}
	s.begun <- struct{}{}
	<-s.closed
	return 0, net.ErrClosed
}

func (s *stalled) Close() error {
	close(s.closed)
	return s.Conn.Close()
}

func TestSecureConn_CloseEndsAWriteThatStalls(t *testing.T) {
	a, b := pairOf(t)
	below := &stalled{Conn: a, begun: make(chan struct{}), closed: make(chan struct{})}
	from, _ := secured(t, below, b)
	below.stalls.Store(true)
	failed := make(chan error)
	go func() {
		_, err := from.Write([]byte("stuck"))
		failed <- err
	}()
	<-below.begun
	require.NoError(t, from.Close())
	require.ErrorIs(t, <-failed, net.ErrClosed)
}

// failing is a connection whose writes fail from some time on.
type failing struct {
	net.Conn

	fails atomic.Bool
}

var errTorn = errors.New("torn")

func (f *failing) Write(b []byte) (int, error) {
	if f.fails.Load() {
		f.fails.Store(false) // the next would go well
		return len(b) / 2, errTorn
	}
	return f.Conn.Write(b)
}

func TestSecureConn_SendsNothingBehindAWriteThatFailed(t *testing.T) {
	a, b := pairOf(t)
	below := &failing{Conn: a}
	from, _ := secured(t, below, b)
	below.fails.Store(true)
	_, err := from.Write([]byte("lost"))
	require.ErrorIs(t, err, errTorn)
	_, err = from.Write([]byte("garbage"))
	require.ErrorIs(t, err, errTorn)
}

// quietPair returns the two ends of a connection whose reads and writes are all quiet.
func quietPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	a, b = pairOf(t)
	w := new(watchman)
	w.ticking.Store(true)
	return quiet(a, w), quiet(b, w)
}

func TestQuiet_CarriesMoreThanTheSocketHolds(t *testing.T) {
	a, b := quietPair(t)
	sent := drawn(t, 16<<20)
	var g errgroup.Group
	g.Go(func() error {
		n, err := a.Write(sent)
		if err == nil && n != len(sent) {
			err = io.ErrShortWrite
		}
		return errors.Join(err, a.Close())
	})
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.NoError(t, g.Wait())
	require.True(t, bytes.Equal(sent, got))
}

func TestQuiet_EndsAsTheSocketDoes(t *testing.T) {
	read := func(c net.Conn) error {
		_, err := c.Read(make([]byte, 1))
		return err
	}
	fill := func(c net.Conn) error { // until nothing fits any more
		for b := make([]byte, 1<<20); ; {
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
	closedMeanwhile := func(c net.Conn, act func(net.Conn) error) error {
		done := make(chan error, 1)
		go func() { done <- act(c) }()
		return errors.Join(c.Close(), <-done)
	}
	for name, test := range map[string]struct {
		act  func(a, b net.Conn) error
		want error
	}{
		"closed by the peer":    {func(a, b net.Conn) error { return errors.Join(b.Close(), read(a)) }, io.EOF},
		"reset by the peer":     {func(a, b net.Conn) error { return errors.Join(reset(a, b), read(a)) }, syscall.ECONNRESET},
		"closed before a read":  {func(a, _ net.Conn) error { return errors.Join(a.Close(), read(a)) }, net.ErrClosed},
		"closed before a write": {func(a, _ net.Conn) error { return errors.Join(a.Close(), fill(a)) }, net.ErrClosed},
		"closed during a read":  {func(a, _ net.Conn) error { return closedMeanwhile(a, read) }, net.ErrClosed},
		"closed during a write": {func(a, _ net.Conn) error { return closedMeanwhile(a, fill) }, net.ErrClosed},
		"a deadline for reading": {func(a, _ net.Conn) error {
			return errors.Join(a.SetReadDeadline(time.Now().Add(time.Millisecond)), read(a))
		}, os.ErrDeadlineExceeded},
		"a deadline for writing": {func(a, _ net.Conn) error {
			return errors.Join(a.SetWriteDeadline(time.Now().Add(time.Millisecond)), fill(a))
		}, os.ErrDeadlineExceeded},
		"a deadline that is over": {func(a, _ net.Conn) error { return errors.Join(a.SetDeadline(time.Unix(1, 0)), read(a)) }, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := quietPair(t)
			require.ErrorIs(t, test.act(a, b), test.want)
		})
	}
}

// reset ends the connection of two ends with bytes unread, which is a reset.
func reset(a, b net.Conn) error {
	if _, err := a.Write([]byte("unread")); err != nil {
		return err
	}
	if _, err := b.Read(make([]byte, 1)); err != nil { // the rest has come
		return err
	}
	return b.Close()
}

func TestWatchman_TicksWhileThereAreReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatchman()
		require.False(t, w.looks(), "the first read is told to the runtime")
		for range 10 {
			require.True(t, w.looks())
			time.Sleep(watchmanSleeps)
			synctest.Wait()
		}
		time.Sleep(watchmanSleeps)
		synctest.Wait()
		require.False(t, w.looks(), "nobody has read since the last tick")
		require.True(t, w.looks())
	})
}
