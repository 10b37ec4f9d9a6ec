package serving

import "sync"

// headroom is what a host leaves alone of a machine's memory when it was given no budget: the runtime, streams and buffers of
// a node take about that much beside the weights.
const headroom = 64 << 20

// budget counts the memory of the weights. Without a limit it is what the machine or cgroup had left at the start, and never
// more than what it has left now: others use the machine too.
type budget struct {
	limit   int64                // 0: none was set
	machine func() (int64, bool) // bytes that the machine has left; false: unknown

	mu       sync.Mutex // guards reserved and pending
	reserved int64      // taken by experts, loaded or loading
	pending  int64      // the part of it that is still loading, and may not show in what the machine has left
	start    int64      // what the machine had left at the start; 0: unknown
}

func newBudget(limit int64, machine func() (int64, bool)) *budget {
	b := &budget{limit: limit, machine: machine}
	if left, ok := machine(); ok && limit == 0 {
		b.start = max(left-headroom, 0)
	}
	return b
}

// free returns the bytes that further experts may take; false when nothing is known and nothing is refused.
func (b *budget) free() (int64, bool) {
	left, known := b.left()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freeOf(left, known)
}

// reserve takes n bytes for an expert that is loading, or returns a MemoryError.
func (b *budget) reserve(n int64) error {
	left, known := b.left()
	b.mu.Lock()
	defer b.mu.Unlock()
	if free, ok := b.freeOf(left, known); ok && n > free {
		return &MemoryError{Needed: n, Free: free}
	}
	b.reserved += n
	b.pending += n
	return nil
}

// loaded says that an expert whose n bytes were reserved is in memory.
func (b *budget) loaded(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending -= n
}

// release gives n bytes back that were reserved; loading tells whether loaded was not yet called for them.
func (b *budget) release(n int64, loading bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reserved -= n
	if loading {
		b.pending -= n
	}
}

// left asks the machine, unless the operator set a limit. It reads files, so mu is not held.
func (b *budget) left() (int64, bool) {
	if b.limit > 0 {
		return 0, false
	}
	return b.machine()
}

func (b *budget) freeOf(left int64, known bool) (int64, bool) {
	switch {
	case b.limit > 0:
		return max(b.limit-b.reserved, 0), true
	case known:
		return max(min(b.start-b.reserved, left-headroom-b.pending), 0), true
	default:
		return 0, false
	}
}
