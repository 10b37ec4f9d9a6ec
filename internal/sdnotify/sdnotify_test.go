package sdnotify

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// systemd listens on a socket as the service manager does.
func systemd(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// hears returns the next datagram.
func hears(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	require.NoError(t, err)
	return string(buf[:n])
}

func env(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

func TestNotifier_TellsSystemdOnFileAndAbstractSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "sd") // t.TempDir's name may be longer than the 108 bytes of a socket's
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	for _, name := range []string{filepath.Join(dir, "notify"), "@kwaaid-test-" + strconv.Itoa(os.Getpid())} {
		conn := systemd(t, name)
		n, err := Open(env(map[string]string{"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}))
		require.NoError(t, err)
		require.Equal(t, 15*time.Second, n.BeatEvery())
		require.NoError(t, n.Ready("3 experts\nREADY=0"))
		require.Equal(t, "READY=1\nSTATUS=3 experts READY=0", hears(t, conn))
		require.NoError(t, n.Beat())
		require.Equal(t, "WATCHDOG=1", hears(t, conn))
		require.NoError(t, n.Stopping("draining"))
		require.Equal(t, "STOPPING=1\nSTATUS=draining", hears(t, conn))
		require.NoError(t, n.Close())
		require.Error(t, n.Beat())
	}
}

func TestNotifier_WithoutSystemdDoesNothing(t *testing.T) {
	n, err := Open(env(nil))
	require.NoError(t, err)
	require.Nil(t, n)
	require.NoError(t, n.Ready("up"))
	require.NoError(t, n.Beat())
	require.NoError(t, n.Stopping("down"))
	require.NoError(t, n.Close())
	require.Zero(t, n.BeatEvery())
}

func TestOpen_NamesASocketThatCannotBeUsed(t *testing.T) {
	for _, name := range []string{"vsock:2:1234", "/does/not/exist"} {
		_, err := Open(env(map[string]string{"NOTIFY_SOCKET": name}))
		require.ErrorContains(t, err, "NOTIFY_SOCKET="+name)
	}
}

func TestWatchdog_IsForOneProcess(t *testing.T) {
	require.Equal(t, time.Second, watchdog("1000000", ""))
	require.Equal(t, time.Second, watchdog("1000000", strconv.Itoa(os.Getpid())))
	require.Zero(t, watchdog("1000000", "1"))
	for _, usec := range []string{"", "0", "-1", "soon", "9223372036854775807"} {
		require.Zero(t, watchdog(usec, ""), usec)
	}
}
