package dispatch

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// learn makes calls until the usual time of expert-42 is known.
func learn(t *testing.T, w *world, d *Dispatcher) {
	t.Helper()
	for range 25 {
		require.NoError(t, one(t, d, 42).Err)
	}
	_, known := w.table.Slow(42, 1)
	require.True(t, known)
}

// quiet is a configuration without spot checks.
func quiet() Config {
	cfg := DefaultConfig()
	cfg.CheckShare = 0
	return cfg
}

func TestHedge_SecondHostIsAskedWhenTheFirstIsSlowerThanUsual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		usual := after(10*time.Millisecond, identity)
		w.provide(42, usual, "fast")
		learn(t, w, d)
		var cancelled time.Time
		w.provide(42, func(ctx context.Context, _ *tensor.Dense, _ []expert.Pair) ([]expert.Result, error) {
			<-ctx.Done()
			cancelled = time.Now()
			return nil, endOf(ctx)
		}, "slow")
		w.connect("fast", "slow")
		w.do(func() { w.asked = nil })
		var took time.Duration
		for range 40 { // until "slow" is drawn first
			began := time.Now()
			a := one(t, d, 42)
			require.NoError(t, a.Err)
			require.Equal(t, "fast", string(a.Peer))
			took = time.Since(began)
			if a.Attempts[0].Err != nil {
				require.ErrorIs(t, a.Attempts[0].Err, expert.ErrCancelled)
				require.Len(t, a.Attempts, 2)
				require.NoError(t, a.Attempts[1].Err)
				require.Equal(t, time.Now(), cancelled, "the loser is cancelled when the answer is there, and the call returns at once")
				break
			}
		}
		require.Greater(t, took, 19*time.Millisecond)
		require.Less(t, took, 25*time.Millisecond, "10 ms until it is slow, 10 ms for the second")
		requireNothingUnderWay(t, w)
		slow, _ := w.table.Peer("slow", time.Now())
		require.InDelta(t, 1, slow.Success, 1e-9, "who was merely slower did not fail")
	})
}

func TestHedge_FirstAnswerWinsWhicheverItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(10*time.Millisecond, identity), "a")
		learn(t, w, d)
		w.provide(42, after(13*time.Millisecond, identity), "b")
		w.provide(42, after(time.Hour, identity), "c")
		for range 30 {
			a := one(t, d, 42)
			require.NoError(t, a.Err)
			require.NotEqual(t, "c", string(a.Peer))
		}
		requireNothingUnderWay(t, w)
	})
}

func TestHedge_HostThatGotSlowIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(10*time.Millisecond, identity), "a", "b")
		learn(t, w, d)
		w.do(func() { w.peers["a"] = after(time.Second, identity); w.asked = nil })
		for range 200 {
			require.NoError(t, one(t, d, 42).Err)
		}
		first := 0
		for _, line := range w.asked {
			if line == "a: expert-42" {
				first++
			}
		}
		require.Less(t, first, 20, "its answers never come, but that they do not is learned")
	})
}

func TestHedge_WithoutHistoryItIsCautious(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(90*time.Millisecond, identity), "a", "b")
		require.Len(t, one(t, d, 42).Attempts, 1)
		w.provide(43, after(110*time.Millisecond, identity), "a", "b")
		require.Len(t, one(t, d, 43).Attempts, 2)
	})
}

func TestHedge_BudgetEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(110*time.Millisecond, identity), "a", "b")
		hedges := 0
		calls := 0
		for id := expert.ID(100); id < 300; id++ { // each without history
			w.provide(id, after(110*time.Millisecond, identity), "a", "b")
			hedges += len(one(t, d, id).Attempts) - 1
			calls++
		}
		require.LessOrEqual(t, hedges, 16+calls/20+1)
		require.GreaterOrEqual(t, hedges, 16+calls/20-2)
	})
}

