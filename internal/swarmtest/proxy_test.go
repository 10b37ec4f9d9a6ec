package swarmtest_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// echo is a TCP server behind a proxy that says back what it is told.
func echo(t *testing.T) (*swarmtest.Proxy, func() *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		serving.Wait()
	})
	p := swarmtest.NewProxy(t, 1) // it ends before the server, and ends the server's connections with it
	p.SetTarget(l.Addr().String())
	return p, func() *net.TCPConn {
		c, err := net.Dial("tcp", p.Addr())
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(swarmtest.Deadline)))
		return c.(*net.TCPConn)
	}
}

// say sends bytes and reads as many back.
func say(c net.Conn, what []byte) ([]byte, error) {
	if _, err := c.Write(what); err != nil {
		return nil, err
	}
	got := make([]byte, len(what))
	_, err := io.ReadFull(c, got)
	return got, err
}

func TestProxy_PassesOnWhatComes(t *testing.T) {
	_, dial := echo(t)
	c := dial()
	for range 10 {
		want := bytes.Repeat([]byte("words "), 5000)
		got, err := say(c, want)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestProxy_TurnsBitsOver(t *testing.T) {
	p, dial := echo(t)
	p.Set(swarmtest.Faults{Corrupt: 1})
	got, err := say(dial(), make([]byte, 100))
	require.NoError(t, err)
	require.NotEqual(t, make([]byte, 100), got)
}

func TestProxy_DelaysAnswersOnly(t *testing.T) {
	p, dial := echo(t)
	p.Set(swarmtest.Faults{Delay: 50 * time.Millisecond})
	begun := time.Now()
	_, err := say(dial(), []byte("a"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(begun), 50*time.Millisecond)
}

func TestProxy_HoldsUntilToldOtherwise(t *testing.T) {
	p, dial := echo(t)
	old := dial()
	_, err := say(old, []byte("a"))
	require.NoError(t, err)
	p.Set(swarmtest.Faults{Hold: true})
	fresh := dial()
	for _, c := range []net.Conn{old, fresh} {
		_, err := c.Write([]byte("held"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		_, err = c.Read(make([]byte, 1))
		timeout(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(swarmtest.Deadline)))
	}
	p.Set(swarmtest.Faults{})
	for _, c := range []net.Conn{old, fresh} {
		got := make([]byte, 4)
		_, err := io.ReadFull(c, got)
		require.NoError(t, err)
		require.Equal(t, "held", string(got))
	}
}

// timeout wants an error to be one of time.
func timeout(t *testing.T, err error) {
	t.Helper()
	var n net.Error
	require.ErrorAs(t, err, &n)
	require.True(t, n.Timeout())
}

func TestProxy_CutsWhatIsOpenAndWhatIsNew(t *testing.T) {
	p, dial := echo(t)
	c := dial()
	_, err := say(c, []byte("a"))
	require.NoError(t, err)
	p.Set(swarmtest.Faults{Cut: true})
	_, err = say(c, []byte("b"))
	require.Error(t, err)
	if c, err := net.Dial("tcp", p.Addr()); err == nil { // the reset may come before the dial has ended
		_, err = say(c, []byte("c"))
		require.Error(t, err)
		require.NoError(t, c.Close())
	}
	p.Set(swarmtest.Faults{})
	_, err = say(dial(), []byte("d"))
	require.NoError(t, err)
}

func TestProxy_LosesAnswersOfAHalfOpenConnection(t *testing.T) {
	p, dial := echo(t)
	c := dial()
	_, err := say(c, []byte("a"))
	require.NoError(t, err)
	p.Set(swarmtest.Faults{Mute: true})
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = say(c, []byte("b"))
	timeout(t, err)
}
