package dispatch

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// busy computes one call at a time, 10 ms each, and lets ten wait; it refuses what comes beyond, and does not begin what came too late.
func busy(done *atomic.Int64) behaviour {
	const takes, most = 10 * time.Millisecond, 10
	var mu sync.Mutex
	waiting := 0
	worker := make(chan struct{}, 1)
	return func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
		mu.Lock()
		if waiting >= most {
			mu.Unlock()
			return refuses(&expert.OverloadedError{RetryAfter: takes * most / 2})(ctx, x, pairs)
		}
		waiting++
		mu.Unlock()
		defer func() {
			mu.Lock()
			waiting--
			mu.Unlock()
		}()
		select {
		case worker <- struct{}{}:
		case <-ctx.Done():
			return nil, endOf(ctx)
		}
		defer func() { <-worker }()
		time.Sleep(takes)
		done.Add(1)
		return identity(ctx, x, pairs)
	}
}

// TestOverload_GoodputStaysAndNobodyIsBanned: at four times what two hosts can do together they go on doing what they can, for calls
// that still want it, and evenly; the rest hears that they are full.
func TestOverload_GoodputStaysAndNobodyIsBanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		var done [2]atomic.Int64
		w.provide(42, busy(&done[0]), "a")
		w.provide(42, busy(&done[1]), "b")
		for _, p := range []peer.ID{"a", "b"} {
			w.table.Connected(p, time.Now())
		}
		const lasts, capacity = 10, 200 // seconds, calls a second of both
		var answered, full, other atomic.Int64
		var calls sync.WaitGroup
		for range lasts * capacity * 4 {
			calls.Go(func() {
				answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}, Timeout: 500 * time.Millisecond})
				switch wrong := answers[0].Err; {
				case err == nil && wrong == nil:
					answered.Add(1)
				case wireStatus(wrong) == "OVERLOADED":
					full.Add(1)
				default:
					other.Add(1)
				}
			})
			time.Sleep(time.Second / capacity / 4)
		}
		calls.Wait()
		t.Logf("%d answered, %d refused, %d otherwise; computed %d and %d", answered.Load(), full.Load(), other.Load(), done[0].Load(), done[1].Load())
		require.Greater(t, answered.Load(), int64(lasts*capacity*95/100))
		require.Less(t, done[0].Load()+done[1].Load(), answered.Load()*105/100, "hardly anything is computed in vain")
		require.InEpsilon(t, done[0].Load(), done[1].Load(), 0.1)
		require.Less(t, other.Load(), int64(lasts*capacity*4/20), "let in so late that the deadline came first")
		for _, p := range w.table.Peers(time.Now()) {
			require.Equal(t, "closed", p.Breaker.String())
			require.InDelta(t, 1, p.Success, 0.05)
		}
		requireNothingUnderWay(t, w)
	})
}

func TestOverload_ABatchLargerThanTheQueueOfThisNodeIsComputedPieceByPiece(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes, room, most = 50 * time.Millisecond, 3, 20
		w, d := newWorld(t, DefaultConfig())
		pairs := make([]expert.Pair, most)
		for i := range pairs {
			pairs[i].Expert = expert.ID(i)
			w.host(pairs[i].Expert, expert.StateReady)
		}
		w.local = func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			results, err := identity(ctx, x, pairs)
			for i := room; i < len(results); i++ {
				results[i] = expert.Result{Err: &expert.OverloadedError{RetryAfter: time.Minute}}
			}
			time.Sleep(takes)
			return results, err
		}
		began := time.Now()
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: pairs})
		require.NoError(t, err)
		for i := range answers {
			require.NoError(t, answers[i].Err)
			require.Equal(t, WhereLocal, answers[i].Where)
		}
		require.Equal(t, (most+room-1)/room*takes, time.Since(began))

		// Whoever else hosts one takes it, rather than that it waits.
		w.provide(pairs[most-1].Expert, identity, "peer")
		w.connect("peer")
		answers, err = d.Call(t.Context(), Request{X: rows(1), Pairs: pairs})
		require.NoError(t, err)
		for i := range answers {
			require.NoError(t, answers[i].Err)
		}
		require.Equal(t, WhereRemote, answers[most-1].Where)

		// Others fill it: nobody is computed for, and it says so.
		w.do(func() { w.local = refuses(&expert.OverloadedError{RetryAfter: takes}) })
		answers, err = d.Call(t.Context(), Request{X: rows(1), Pairs: pairs[:2]})
		require.NoError(t, err)
		for i := range answers {
			require.ErrorIs(t, answers[i].Err, expert.ErrOverloaded)
			require.Len(t, answers[i].Attempts, 1)
		}
	})
}
