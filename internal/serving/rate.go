package serving

import (
	"math"
	"time"
)

// moment is a time on a host's own monotonic clock, since New: half as costly to read as time.Now, which asks two clocks.
type moment time.Duration

// never is a deadline that does not come.
const never = moment(math.MaxInt64)

// rateMemory: a pass counts for 1/16 of what is known, so an estimate follows a change of load within some 16 passes and one
// outlier moves it little.
const rateMemory = 15.0 / 16

// rate smooths what passes take. Passes count by their rows: many single rows don't hide that large batches cost less per
// row. The zero value knows nothing. Guarded by Host.mu.
type rate struct {
	seconds, rows float64
	pass, row     middle
}

// add takes in one pass.
func (r *rate) add(took time.Duration, rows int) {
	r.seconds = r.seconds*rateMemory + took.Seconds()
	r.rows = r.rows*rateMemory + float64(rows)
	r.pass.add(took)
	r.row.add(took / time.Duration(rows))
}

// perRow returns the smoothed time of one row; 0 when nothing is known.
func (r *rate) perRow() time.Duration {
	if r.rows == 0 {
		return 0
	}
	return time.Duration(r.seconds / r.rows * float64(time.Second))
}

// typically returns what a pass of so many rows takes in the middle: a thread that was put aside for milliseconds doesn't make
// an expert slow. 0 when nothing is known.
func (r *rate) typically(rows int) time.Duration {
	return max(time.Duration(r.pass), time.Duration(r.row)*time.Duration(rows))
}

// of returns the expected time of so many rows.
func (r *rate) of(rows int) time.Duration {
	if r.rows == 0 {
		return 0
	}
	return time.Duration(r.seconds / r.rows * float64(rows) * float64(time.Second))
}

// middle follows the median of what it is shown; an outlier moves it by an eighth and no more. The zero value knows nothing.
type middle time.Duration

func (m *middle) add(d time.Duration) {
	v := middle(d)
	switch step := *m/8 + 1; {
	case *m == 0:
		*m = v
	case v > *m:
		*m = min(*m+step, v)
	default:
		*m = max(*m-step, v)
	}
}

// busyClock runs while passes do, at 1/n of real time while n of them share the machine. So the time that a pass takes by
// this clock is its share of the host's work, and rows waiting × time per row is the time until they are done. Guarded by Host.mu.
type busyClock struct {
	at      moment        // of the last change
	work    time.Duration // what the clock showed then
	running int           // passes under way since
}

// change advances the clock to now, from when on so many more passes run; it returns what the clock shows.
func (c *busyClock) change(now moment, more int) time.Duration {
	if c.running > 0 {
		c.work += time.Duration(now-c.at) / time.Duration(c.running)
	}
	c.at, c.running = now, c.running+more
	return c.work
}
