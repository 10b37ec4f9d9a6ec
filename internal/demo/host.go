package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/node"
)

// Up is what a node says of itself in the log line node.UpMessage.
type Up struct {
	Message string   `json:"message"`
	Peer    string   `json:"peer"`
	Addrs   []string `json:"addrs"` // full multiaddrs, /p2p included
	API     string   `json:"api"`   // HOST:PORT
	GRPC    string   `json:"grpc"`  // HOST:PORT
}

// startTimeout bounds how long a child may take until it listens: a cold start on a busy machine takes 2 s.
const startTimeout = 60 * time.Second

// lastLines is how much of a child's log an error quotes, in bytes.
const lastLines = 4 << 10

// Host is a kwaaid child process.
type Host struct {
	Up
	Client  *api.Client
	Process *os.Process // to be signalled; the Host waits for it

	log    *tail
	exited chan struct{} // closed when the process is gone and err is set
	err    error         // of Wait; read after exited
}

// StartHost runs `binary run args...` as a child process and waits until it listens. env is added to this process's own.
// The caller ends the child with Stop or Kill.
func StartHost(ctx context.Context, binary string, args, env []string) (*Host, error) {
	cmd := exec.Command(binary, append([]string{"run", "--json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = childOfOurs()
	h := &Host{log: &tail{}, exited: make(chan struct{})}
	cmd.Stderr = h.log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started, up := make(chan error, 1), make(chan Up, 1)
	go func() {
		defer close(h.exited)
		// What Linux ends with its parent, it ends with the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		h.err = cmd.Start()
		started <- h.err
		if h.err == nil {
			h.follow(stdout, up)
			h.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting a host: %w", err)
	}
	h.Process = cmd.Process
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("a host did not listen within %v", startTimeout))
	defer cancel()
	select {
	case h.Up = <-up:
		h.Client = api.NewClient(h.API, "")
		return h, nil
	case <-h.exited:
		return nil, fmt.Errorf("a host ended before it listened: %w\n%s", h.err, h.Log())
	case <-ctx.Done():
		h.Kill()
		return nil, errors.Join(context.Cause(ctx), errors.New(h.Log()))
	}
}

// follow reads the child's log to its end, so that the child never blocks on it.
func (h *Host) follow(r io.Reader, up chan<- Up) {
	lines := bufio.NewReader(r)
	for told := false; ; {
		line, err := lines.ReadBytes('\n')
		_, _ = h.log.Write(line)
		var u Up
		if !told && json.Unmarshal(line, &u) == nil && u.Message == node.UpMessage {
			told = true
			up <- u
		}
		if err != nil {
			return
		}
	}
}

// WaitReady waits until the node says that it is ready.
func (h *Host) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := h.Client.Ready(ctx)
		if err == nil && r.Ready {
			return nil
		}
		select {
		case <-tick.C:
		case <-h.exited:
			return fmt.Errorf("a host ended before it was ready: %w\n%s", h.err, h.Log())
		case <-ctx.Done():
			return fmt.Errorf("a host is not ready (%v): %w\n%s", r.Reasons, context.Cause(ctx), h.Log())
		}
	}
}

// Kill ends the process at once (SIGKILL) and waits until it is gone.
func (h *Host) Kill() {
	_ = h.Process.Kill()
	<-h.exited
	h.close()
}

// Freeze stops the process without ending it (SIGSTOP): its sockets stay open and silent. The error matches errors.ErrUnsupported where
// the system has no such thing.
func (h *Host) Freeze() error { return freeze(h.Process) }

// Thaw lets a frozen process go on.
func (h *Host) Thaw() error { return thaw(h.Process) }

// Stop asks the process to drain (SIGTERM) and waits until it is gone; when ctx ends first, or where processes cannot be asked, it is
// killed. It returns the process's own error: nil for exit code 0.
func (h *Host) Stop(ctx context.Context) error {
	if err := h.Process.Signal(syscall.SIGTERM); errors.Is(err, errors.ErrUnsupported) {
		_ = h.Process.Kill()
	}
	_ = h.Thaw()
	select {
	case <-h.exited:
	case <-ctx.Done():
		h.Kill()
	}
	h.close()
	return h.err
}

// Log returns the end of what the process logged.
func (h *Host) Log() string { return h.log.String() }

func (h *Host) close() {
	if h.Client != nil {
		h.Client.Close()
	}
}

// tail keeps the last bytes written to it. Safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - lastLines; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
