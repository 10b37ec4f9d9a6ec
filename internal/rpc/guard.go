package rpc

import (
	"sync/atomic"
	"time"
)

// guard ends a stream that rests too long, or that moves a frame too slowly. It looks at its stream a few times in the shorter of
// the two times, rather than to set a timer in every phase of every exchange.
type guard struct {
	line     *line
	idle     time.Duration
	transfer time.Duration
	every    time.Duration
	timer    *time.Timer
	born     time.Time
	phase    atomic.Int64 // when the phase began, in nanoseconds since born, with the phase in the lowest two bits
}

// The phases of a stream.
const (
	resting   = iota // waits for a request
	moving           // a frame is under way
	computing        // the handler has the time that its caller gives it
	over             // the stream has ended
)

// guardLooks is how often a guard looks in the shorter of its times, and so how exact it is.
const guardLooks = 4

func newGuard(l *line, idle, transfer time.Duration) *guard {
	g := &guard{line: l, idle: idle, transfer: transfer, every: min(idle, transfer) / guardLooks, born: time.Now()}
	g.timer = time.AfterFunc(g.every, g.look)
	return g
}

// enter begins a phase.
func (g *guard) enter(phase int64, now time.Time) {
	g.phase.Store(now.Sub(g.born).Nanoseconds()&^3 | phase)
}

// age is how long the phase has lasted.
func (g *guard) age() time.Duration {
	return time.Since(g.born) - time.Duration(g.phase.Load()&^3)
}

// underWay tells whether an exchange is.
func (g *guard) underWay() bool {
	phase := g.phase.Load() & 3
	return phase == moving || phase == computing
}

// look is the timer's work.
func (g *guard) look() {
	v := g.phase.Load()
	age := time.Since(g.born) - time.Duration(v&^3)
	switch {
	case v&3 == over:
	case v&3 == resting && age > g.idle:
		g.line.abort(codeIdle)
	case v&3 == moving && age > g.transfer:
		g.line.abort(codeStalled)
	default:
		g.timer.Reset(g.every)
	}
}

// stop ends the guard. A look that is under way may set the timer once more; the next one is the last.
func (g *guard) stop() {
	g.phase.Store(over)
	g.timer.Stop()
}
