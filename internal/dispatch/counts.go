package dispatch

import "sync/atomic"

// Counts is what calls did since the Dispatcher was made.
type Counts struct {
	Calls     int64 // pairs of calls that were decided
	Failed    int64 // of them, those without an answer
	Fallbacks int64 // of them, those that a fallback answered
	Attempts  int64 // pairs that were sent to a peer, or given to this node
	Hedges    int64 // exchanges that were made because the first host was slow
	Refused   int64 // hedges that were not made because the budget was used up
	Missed    int64 // pings that silent peers missed
}

// counts are the same, counted up by many at once.
type counts struct {
	calls, failed, fallbacks, attempts, hedges, refused, missed atomic.Int64
}

// Counts returns what calls did so far.
func (d *Dispatcher) Counts() Counts {
	n := &d.counts
	return Counts{
		Calls: n.calls.Load(), Failed: n.failed.Load(), Fallbacks: n.fallbacks.Load(), Attempts: n.attempts.Load(),
		Hedges: n.hedges.Load(), Refused: n.refused.Load(), Missed: n.missed.Load(),
	}
}

func (n *counts) decided(a *Answer) {
	n.calls.Add(1)
	if a.Err != nil {
		n.failed.Add(1)
	}
	if a.Where == WhereFallback {
		n.fallbacks.Add(1)
	}
}
