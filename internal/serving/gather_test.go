package serving

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// loop makes calls of one row one after the other, each some time after the answer to the one before.
func loop(t *testing.T, h *Host, calls int, between time.Duration) {
	t.Helper()
	for range calls {
		r := h.Local(context.Background(), input(1, 0), pairs(1))[0]
		if r.Err != nil {
			t.Error(r.Err)
			return
		}
		time.Sleep(between)
	}
}

func TestPasses_WaitForCallersThatComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil)
		e := &fakeExpert{before: slowly(10*time.Millisecond, 0)}
		host(t, h, 1, e)
		before := e.passes.Load()
		const callers, calls = 8, 50
		var all sync.WaitGroup
		for i := range callers {
			all.Go(func() { loop(t, h, calls, time.Duration(i+1)*time.Millisecond/4) })
		}
		all.Wait()
		require.LessOrEqual(t, e.passes.Load()-before, int32(calls+10), "each pass has all callers' rows, but for the first ones")
	})
}

func TestPasses_DoNotLetALoneCallerWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil)
		host(t, h, 1, &fakeExpert{before: slowly(10*time.Millisecond, 0)})
		began := time.Now()
		loop(t, h, 20, time.Millisecond)
		require.Equal(t, 20*11*time.Millisecond, time.Since(began))
	})
}

// A model reads a text at once, and then goes on a token at a time.
func TestPasses_DoNotLetALoneCallerWaitAfterALargerCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil)
		host(t, h, 1, &fakeExpert{before: slowly(10*time.Millisecond, 0)})
		began := time.Now()
		for range 10 {
			require.NoError(t, h.Local(context.Background(), input(8, 0), pairs(1))[0].Err)
			require.NoError(t, h.Local(context.Background(), input(1, 0), pairs(1))[0].Err)
		}
		require.Equal(t, 20*10*time.Millisecond, time.Since(began))
	})
}

// Who is quick to come back stands behind its own pass, which has not ended yet. It is no second caller.
func TestPasses_CountNobodyTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(1))
		host(t, h, 1, &fakeExpert{before: slowly(10*time.Millisecond, 0)})
		h.mu.Lock()
		l := &h.experts[1].lanes[0]
		h.slots--
		l.running = true // the test makes the passes
		h.mu.Unlock()
		var caller sync.WaitGroup
		caller.Go(func() { loop(t, h, 2, 0) })
		synctest.Wait()
		for range 2 {
			b, ctx := h.form(l)
			h.pass(ctx, b)
			synctest.Wait() // it is back
			h.end(l)
			require.Equal(t, 1, l.crowd)
		}
		caller.Wait()
	})
}

func TestPasses_DoNotWaitWhileAnotherLaneDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(1))
		host(t, h, 1, &fakeExpert{before: slowly(10*time.Millisecond, 0)})
		host(t, h, 2, &fakeExpert{before: slowly(10*time.Millisecond, 0)})
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { loop(t, h, 1, 0) })
		}
		all.Wait() // a pass of one, and of three
		all.Go(func() { loop(t, h, 1, 0) })
		synctest.Wait() // it waits for the others
		began := time.Now()
		r := h.Local(context.Background(), input(1, 0), pairs(2))[0]
		require.NoError(t, r.Err)
		require.Equal(t, 20*time.Millisecond, time.Since(began), "a pass of each expert")
		all.Wait()
	})
}

// Whose wait it is that ends must not get mixed up: a caller would wait for ever.
func TestPasses_OfManyLanesWaitInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lanes, callers = 4, 16
		h := newHost(t, nil, withSlots(lanes))
		for i := range lanes {
			host(t, h, expert.ID(i+1), &fakeExpert{before: slowly(10*time.Millisecond, 0)})
		}
		var all sync.WaitGroup
		for c := range callers {
			all.Go(func() {
				dice := rand.New(rand.NewPCG(9, uint64(c)))
				for range 1000 {
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					r := h.Local(ctx, input(1, 0), pairs(expert.ID(dice.IntN(lanes)+1)))[0]
					cancel()
					if r.Err != nil {
						t.Error(r.Err)
						return
					}
					time.Sleep(time.Duration(dice.IntN(3)) * time.Millisecond) // many at the same moment
				}
			})
		}
		all.Wait()
		require.Nil(t, h.gathering)
	})
}
