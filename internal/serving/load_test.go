package serving

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Open arrivals in virtual time: rows that were answered within their deadline, and how long refusals took.
func TestGoodput_StaysAtFourTimesTheCapacity(t *testing.T) {
	const (
		perRow   = 10 * time.Millisecond
		base     = 20 * time.Millisecond
		deadline = time.Second
		length   = 60 * time.Second
	)
	// A pass of n rows takes 20 ms + n·10 ms: at most some 97 rows a second.
	goodput := func(t *testing.T, callsPerSecond int) (answered float64, slowestRefusal time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t, nil, withSlots(1))
			host(t, h, 1, &fakeExpert{before: slowly(base, perRow)})
			dice := rand.New(rand.NewPCG(1, uint64(callsPerSecond)))
			var mu sync.Mutex
			var calls sync.WaitGroup
			rows := 0
			for started := time.Now(); time.Since(started) < length; {
				time.Sleep(time.Duration(dice.ExpFloat64() * float64(time.Second) / float64(callsPerSecond)))
				n := 1 + dice.IntN(3)
				calls.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), deadline)
					defer cancel()
					began := time.Now()
					r := h.Local(ctx, input(n, 0), pairs(1))[0]
					mu.Lock()
					defer mu.Unlock()
					if r.Err == nil {
						rows += n
						return
					}
					slowestRefusal = max(slowestRefusal, time.Since(began))
				})
			}
			calls.Wait()
			answered = float64(rows) / length.Seconds()
		})
		return answered, slowestRefusal
	}
	full, _ := goodput(t, 45)        // about 90 rows a second
	much, refusal := goodput(t, 200) // about 400
	t.Logf("%.1f rows/s answered in time of 90 offered, %.1f of 400; slowest refusal after %v", full, much, refusal)
	require.Greater(t, full, 80.0)
	require.Greater(t, much, 0.95*full)
	require.Greater(t, much, 85.0)
}

// The same with a queue that is bounded by nothing but time, by callers of very different patience.
func TestGoodput_OfMixedDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(1))
		host(t, h, 1, &fakeExpert{before: slowly(5*time.Millisecond, 5*time.Millisecond)}) // at most 200 rows a second
		dice := rand.New(rand.NewPCG(2, 2))
		var mu sync.Mutex
		var calls sync.WaitGroup
		answered, late := 0, 0
		started := time.Now()
		for time.Since(started) < time.Minute {
			time.Sleep(time.Duration(dice.ExpFloat64() * float64(time.Second) / 800))
			deadline := []time.Duration{20 * time.Millisecond, 200 * time.Millisecond, 5 * time.Second}[dice.IntN(3)]
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				defer cancel()
				r := h.Local(ctx, input(1, 0), pairs(1))[0]
				mu.Lock()
				defer mu.Unlock()
				switch {
				case r.Err == nil:
					answered++
				case !errors.Is(r.Err, expert.ErrOverloaded):
					late++
				}
			})
		}
		calls.Wait()
		t.Logf("%d answered, %d late of 48000", answered, late)
		require.Greater(t, answered, 170*60)
		require.Less(t, late, answered/10)
	})
}
