package kernel

import (
	"context"
	"sync"
	"time"
)

// Limits are what a machine can do at most, on as many threads as a pool has: what the speed of products is a fraction of.
type Limits struct {
	Threads    int
	ReadGBs    float64 // reading memory in order, beyond all caches, 10^9 bytes/s
	FMAGFLOPS  float64 // fused multiply-adds of float32 in registers, two operations each, 10^9/s
	BF16GFLOPS float64 // likewise by VDPBF16PS, four operations each; 0 where the pool does not use it
}

// limitLoops are the loops of a path.
type limitLoops struct {
	read  func(chunk []byte)
	fma   func() (operations float64) // some 100 us
	bf16  func() (operations float64)
	cache int // bytes of the last cache
}

const (
	// limitTries is how often each limit is measured; the best counts, since other work can only make it worse.
	limitTries = 5
	// limitTime is how long a try takes.
	limitTime = 40 * time.Millisecond
	// limitMemory is how much is read at least.
	limitMemory = 256 << 20
)

// MeasureLimits measures the limits of this machine with as many threads as the pool has; it takes about a second, and memory of twice the last
// cache, 256 MiB at least. Nothing else should run meanwhile. It returns ctx's cause if ctx ends before.
func MeasureLimits(ctx context.Context, pool *Pool) (Limits, error) {
	m, err := newMeter(pool)
	if err != nil {
		return Limits{}, err
	}
	defer m.buffer.unmap()
	best := Limits{Threads: pool.threads}
	for range limitTries {
		l := m.measure(limitTime)
		best.ReadGBs = max(best.ReadGBs, l.ReadGBs)
		best.FMAGFLOPS = max(best.FMAGFLOPS, l.FMAGFLOPS)
		best.BF16GFLOPS = max(best.BF16GFLOPS, l.BF16GFLOPS)
		if ctx.Err() != nil {
			return best, context.Cause(ctx)
		}
	}
	return best, nil
}

// meter measures limits again and again.
type meter struct {
	pool   *Pool
	loops  limitLoops
	buffer *memory
	memory [][]byte // what is read, more than any cache holds
}

func newMeter(pool *Pool) (*meter, error) {
	m := &meter{pool: pool, loops: pool.set.limitLoops()}
	var err error
	if m.buffer, err = mapMemory(roundUp(max(limitMemory, 2*m.loops.cache)/pool.threads, 1<<12) * pool.threads); err != nil {
		return nil, err
	}
	for i := 0; i < len(m.buffer.bytes); i += 1 << 12 {
		m.buffer.bytes[i] = 1 // a page that nobody wrote to is not there
	}
	m.memory = [][]byte{m.buffer.bytes}
	return m, nil
}

// measure measures each limit once, arithmetic for the given time, reading for as long as the buffer takes.
func (m *meter) measure(each time.Duration) Limits {
	l := Limits{Threads: m.pool.threads}
	l.ReadGBs = together(l.Threads, func(thread int) (read float64) {
		for _, b := range m.memory {
			part := len(b) / l.Threads
			m.loops.read(b[thread*part : (thread+1)*part])
			read += float64(part)
		}
		return read
	})
	l.FMAGFLOPS = together(l.Threads, repeat(each, m.loops.fma))
	if m.loops.bf16 != nil {
		l.BF16GFLOPS = together(l.Threads, repeat(each, m.loops.bf16))
	}
	return l
}

// repeat runs f for a while.
func repeat(each time.Duration, f func() float64) func(int) float64 {
	return func(int) (done float64) {
		for begun := time.Now(); time.Since(begun) < each; {
			done += f()
		}
		return done
	}
}

// together runs f on some threads at once and returns the sum of what they did, in 10^9/s.
func together(threads int, f func(thread int) float64) float64 {
	var wg sync.WaitGroup
	done := make([]float64, threads)
	begun := time.Now()
	for i := range threads {
		wg.Go(func() { done[i] = f(i) })
	}
	wg.Wait()
	took := time.Since(begun)
	var sum float64
	for _, d := range done {
		sum += d
	}
	return sum / float64(took.Nanoseconds())
}

// Work is what passes do: floating-point operations by float32 FMA, others by VDPBF16PS, and bytes of weights read.
type Work struct{ FMA, BF16, Bytes float64 }

// Of returns which fraction of the limit that binds passes took: of reading the weights once, or of arithmetic, whichever takes longer.
func (l Limits) Of(took time.Duration, w Work) float64 {
	arithmetic := w.FMA / l.FMAGFLOPS
	if w.BF16 > 0 {
		arithmetic += w.BF16 / l.BF16GFLOPS
	}
	return max(arithmetic, w.Bytes/l.ReadGBs) / float64(took.Nanoseconds())
}

// portableLimits are the loops in Go: they bound the portable path.
func portableLimits() limitLoops {
	return limitLoops{
		read: func(chunk []byte) {
			var sum byte
			for i := 0; i < len(chunk); i += cacheLine {
				sum += chunk[i]
			}
			chunk[0] = sum
		},
		fma: func() float64 {
			const n = 1 << 14
			a, b, c, d := float32(1), float32(2), float32(3), float32(4)
			for range n {
				a, b, c, d = fma(a, a, b), fma(b, b, c), fma(c, c, d), fma(d, d, a)
			}
			if a+b+c+d == 0 { // never: the results are used
				return 0
			}
			return 2 * 4 * n
		},
	}
}

// Native tells whether the pool computes n by an instruction of its own for bf16, given weights that allow it.
func (p *Pool) Native(n Numerics) bool { return n == Dot && p.set.products[Dot][BF16].pairs }
