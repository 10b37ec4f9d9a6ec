package registry

import "time"

// BreakerState is whether calls go through.
type BreakerState uint8

// The states of a breaker.
const (
	Closed   BreakerState = iota // calls go through
	Open                         // none goes through until its rest is over
	HalfOpen                     // its rest is over: one call goes through as a probe, and decides
)

// String returns closed, open or half-open.
func (s BreakerState) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	default:
		return "unknown"
	}
}

const (
	// failuresToOpen: one failure may be an accident, two a bad moment.
	failuresToOpen = 3
	// firstRest is short since a probe is a real call that may fail: one a second hurts nobody.
	firstRest = time.Second
	// maxRest: one failed attempt in ten seconds costs little, and a host that is well again is back soon.
	maxRest = 10 * time.Second
	// restMemory: who did well for so long starts with firstRest again.
	restMemory = 2 * time.Minute
)

// breaker keeps calls away from what failed.
//
//	         failuresToOpen in a row, or trip
//	closed ────────────────────────────────────► open
//	  ▲                                          │  ▲
//	  │ probe answered,               rest over, │  │ probe failed:
//	  │ or the peer is back        probe started ▼  │ rest doubles
//	  └───────────────────────────────────── half-open
//
// Invariant: probing is true only while exactly one unreported Pick holds the probe.
type breaker struct {
	until    tick          // open: when the rest is over
	rest     time.Duration // the last rest; it doubles while probes fail
	failedAt tick          // of the last failure that counted; 0: none yet
	failures uint16        // in a row
	open     bool
	probing  bool
}

// state at the given time.
func (b *breaker) state(now tick) BreakerState {
	switch {
	case !b.open:
		return Closed
	case now < b.until:
		return Open
	default:
		return HalfOpen
	}
}

// allows tells whether a call may go through now.
func (b *breaker) allows(now tick) bool {
	return !b.open || (now >= b.until && !b.probing)
}

// early tells whether a probe may go through before the rest is over.
func (b *breaker) early(now tick) bool {
	return b.open && !b.probing && now-b.failedAt >= tick(lastResortRest)
}

// begin notes that a call goes through, and tells whether it is the probe.
func (b *breaker) begin() (probe bool) {
	if b.open {
		b.probing = true
	}
	return b.open
}

// ok closes the breaker; it tells whether it was open.
func (b *breaker) ok() (wasOpen bool) {
	wasOpen = b.open
	b.open, b.probing, b.failures = false, false, 0
	return wasOpen
}

// fail counts the failure of a call that was picked at the given time. Calls that were under way together when something broke
// fail together: they count once.
func (b *breaker) fail(picked, now tick, probe bool) (counted bool) {
	switch {
	case probe:
		b.probing = false
		b.trip(now)
	case b.failedAt != 0 && picked <= b.failedAt:
		return false
	default:
		b.failures++
		if b.failures >= failuresToOpen {
			b.trip(now)
		}
	}
	b.failedAt = now
	return true
}

// trip opens the breaker for a rest: the first one, or twice the last one if it did not do well since.
func (b *breaker) trip(now tick) {
	switch {
	case b.open && now < b.until:
		return // it rests already
	case b.rest == 0 || now-b.until > tick(restMemory):
		b.rest = firstRest
	default:
		b.rest = min(2*b.rest, maxRest)
	}
	b.open, b.failures = true, 0
	b.until = now + tick(b.rest)
}

// release gives a probe back that decided nothing, so that the next call can be it.
func (b *breaker) release(probe bool) {
	if probe {
		b.probing = false
	}
}