func TestHedge_NotWhenSwitchedOffNorWhenHostsAreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quiet()
		cfg.Hedge = false
		w, d := newWorld(t, cfg)
		w.provide(42, after(200*time.Millisecond, identity), "a", "b")
		require.Len(t, one(t, d, 42).Attempts, 1)

		w, d = newWorld(t, quiet())
		w.provide(42, refuses(&expert.OverloadedError{RetryAfter: time.Minute}), "full")
		w.table.RemoveProvider(42, "full")
		w.provide(42, after(200*time.Millisecond, identity), "a", "b")
		w.provide(42, w.peers["full"], "full")
		for range 20 {
			a := one(t, d, 42)
			require.NoError(t, a.Err)
			if a.Attempts[0].Err != nil {
				require.ErrorIs(t, a.Attempts[0].Err, expert.ErrOverloaded)
				require.Len(t, a.Attempts, 2, "no hedge after a host was full: %v", tried(a))
				return
			}
		}
		t.Fatal("the full host was never asked")
	})
}

func TestHedge_OnlyTheMissingPairsOfALayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		for id := expert.ID(1); id <= 2; id++ {
			w.provide(id, after(10*time.Millisecond, identity), "fast")
		}
		pairs := []expert.Pair{{Expert: 1}, {Expert: 2}, {Expert: 3}}
		w.provide(3, after(10*time.Millisecond, identity), "third")
		for range 25 {
			_, err := d.Call(t.Context(), Request{X: rows(1), Pairs: pairs})
			require.NoError(t, err)
		}
		// Now the only host of 3 is slow, and there is another.
		w.do(func() { w.peers["third"] = after(time.Second, identity) })
		w.provide(3, after(10*time.Millisecond, identity), "fourth")
		w.table.Disconnected("fourth", time.Now())
		w.table.Connected("fourth", time.Now()) // it starts slowly, so that "third" is asked first
		for range 10 {
			w.do(func() { w.asked = nil })
			began := time.Now()
			answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: pairs})
			require.NoError(t, err)
			for _, a := range answers {
				require.NoError(t, a.Err)
			}
			require.Less(t, time.Since(began), 30*time.Millisecond)
			if len(w.asked) == 3 {
				require.Equal(t, "fourth: expert-3", w.asked[2])
				require.Len(t, answers[0].Attempts, 1)
				require.Len(t, answers[2].Attempts, 2)
				return
			}
		}
		t.Fatal("no hedge was made")
	})
}

func TestPing_FrozenHostIsFoundOutAndAnotherAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		d.budget.spent.Store(hedgesFull) // no hedges: it is a retry
		w.provide(42, after(time.Millisecond, identity), "a", "b")
		w.table.Connected("a", time.Now())
		w.table.Connected("b", time.Now())
		learn(t, w, d)
		freeze := func(p peer.ID) {
			w.do(func() {
				w.peers[p] = frozen
				w.pings[p] = silent
			})
		}
		freeze("a")
		d.budget.spent.Store(hedgesFull)
		slowest, failed := time.Duration(0), 0
		for range 50 {
			d.budget.spent.Store(hedgesFull)
			began := time.Now()
			a := one(t, d, 42)
			if a.Err != nil {
				failed++
			}
			if len(a.Attempts) > 1 {
				require.ErrorIs(t, a.Attempts[0].Err, expert.ErrTimeout)
				require.ErrorContains(t, a.Attempts[0].Err, "missed a ping")
			}
			slowest = max(slowest, time.Since(began))
		}
		require.Zero(t, failed)
		require.Greater(t, slowest, 51*time.Millisecond, "what a call usually takes, and 50 ms for the ping")
		require.Less(t, slowest, 55*time.Millisecond)
		a, _ := w.table.Peer("a", time.Now())
		require.Equal(t, "unknown", a.Verdict.String())
		require.Equal(t, "open", a.Breaker.String())

		// It thaws: its next ping brings it back.
		w.do(func() {
			w.peers["a"] = after(time.Millisecond, identity)
			delete(w.pings, "a")
		})
		time.Sleep(6 * time.Second)
		a, _ = w.table.Peer("a", time.Now())
		require.Equal(t, "alive", a.Verdict.String())
		w.do(func() { w.asked = nil })
		for range 20 {
			require.NoError(t, one(t, d, 42).Err)
			time.Sleep(200 * time.Millisecond)
		}
		require.Contains(t, w.asked, "a: expert-42")
		requireNothingUnderWay(t, w)
	})
}

func TestPing_SilentHostThatAnswersPingsIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(2*time.Second, identity), "a")
		w.table.Connected("a", time.Now())
		pinged := 0
		w.pings["a"] = func(context.Context) error { pinged++; return nil }
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Len(t, a.Attempts, 1)
		require.InDelta(t, 6, pinged, 1, "at 50, 150, 350, 750, 1250, 1750 ms")

		// It freezes in the middle: the next ping finds that out.
		w.do(func() { w.peers["a"] = frozen })
		w.provide(42, after(time.Millisecond, identity), "b")
		w.table.Disconnected("b", time.Now())
		w.table.Connected("b", time.Now()) // it starts slowly, so that "a" is asked first
		began := time.Now()
		w.pings["a"] = func(ctx context.Context) error {
			if time.Since(began) < 300*time.Millisecond {
				return nil
			}
			<-ctx.Done()
			return endOf(ctx)
		}
		d.budget.spent.Store(hedgesFull)
		a = one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, "b", string(a.Peer))
	})
}

func TestPing_SoleHostFrozenTurnsToTheFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, frozen, "a")
		w.table.Connected("a", time.Now())
		w.do(func() { w.pings["a"] = silent })
		w.provide(43, identity, "b")
		w.table.SetFallbacks(42, []expert.ID{43})
		began := time.Now()
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, WhereFallback, a.Where)
		require.Less(t, time.Since(began), 300*time.Millisecond)
		synctest.Wait()
		requireNothingUnderWay(t, w)
	})
}

func TestPing_HostsThatAllMissTheirPingsAreAskedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(300*time.Millisecond, identity), "a", "b")
		for _, p := range []peer.ID{"a", "b"} { // so busy that a ping has to wait
			w.table.Connected(p, time.Now())
			w.do(func() { w.pings[p] = silent })
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 20 {
					if a := one(t, d, 42); a.Err != nil {
						t.Error(a.Err)
					}
				}
			})
		}
		all.Wait()
		requireNothingUnderWay(t, w)
	})
}

func TestFind_HostsThatCameSinceAreFoundBehindCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.announce(42, after(time.Millisecond, identity), "a")
		require.NoError(t, one(t, d, 42).Err)
		w.announce(42, after(time.Millisecond, identity), "b")
		for range 100 {
			require.Equal(t, "a", string(one(t, d, 42).Peer))
		}
		time.Sleep(10 * time.Minute)
		w.do(func() { w.lag = time.Minute }) // nobody waits for it
		began := time.Now()
		require.NoError(t, one(t, d, 42).Err)
		require.Less(t, time.Since(began), 10*time.Millisecond)
		w.do(func() { w.lag = time.Millisecond })
		time.Sleep(2 * time.Minute) // that look-up took too long and failed
		require.NoError(t, one(t, d, 42).Err)
		time.Sleep(time.Second)
		var peers []peer.ID
		for _, p := range w.table.Providers(42, time.Now()) {
			peers = append(peers, p.Peer)
		}
		require.Equal(t, []peer.ID{"a", "b"}, peers)
	})
}

func TestPing_LateAnswerOfAPeerThatMissedItsPingIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(3*time.Second, identity), "a")
		w.table.Connected("a", time.Now())
		w.do(func() { w.pings["a"] = silent })
		a := one(t, d, 42)
		require.NoError(t, a.Err, "an answer in time is never thrown away")
		require.InDelta(t, 3, a.Attempts[0].Took.Seconds(), 0.01)
		requireNothingUnderWay(t, w)
	})
}

