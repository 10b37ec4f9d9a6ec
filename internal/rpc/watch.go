package rpc

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kwaai/kwaaid/internal/wire"
)

// watchAfter is how long a request is computed before its stream is watched. Most answers are there before; for the others a
// watch costs a few microseconds of more than a millisecond.
const watchAfter = time.Millisecond

// watch notices that the peer resets or closes a stream while its request is computed, and cancels the work. A reset is seen only
// by who reads, so it reads: until the reply has gone out the peer has nothing to say, and whatever comes is an error.
type watch struct {
	line     *line
	timer    *time.Timer
	cancel   context.CancelFunc // set by begin, called by look
	stopping atomic.Bool        // the read is to end because the work has
	ended    chan error         // what the read came to; one place, so that look never waits
}

func newWatch(l *line) *watch {
	w := &watch{line: l, ended: make(chan error, 1)}
	w.timer = time.AfterFunc(time.Hour, w.look)
	w.timer.Stop()
	return w
}

// begin starts to watch soon. It is answered by one end.
func (w *watch) begin(cancel context.CancelFunc) {
	w.cancel = cancel
	w.stopping.Store(false)
	w.timer.Reset(watchAfter)
}

// look runs in the timer's goroutine until something comes, the stream ends, or end stops it.
func (w *watch) look() {
	_, err := w.line.r.Peek(1)
	if !w.stopping.Load() {
		w.cancel()
	}
	w.ended <- err
}

// end stops watching; the stream can be read again when it has returned nil. An error that matches wire.ErrMalformed says that the
// peer sent something before its reply, any other that it is gone.
func (w *watch) end() error {
	if w.timer.Stop() {
		return nil
	}
	w.stopping.Store(true)
	_ = w.line.SetReadDeadline(longAgo)
	err := <-w.ended
	_ = w.line.SetReadDeadline(time.Time{})
	switch {
	case err == nil:
		return fmt.Errorf("%w: bytes ahead of the reply", wire.ErrMalformed)
	case isDeadline(err):
		return nil
	default:
		return err
	}
}
