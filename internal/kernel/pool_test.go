package kernel

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestForward_AllocatesNothing(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	rnd := rand.New(rand.NewPCG(21, 21))
	p := newModel(rnd, shape{hidden: 256, inner: 512, dtype: BF16, gated: true}).pack(t)
	for _, threads := range []int{1, 2} {
		pool := newTestPool(t, threads)
		x, y := randomRows(rnd, 20*256), make([]float32, 20*256)
		for n := range Numerics(numerics) {
			pass := func() { p.Forward(pool, y, x, 20, n) }
			pass()
			// A collection may empty the store of buffers once in a while.
			require.Less(t, testing.AllocsPerRun(100, pass), 0.5, "%d threads, %v", threads, n)
		}
	}
}

// Many callers at once, more than there are threads, get what each would get alone.
func TestPool_ConcurrentCallsShareIt(t *testing.T) {
	rnd := rand.New(rand.NewPCG(22, 22))
	pool, alone := newTestPool(t, 3), newTestPool(t, 1)
	var wg sync.WaitGroup
	for range 8 {
		p := newModel(rnd, shape{hidden: 160, inner: 288, dtype: BF16, gated: true}).pack(t)
		rows := 1 + rnd.IntN(40)
		x, want := randomRows(rnd, rows*160), make([]float32, rows*160)
		p.Forward(alone, want, x, rows, Exact)
		wg.Go(func() {
			y := make([]float32, len(x))
			for range 30 {
				clear(y)
				p.Forward(pool, y, x, rows, Exact)
				requireSameBits(t, want, y, "%d rows", rows)
			}
		})
	}
	wg.Wait()
	require.Zero(t, pool.active.Load())
	require.Empty(t, pool.open)
}

// However many lanes and tasks there are, and whoever begins with which lane, each task is taken once.
func TestSchedule_HandsOutEachTaskOnce(t *testing.T) {
	for lanes := 1; lanes <= 5; lanes++ {
		pool := newTestPool(t, lanes)
		for tasks := range 23 {
			c := pool.newCall()
			c.schedule.reset([phases]int{tasks, tasks, tasks})
			taken := make([]int, tasks)
			for turn := 0; c.left(phaseUp); turn++ { // participants take turns, some more often than others
				for i := range lanes {
					if task, ok := c.take(phaseUp, (turn*turn+i)%lanes); ok {
						taken[task]++
						break
					}
				}
			}
			for task, times := range taken {
				require.Equal(t, 1, times, "task %d of %d in %d lanes", task, tasks, lanes)
			}
		}
	}
}

// A worker waits for another call for a moment only: then it sleeps, and an idle pool costs nothing.
func TestPool_IdleWorkersSleep(t *testing.T) {
	rnd := rand.New(rand.NewPCG(25, 25))
	p := newModel(rnd, shape{hidden: 512, inner: 512, dtype: BF16, gated: true}).pack(t)
	pool := newTestPool(t, 3)
	x, y := randomRows(rnd, 8*512), make([]float32, 8*512)
	for range 20 {
		p.Forward(pool, y, x, 8, Exact)
	}
	awake := func() bool { return pool.lingering.Load() > 0 || pool.active.Load() > 0 }
	for deadline := time.Now().Add(10 * time.Second); awake() && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	require.False(t, awake())
}

func TestPool_CloseEndsItsWorkers(t *testing.T) {
	workers := ofThisGoroutine(t)
	pool := NewPool(5)
	require.Equal(t, 5, pool.threads)
	require.Equal(t, 4, workers())
	pool.Close()
	pool.Close()
	for deadline := time.Now().Add(5 * time.Second); workers() > 0 && time.Now().Before(deadline); {
		runtime.Gosched() // Close waited for their work to end; the goroutines themselves are gone a moment later
	}
	require.Zero(t, workers())

	rnd := rand.New(rand.NewPCG(23, 23))
	p := newModel(rnd, shape{hidden: 256, inner: 256, dtype: BF16, gated: true}).pack(t)
	x, y := randomRows(rnd, 30*256), make([]float32, 30*256)
	p.Forward(pool, y, x, 30, Exact)
	require.NotZero(t, y[0], "a call after Close is computed by its caller alone")
}

// ofThisGoroutine counts the goroutines that the calling one has begun and that are there. Those of other tests may still be on their way out.
func ofThisGoroutine(t *testing.T) func() int {
	t.Helper()
	stacks := func(all bool) string {
		buf := make([]byte, 1<<20)
		return string(buf[:runtime.Stack(buf, all)])
	}
	var id int
	_, err := fmt.Sscanf(stacks(false), "goroutine %d", &id)
	require.NoError(t, err)
	begun := fmt.Sprintf(" in goroutine %d\n", id)
	return func() int { return strings.Count(stacks(true), begun) }
}

func TestPool_ResolvesFast(t *testing.T) {
	for _, path := range Paths() {
		pool := newTestPoolOf(t, 1, path)
		require.Equal(t, path, pool.set.path)
		require.Equal(t, Tile, pool.Resolve(Tile))
		want := Exact
		if path == PathBF16 {
			want = Dot
		}
		require.Equal(t, want, pool.Resolve(Fast))
	}
	require.Equal(t, runtime.GOMAXPROCS(0), newTestPool(t, 0).threads)
	require.Panics(t, func() { newPool(1, PathBF16+1) })
}

func TestPackedFFN_OutlivesItsSource(t *testing.T) {
	rnd := rand.New(rand.NewPCG(24, 24))
	m := newModel(rnd, shape{hidden: 64, inner: 64, dtype: MXFP4, gated: true, bias: true, activation: SwiGLUClamped})
	p := m.pack(t)
	pool := newTestPool(t, 1)
	x, y, again := randomRows(rnd, 64), make([]float32, 64), make([]float32, 64)
	p.Forward(pool, y, x, 1, Exact)
	for _, w := range []*Weights{&m.ffn.Gate, &m.ffn.Up, &m.ffn.Down} {
		clear(w.Data)
		clear(w.Exponents)
	}
	clear(m.ffn.GateBias)
	clear(m.ffn.UpBias)
	clear(m.ffn.DownBias)
	p.Forward(pool, again, x, 1, Exact)
	require.Equal(t, bitsOf(y), bitsOf(again))
}
