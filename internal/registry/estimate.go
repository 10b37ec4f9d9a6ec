package registry

import (
	"math"
	"math/bits"
	"time"
)

// tick is a time: nanoseconds since the table was made. It is always positive, so that 0 can mean never.
type tick int64

// faded is how much of something is left after its age, by its half-life: 1 for now, 0.5 after one half-life.
func faded(age tick, halfLife time.Duration) float64 {
	if age <= 0 {
		return 1
	}
	lives := float64(age) / float64(halfLife)
	if lives < 1.0/16 {
		// Most of the time: the series up to its square is within 0.002% here, and takes a tenth of the time.
		x := lives * math.Ln2
		return 1 - x + x*x/2
	}
	return math.Exp2(-lives)
}

// health is the share of calls that went well, old ones counting less.
type health struct {
	good, all float32
	at        tick
}

const (
	// successHalfLife: what happened five minutes ago counts a thousandth.
	successHalfLife = 30 * time.Second
	// benefitOfDoubt is how many good calls a stranger is taken to have made.
	benefitOfDoubt = 1
)

func (h *health) add(good bool, now tick) {
	f := float32(faded(now-h.at, successHalfLife))
	h.good, h.all, h.at = h.good*f, h.all*f+1, now
	if good {
		h.good++
	}
}

// rate is between 0 and 1; 1 where nothing is known, or all that was known has faded.
func (h *health) rate(now tick) float64 {
	f := faded(now-h.at, successHalfLife)
	return (float64(h.good)*f + benefitOfDoubt) / (float64(h.all)*f + benefitOfDoubt)
}

// smooth moves a smoothed value towards a sample; 0 stands for no value yet.
func smooth(value *float32, sample, weight float64) {
	if *value == 0 {
		*value = float32(sample)
		return
	}
	*value += float32(weight * (sample - float64(*value)))
}

// older returns the weight of a sample where smooth would give it the given one, if what was known before is to be trusted that much only.
func older(weight, trust float64) float64 { return 1 - (1-weight)*trust }

// quantile follows the slowQuantile of a stream of durations in 8 bytes: it steps up when a sample is above it and down when one
// is below, by steps in such a proportion that it rests where the samples above are 1 - slowQuantile of all. Since it needs to
// know only that a sample is above, it learns from calls that were cut off too.
type quantile struct {
	seconds float32
	count   uint32 // samples seen
}

const (
	slowQuantile = 0.95
	// minSamples: before, fewer than one sample is expected above a p95.
	minSamples = 20
	// stepStart, stepEnd: the step falls from a factor of 1.6 to one of 1.05, so that the first samples find the place and the
	// later ones keep it.
	stepStart, stepEnd = 0.5, 0.05
)

func (q *quantile) add(sample float64) {
	if q.count == 0 {
		q.seconds = float32(sample)
	}
	step := max(stepEnd, stepStart/(1+float64(q.count)/minSamples))
	if sample > float64(q.seconds) {
		q.seconds *= float32(1 + step*slowQuantile)
	} else {
		q.seconds *= float32(1 - step*(1-slowQuantile))
	}
	if q.count < math.MaxUint32 {
		q.count++
	}
}

// cut learns from a call that was cut off after the given seconds: only whether it was above, which it returns.
func (q *quantile) cut(seconds float64) (above bool) {
	if above = q.count > 0 && seconds > float64(q.seconds); above {
		q.add(seconds)
	}
	return above
}

// rowClasses: calls of 1, 2, 3-4, 5-8, ... rows are alike in what they take; the last class holds all above 4,096.
const rowClasses = 14

func rowClass(rows int) int {
	if rows < 1 {
		return 0
	}
	return min(bits.Len(uint(rows-1)), rowClasses-1)
}
