package p2p

import (
	"sync/atomic"
	"time"
)

// watchman sees to it that the runtime's watchman (sysmon) does its work though quiet reads do not wake it. Where all CPUs compute, it is the
// one who makes room for what came from the network. Idle it sleeps until the next timer is due; so while there are reads a timer runs, and
// the first of them, which sets it, is told to the runtime.
type watchman struct {
	timer   *time.Timer
	ticking atomic.Bool
	read    atomic.Bool // since the last tick
}

// watchmanSleeps is how long at most: as long as the runtime lets a goroutine compute while others wait.
const watchmanSleeps = 10 * time.Millisecond

func newWatchman() *watchman {
	w := new(watchman)
	w.timer = time.AfterFunc(time.Hour, w.tick)
	w.timer.Stop()
	return w
}

// looks tells whether the runtime's watchman is up soon anyway.
func (w *watchman) looks() bool {
	if w.ticking.Load() {
		if !w.read.Load() {
			w.read.Store(true)
		}
		return true
	}
	w.start()
	return false
}

func (w *watchman) start() {
	if w.ticking.CompareAndSwap(false, true) {
		w.timer.Reset(watchmanSleeps)
	}
}

func (w *watchman) tick() {
	if w.read.Swap(false) {
		w.timer.Reset(watchmanSleeps)
		return
	}
	w.ticking.Store(false)
	if w.read.Load() { // by one that still saw it tick
		w.start()
	}
}
