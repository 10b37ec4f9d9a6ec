// Package sdnotify tells systemd how the service is, by the protocol of sd_notify(3): ready, alive, stopping.
package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Notifier speaks to the service manager. A nil one does nothing: the process was not started by systemd.
// It is safe for concurrent use.
type Notifier struct {
	conn     *net.UnixConn
	watchdog time.Duration
}

// Open returns a Notifier as the environment says (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID): nil without a socket.
// getenv is os.Getenv or a test's.
func Open(getenv func(string) string) (*Notifier, error) {
	name := getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	// A socket is a file, or a name in Linux's abstract space, which Go writes with the same @ as systemd.
	if name[0] != '/' && name[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: expected a path or a name after @", name)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: %w", name, err)
	}
	return &Notifier{conn: conn, watchdog: watchdog(getenv("WATCHDOG_USEC"), getenv("WATCHDOG_PID"))}, nil
}

// watchdog returns the time after which systemd takes us for dead; 0 where it does not look, or looks at another process.
func watchdog(usec, pid string) time.Duration {
	if pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(time.Duration(1<<63-1)/time.Microsecond) {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// BeatEvery is how often Beat is to be called, half of what the unit's WatchdogSec says; 0: never.
func (n *Notifier) BeatEvery() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog / 2
}

// Ready says that the service has started; status is for people, in `systemctl status`.
func (n *Notifier) Ready(status string) error { return n.send("READY=1", "STATUS="+oneLine(status)) }

// Beat says that the service is alive. It belongs behind a look at what must be moving.
func (n *Notifier) Beat() error { return n.send("WATCHDOG=1") }

// Stopping says that the service has begun to stop.
func (n *Notifier) Stopping(status string) error {
	return n.send("STOPPING=1", "STATUS="+oneLine(status))
}

// Close closes the socket; the others fail after it.
func (n *Notifier) Close() error {
	if n == nil {
		return nil
	}
	return n.conn.Close()
}

// send writes one datagram. It blocks only while systemd's queue is full.
func (n *Notifier) send(assignments ...string) error {
	if n == nil {
		return nil
	}
	if _, err := n.conn.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("telling systemd %s: %w", assignments[0], err)
	}
	return nil
}

// oneLine keeps a status from being read as further assignments.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }
