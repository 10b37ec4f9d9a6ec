package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/kwaai/kwaaid/internal/wire"
)

// watchAfter is how long a request is computed at least before its stream is watched; at most it is twice that. Most answers are
// there before, and a tick wakes a thread, which hosts that share CPUs feel; for the others a watch costs a few microseconds of milliseconds.
const watchAfter = 5 * time.Millisecond

// watch notices that the peer resets or closes a stream while its request is computed, and cancels the work. A reset is seen only
// by who reads, so it reads: until the reply has gone out the peer has nothing to say, and whatever comes is an error.
//
// Its timer is not set for every request: to set one for so soon wakes a thread, which costs a tenth of a short exchange. It ticks
// while requests follow one another, and starts a read when it meets the same request twice:
//
//	resting ── begin ──► ticking ── same request met again ──► looking ── end ──► resting
//	   ▲                    │
//	   └── no request met ──┘
type watch struct {
	line  *line
	timer *time.Timer
	ended chan error // what the read came to; one place, so that look never waits

	mu      sync.Mutex
	ticking bool               // the timer is set, or tick is about to run
	looking bool               // tick reads
	running bool               // a request is computed
	request uint64             // counts requests
	met     uint64             // the request that tick met last
	cancel  context.CancelFunc // of the request that is computed
}

func newWatch(l *line) *watch {
	w := &watch{line: l, ended: make(chan error, 1)}
	w.timer = time.AfterFunc(time.Hour, w.tick)
	w.timer.Stop()
	return w
}

// begin starts to watch soon. It is answered by one end.
func (w *watch) begin(cancel context.CancelFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running, w.cancel = true, cancel
	w.request++
	if !w.ticking {
		w.ticking = true
		w.timer.Reset(watchAfter)
	}
}

// tick is the timer's work.
func (w *watch) tick() {
	w.mu.Lock()
	switch {
	case !w.running:
		w.ticking = false
	case w.met != w.request:
		w.met = w.request
		w.timer.Reset(watchAfter)
	default:
		w.ticking, w.looking = false, true
	}
	looking := w.looking
	w.mu.Unlock()
	if !looking {
		return
	}
	_, err := w.line.r.Peek(1)
	w.mu.Lock()
	if w.running {
		w.cancel()
	}
	w.mu.Unlock()
	w.ended <- err
}

// end stops watching; the stream can be read again when it has returned nil. An error that matches wire.ErrMalformed says that the
// peer sent something before its reply, any other that it is gone.
func (w *watch) end() error {
	w.mu.Lock()
	w.running, w.cancel = false, nil
	looking := w.looking
	w.looking = false
	w.mu.Unlock()
	if !looking {
		return nil
	}
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

// stop ends the timer; nothing is computed any more.
func (w *watch) stop() { w.timer.Stop() }
