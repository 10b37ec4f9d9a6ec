package dispatch

import "sync/atomic"

// budget bounds the hedges: each exchange earns a twentieth of one. It starts full, so that the first slow answers can be hedged.
// Safe for concurrent use.
type budget struct {
	spent atomic.Int64 // twentieths that are missing from a full bucket; 0: it is full
}

const (
	// hedgeShare is the number of exchanges that earn a hedge: at most 5% are made on top.
	hedgeShare = 20
	// hedgesFull is how many hedges may come at once: a burst of slow answers, not a storm.
	hedgesFull = 16 * hedgeShare
)

func (b *budget) earn() {
	for {
		spent := b.spent.Load()
		if spent == 0 || b.spent.CompareAndSwap(spent, spent-1) {
			return
		}
	}
}

// spend takes a hedge out; false when there is none.
func (b *budget) spend() bool {
	for {
		spent := b.spent.Load()
		if spent+hedgeShare > hedgesFull {
			return false
		}
		if b.spent.CompareAndSwap(spent, spent+hedgeShare) {
			return true
		}
	}
}