func TestPing_WhoIsDialledForLongIsNotWaitedForAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quiet()
		cfg.Hedge = false
		w, d := newWorld(t, cfg)
		w.provide(42, frozen, "a") // its dial never ends
		w.do(func() { w.dht[42] = []peer.ID{"b"} })
		w.do(func() { w.peers["b"] = after(10*time.Millisecond, identity) })
		began := time.Now()
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, "b", string(a.Peer))
		require.InDelta(t, dialPatience.Seconds(), time.Since(began).Seconds(), 0.05)
		require.ErrorIs(t, a.Attempts[0].Err, expert.ErrTimeout)

		// A dial that took longer and came to its end is no failure.
		w.provide(43, after(600*time.Millisecond, identity), "c")
		a = one(t, d, 43)
		require.NoError(t, a.Err)
		require.Equal(t, "c", string(a.Peer))
		requireNothingUnderWay(t, w)
	})
}

func TestShare_HalfOfWhatIsLeftThenAnotherIsAskedAndBothCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := quiet()
		cfg.Hedge = false
		w, d := newWorld(t, cfg)
		w.table.Connected("a", time.Now()) // it answers pings
		w.table.Connected("c", time.Now())
		w.provide(42, frozen, "a")
		w.do(func() { w.dht[42] = []peer.ID{"b"} })
		w.do(func() { w.peers["b"] = after(time.Second, identity) })
		began := time.Now()
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, "b", string(a.Peer))
		require.InDelta(t, 3.5, time.Since(began).Seconds(), 0.1, "2.5 s of 5 s are a's share")
		require.ErrorIs(t, a.Attempts[0].Err, expert.ErrTimeout)

		// The first answers after its share, before the second.
		w.provide(43, after(3*time.Second, identity), "c")
		w.do(func() { w.dht[43] = []peer.ID{"a"} })
		a = one(t, d, 43)
		require.NoError(t, a.Err)
		require.Equal(t, "c", string(a.Peer))
		requireNothingUnderWay(t, w)
	})
}

func TestDeadline_HurriedCallsAreNobodysFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(10*time.Millisecond, identity), "a")
		learn(t, w, d)
		for range 20 {
			answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}, Timeout: time.Millisecond})
			require.NoError(t, err)
			require.ErrorIs(t, answers[0].Err, expert.ErrDeadlineExceeded)
		}
		a, _ := w.table.Peer("a", time.Now())
		require.Equal(t, "closed", a.Breaker.String())
		require.NoError(t, one(t, d, 42).Err)
	})
}

func TestBudget_StartsFullAndEarnsATwentieth(t *testing.T) {
	var b budget
	spend := func() (n int) {
		for b.spend() {
			n++
		}
		return n
	}
	require.Equal(t, 16, spend())
	for range 19 {
		b.earn()
	}
	require.Zero(t, spend())
	b.earn()
	require.Equal(t, 1, spend())
	for range 100_000 {
		b.earn()
	}
	require.Equal(t, 16, spend(), "it does not grow beyond")
}

// Eight callers meet a host that froze: what each of them would find out by a hedge of its own is found out by a few.
func TestHedge_FrozenHostCostsFewOfThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(2*time.Millisecond, identity), "a", "b", "c")
		for _, p := range []peer.ID{"a", "b", "c"} {
			w.table.Connected(p, time.Now())
		}
		keepCalling(t, w, d, 8, time.Second)
		w.do(func() {
			w.peers["a"] = frozen
			w.pings["a"] = silent
		})
		before := d.Counts().Hedges
		took, _ := keepCalling(t, w, d, 8, time.Second)
		require.Less(t, took[len(took)-1], 10*time.Millisecond)
		require.LessOrEqual(t, d.Counts().Hedges-before, int64(8), "those that were under way when the first of them was cut off")
		a, _ := w.table.Peer("a", time.Now())
		require.Equal(t, "unknown", a.Verdict.String(), "its ping was missed, though no call waited for that")
	})
}
