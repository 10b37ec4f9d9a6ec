package dispatch

import (
	"context"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

func TestCall_LocalExpertIsAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.host(42, expert.StateReady)
		w.provide(42, identity, "peer-a")
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, WhereLocal, a.Where)
		require.Empty(t, a.Peer)
		require.Equal(t, digestX, a.Digest)
		require.Equal(t, "exact-1", a.Numerics)
		require.Empty(t, w.asked)
	})
}

func TestCall_LocalExpertThatIsNotReadyOrFullSendsTheCallElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(42, identity, "peer-a")
		w.host(42, expert.StateLoading)
		require.Equal(t, WhereRemote, one(t, d, 42).Where)
		w.host(42, expert.StateReady)
		w.local = refuses(&expert.OverloadedError{RetryAfter: time.Second})
		a := one(t, d, 42)
		require.Equal(t, WhereRemote, a.Where)
		require.Len(t, a.Attempts, 2)
		require.ErrorIs(t, a.Attempts[0].Err, expert.ErrOverloaded)
		requireNothingUnderWay(t, w)
	})
}

func TestCall_TriesTheNextProviderWhateverTheFirstDid(t *testing.T) {
	for name, b := range map[string]behaviour{
		"dial failed":   breaks(expert.ErrDialFailed),
		"reset":         breaks(expert.ErrReset),
		"broken frame":  breaks(expert.ErrBadReply),
		"internal":      refuses(expert.ErrInternal),
		"not ready":     refuses(expert.ErrNotReady),
		"not found":     refuses(expert.ErrNotFound),
		"too large":     refuses(expert.ErrTooLarge),
		"unimplemented": refuses(expert.ErrUnimplemented),
		"deadline":      refuses(expert.ErrDeadlineExceeded),
		"overloaded":    refuses(&expert.OverloadedError{RetryAfter: time.Second}),
		"other weights": refuses(expert.ErrDigestMismatch),
		"no results":    func(context.Context, *tensor.Dense, []expert.Pair) ([]expert.Result, error) { return nil, nil },
		"no output": func(context.Context, *tensor.Dense, []expert.Pair) ([]expert.Result, error) {
			return make([]expert.Result, 1), nil
		},
		"wrong shape": func(context.Context, *tensor.Dense, []expert.Pair) ([]expert.Result, error) {
			return []expert.Result{{Output: rows(2), Digest: digestX}}, nil
		},
		"wrong width": func(context.Context, *tensor.Dense, []expert.Pair) ([]expert.Result, error) {
			return []expert.Result{{Output: expert.NewRows(make([]float32, 5), 5), Digest: digestX}}, nil
		},
		"wrong dtype": func(context.Context, *tensor.Dense, []expert.Pair) ([]expert.Result, error) {
			y := tensor.New(tensor.WithShape(1, hidden), tensor.WithBacking(make([]float64, hidden)))
			return []expert.Result{{Output: y, Digest: digestX}}, nil
		},
		"wrong digest": func(context.Context, *tensor.Dense, []expert.Pair) ([]expert.Result, error) {
			return []expert.Result{{Output: rows(1), Digest: digestY}}, nil
		},
		"NaN": func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			return answerWith(x, pairs, func(float32) float32 { return float32(math.NaN()) }), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, d := newWorld(t, DefaultConfig())
				w.provide(42, identity, "good")
				require.NoError(t, one(t, d, 42).Err) // from now on the digest is known
				w.provide(42, b, "bad")
				w.table.RemoveProvider(42, "good")
				w.do(func() { w.dht[42] = append(w.dht[42], "good") }) // so that "bad" is asked first
				a := one(t, d, 42)
				require.NoError(t, a.Err)
				require.Equal(t, "good", string(a.Peer), tried(a))
				require.Equal(t, rows(1).Float32s(), a.Output.Float32s())
				require.GreaterOrEqual(t, len(a.Attempts), 2)
				require.Error(t, a.Attempts[0].Err)
				require.NoError(t, a.Attempts[len(a.Attempts)-1].Err)
				requireNothingUnderWay(t, w)
			})
		})
	}
}

func TestCall_LooksInTheDHTWhenNobodyIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.announce(42, identity, "peer-a")
		require.NoError(t, one(t, d, 42).Err)
		require.NoError(t, one(t, d, 42).Err)
		require.Equal(t, 1, w.walks, "the second call knows")
	})
}

func TestCall_NotFoundOnlyAfterASecondOfWalks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		began := time.Now()
		a := one(t, d, 42)
		require.ErrorIs(t, a.Err, expert.ErrNotFound)
		require.ErrorContains(t, a.Err, "expert-42")
		require.ErrorContains(t, a.Err, "walks of the DHT")
		require.InDelta(t, 1.0, time.Since(began).Seconds(), 0.25)
		require.Greater(t, w.walks, 3)
		require.Less(t, w.walks, 15)

		// Within a shorter deadline it is the deadline that ends it.
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}, Timeout: 100 * time.Millisecond})
		require.NoError(t, err)
		require.Error(t, answers[0].Err)

		// It is announced while the call looks.
		go func() {
			time.Sleep(300 * time.Millisecond)
			w.announce(42, identity, "peer-a")
		}()
		require.NoError(t, one(t, d, 42).Err)
	})
}

func TestCall_FallbacksInOrderAndTheAnswerSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.table.SetFallbacks(42, []expert.ID{43, 44, 45})
		w.table.SetFallbacks(43, []expert.ID{42}) // not followed
		w.provide(42, breaks(expert.ErrDialFailed), "gone")
		w.provide(43, refuses(expert.ErrInternal), "failing")
		w.provide(44, identity, "good")
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, WhereFallback, a.Where)
		require.Equal(t, expert.ID(44), a.Expert)
		require.Equal(t, "good", string(a.Peer))
		require.Equal(t, []string{
			"expert-42 gone: dial failed", "expert-43 failing: internal error", "expert-44 good: <nil>",
		}, tried(a))
		synctest.Wait()
		requireNothingUnderWay(t, w)
	})
}

func TestCall_FallbacksDoNotWaitForALookUpThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.table.SetFallbacks(42, []expert.ID{43})
		w.provide(43, identity, "good")
		require.NoError(t, one(t, d, 43).Err)
		time.Sleep(time.Second) // the fallback was looked up behind that, and the DHT knows nobody: no reason not to look for the expert
		w.do(func() { w.lag = 4 * time.Second })
		began := time.Now()
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, WhereFallback, a.Where)
		require.Less(t, time.Since(began), findFor+time.Second/4)

		// The look-up goes on behind; once it is over nobody waits any more.
		time.Sleep(walkTimeout)
		began = time.Now()
		a = one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, WhereFallback, a.Where)
		require.Less(t, time.Since(began), time.Second/4)
	})
}

func TestCall_HasAllTheTimeThatItsContextHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(42, after(20*time.Second, identity), "slow")
		w.connect("slow")
		for given, want := range map[time.Duration]error{time.Minute: nil, time.Second: expert.ErrDeadlineExceeded, 0: expert.ErrDeadlineExceeded} {
			ctx, cancel := t.Context(), func() {}
			if given > 0 {
				ctx, cancel = context.WithTimeout(ctx, given)
			}
			began := time.Now()
			answers, err := d.Call(ctx, Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}})
			cancel()
			require.NoError(t, err)
			require.ErrorIs(t, answers[0].Err, want, given)
			if given == 0 {
				require.Equal(t, DefaultConfig().Timeout, time.Since(began))
			}
		}
	})
}

func TestCall_FallbackOnThisNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.table.SetFallbacks(42, []expert.ID{43})
		w.host(43, expert.StateReady)
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Equal(t, WhereFallback, a.Where)
		require.Equal(t, expert.ID(43), a.Expert)
		require.Empty(t, a.Peer)
	})
}

func TestCall_NoFallbackForPinnedWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.table.SetFallbacks(42, []expert.ID{43})
		w.host(43, expert.StateReady)
		w.provide(42, refuses(expert.ErrDigestMismatch), "peer-a", "peer-b")
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42, Digest: digestY}}})
		require.NoError(t, err)
		require.ErrorIs(t, answers[0].Err, expert.ErrDigestMismatch)
		require.Len(t, answers[0].Attempts, 2, "each says it once: %v", tried(answers[0]))
	})
}

func TestCall_PinnedWeightsOtherThanThisNodesAreAMismatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.host(42, expert.StateReady)
		pinned := Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42, Digest: digestY}}}
		began := time.Now()
		answers, err := d.Call(t.Context(), pinned)
		require.NoError(t, err)
		require.ErrorIs(t, answers[0].Err, expert.ErrDigestMismatch)
		require.ErrorContains(t, answers[0].Err, digestX.String())
		require.Less(t, time.Since(began), huntFor, "a complete walk is enough: there is a host, and it has said what it has")
		require.Equal(t, 1, w.walks)

		w.announce(42, func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			results, err := identity(ctx, x, pairs)
			for i := range results {
				results[i].Digest = digestY
			}
			return results, err
		}, "peer-a")
		answers, err = d.Call(t.Context(), pinned)
		require.NoError(t, err)
		require.NoError(t, answers[0].Err)
		require.Equal(t, digestY, answers[0].Digest)
	})
}

func TestCall_ExpertThatThisNodeIsToHostIsNotReadyRatherThanNotFound(t *testing.T) {
	for says, here := range map[string]expert.Hosted{ // of what is not loaded nothing else is known
		"loading":   {ID: 42, State: expert.StateLoading},
		"draining":  {ID: 42, State: expert.StateDraining},
		"cut short": {ID: 42, State: expert.StateFailed, Problem: "cut short"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, d := newWorld(t, DefaultConfig())
			w.here[42] = here
			err := one(t, d, 42).Err
			require.ErrorIs(t, err, expert.ErrNotReady)
			require.ErrorContains(t, err, says)

			w.announce(42, identity, "peer-a")
			require.NoError(t, one(t, d, 42).Err)
		})
	}
}

func TestCall_WhatThisNodeCannotDoTakesOneWalkWhenNobodyElseIsThere(t *testing.T) {
	for _, cannot := range []error{expert.ErrTooLarge, expert.ErrUnimplemented} {
		synctest.Test(t, func(t *testing.T) {
			w, d := newWorld(t, DefaultConfig())
			w.host(42, expert.StateReady)
			w.local = refuses(cannot)
			began := time.Now()
			require.ErrorIs(t, one(t, d, 42).Err, cannot)
			require.Less(t, time.Since(began), huntFor)
			require.LessOrEqual(t, w.walks, 2)

			w.announce(42, identity, "peer-a") // it has other limits
			require.NoError(t, one(t, d, 42).Err)
		})
	}
}

func TestCall_DeadlineThatIsOverIsNotGivenAsATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.announce(42, identity, "peer-a")
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		answers, err := d.Call(ctx, Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}})
		require.NoError(t, err)
		require.ErrorIs(t, answers[0].Err, expert.ErrDeadlineExceeded)
		require.NotContains(t, answers[0].Err.Error(), "within -")
	})
}

func TestCall_WhenNoFallbackAnswersTheReasonIsTheExpertsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.table.SetFallbacks(42, []expert.ID{43})
		w.provide(42, breaks(expert.ErrReset), "peer-a")
		w.provide(43, refuses(expert.ErrInternal), "peer-b")
		a := one(t, d, 42)
		require.ErrorIs(t, a.Err, expert.ErrReset)
		var failed *expert.CallError
		require.ErrorAs(t, a.Err, &failed)
		require.Equal(t, expert.ID(42), failed.Expert)
		require.Equal(t, a.Attempts, failed.Attempts)
		require.GreaterOrEqual(t, len(failed.Attempts), 2)
	})
}

func TestCall_RetriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(42, refuses(expert.ErrInternal), "a", "b", "c", "d", "e", "f")
		a := one(t, d, 42)
		require.ErrorIs(t, a.Err, expert.ErrRetriesExhausted)
		require.ErrorIs(t, a.Err, expert.ErrInternal)
		require.Len(t, a.Attempts, 4)
		require.Len(t, w.asked, 4)
	})
}

func TestCall_OneDeadlineOverAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.do(func() { w.lag = 30 * time.Second })
		began := time.Now()
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}, Timeout: 200 * time.Millisecond})
		require.NoError(t, err)
		require.ErrorIs(t, answers[0].Err, expert.ErrDeadlineExceeded)
		require.Equal(t, 200*time.Millisecond, time.Since(began))

		// The caller's own deadline holds where it is earlier, and so does its cancelling.
		w.provide(42, frozen, "peer-a")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		answers, err = d.Call(ctx, Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}})
		require.NoError(t, err)
		require.ErrorIs(t, answers[0].Err, expert.ErrDeadlineExceeded)

		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		answers, err = d.Call(ctx, Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}})
		require.NoError(t, err)
		require.ErrorIs(t, answers[0].Err, expert.ErrCancelled)
		requireNothingUnderWay(t, w)
	})
}

func TestCall_FullHostsAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		fullUntil := time.Now().Add(300 * time.Millisecond)
		w.provide(42, func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			if left := time.Until(fullUntil); left > 0 {
				return refuses(&expert.OverloadedError{RetryAfter: left})(ctx, x, pairs)
			}
			return identity(ctx, x, pairs)
		}, "peer-a", "peer-b")
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Len(t, a.Attempts, 3)

		// Not beyond the deadline: then the caller learns when to come again.
		fullUntil = time.Now().Add(8 * time.Second)
		began := time.Now()
		a = one(t, d, 42)
		var full *expert.OverloadedError
		require.ErrorAs(t, a.Err, &full)
		require.InDelta(t, 8, full.RetryAfter.Seconds(), 0.1)
		require.Less(t, time.Since(began), time.Second)
	})
}

func TestCall_InvalidArgumentIsFinalWhenTwoSaySo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.table.SetFallbacks(42, []expert.ID{43})
		w.host(43, expert.StateReady)
		w.provide(42, refuses(expert.ErrInvalidArgument), "a", "b", "c")
		a := one(t, d, 42)
		require.ErrorIs(t, a.Err, expert.ErrInvalidArgument)
		require.Len(t, a.Attempts, 2)

		// One that is alone in saying so is wrong itself.
		w.provide(45, refuses(expert.ErrInvalidArgument), "liar")
		w.provide(45, identity, "good")
		for range 20 {
			require.NoError(t, one(t, d, 45).Err)
		}
		liar, _ := w.table.Peer("liar", time.Now())
		require.Less(t, liar.Success, 0.6)

		// One is enough when nobody else can be asked.
		w.provide(44, refuses(expert.ErrInvalidArgument), "d")
		began := time.Now()
		require.ErrorIs(t, one(t, d, 44).Err, expert.ErrInvalidArgument)
		require.Less(t, time.Since(began), 100*time.Millisecond)
	})
}

func TestCall_RefusesWhatIsWrongBeforeAnythingIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(42, identity, "peer-a")
		w.host(7, expert.StateReady)
		pair := []expert.Pair{{Expert: 42}}
		nan, inf := rows(2), rows(3)
		nan.Float32s()[5] = float32(math.NaN())
		inf.Float32s()[0] = float32(math.Inf(-1))
		for name, req := range map[string]Request{
			"no batch":      {Pairs: pair},
			"one dimension": {X: tensor.New(tensor.WithBacking(make([]float32, 4))), Pairs: pair},
			"float64":       {X: tensor.New(tensor.WithShape(1, 4), tensor.WithBacking(make([]float64, 4))), Pairs: pair},
			"no pairs":      {X: rows(1)},
			"no rows":       {X: rows(1), Pairs: []expert.Pair{{Expert: 42, Rows: []int32{}}}},
			"row outside":   {X: rows(1), Pairs: []expert.Pair{{Expert: 42, Rows: []int32{1}}}},
			"negative row":  {X: rows(1), Pairs: []expert.Pair{{Expert: 42, Rows: []int32{-1}}}},
			"codec":         {X: rows(1), Pairs: pair, Codec: codec.MXFP4},
			"NaN":           {X: nan, Pairs: pair},
			"Inf":           {X: inf, Pairs: pair},
		} {
			_, err := d.Call(t.Context(), req)
			require.ErrorIs(t, err, expert.ErrInvalidArgument, name)
		}
		_, err := d.Call(t.Context(), Request{X: nan, Pairs: pair})
		require.ErrorContains(t, err, "element (1, 1)")

		// The width of a local expert is known.
		answers, err := d.Call(t.Context(), Request{X: expert.NewRows(make([]float32, 6), 6), Pairs: []expert.Pair{{Expert: 7}}})
		require.NoError(t, err)
		require.ErrorIs(t, answers[0].Err, expert.ErrInvalidArgument)
		require.ErrorContains(t, answers[0].Err, "takes rows of 4, found rows of 6")
		require.Empty(t, w.asked)

		cfg := DefaultConfig()
		cfg.CheckNaN = false
		w, d = newWorld(t, cfg)
		w.provide(42, identity, "peer-a")
		answers, err = d.Call(t.Context(), Request{X: nan, Pairs: pair})
		require.NoError(t, err)
		require.NoError(t, answers[0].Err, "who switches the check off gets NaN through")
	})
}

func TestCall_NaNThatASecondHostConfirmsIsTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		infinite := func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			return answerWith(x, pairs, func(v float32) float32 { return v / 0 * 1 }), nil
		}
		w.provide(42, infinite, "a", "b", "c")
		answers, err := d.Call(t.Context(), Request{X: expert.NewRows([]float32{1, 2, 3, 4}, hidden), Pairs: []expert.Pair{{Expert: 42}}})
		require.NoError(t, err)
		a := answers[0]
		require.NoError(t, a.Err)
		require.Len(t, a.Attempts, 2)
		require.NoError(t, a.Attempts[0].Err)
		for _, p := range w.table.Peers(time.Now()) {
			require.InDelta(t, 1, p.Success, 1e-9, "it is nobody's failure")
		}

		// With nobody to confirm it, it is a failure.
		w.provide(43, infinite, "d")
		require.ErrorIs(t, one(t, d, 43).Err, expert.ErrBadReply)
	})
}

func TestCall_PairsForOnePeerShareAnExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.host(1, expert.StateReady)
		for id := expert.ID(2); id < 6; id++ {
			w.provide(id, after(10*time.Millisecond, identity), "peer-a")
		}
		for id := expert.ID(6); id < 10; id++ {
			w.provide(id, after(10*time.Millisecond, identity), "peer-b")
		}
		var pairs []expert.Pair
		for id := expert.ID(1); id < 11; id++ {
			pairs = append(pairs, expert.Pair{Expert: id, Rows: []int32{int32(id) % 4, 3}})
		}
		var mu sync.Mutex
		var each []int
		began := time.Now()
		answers, err := d.Call(t.Context(), Request{X: rows(4), Pairs: pairs, Timeout: 500 * time.Millisecond, Each: func(i int, a Answer) {
			mu.Lock()
			defer mu.Unlock()
			each = append(each, i)
			if i < 9 {
				require.Less(t, time.Since(began), 15*time.Millisecond, "nobody waits for the missing one")
				require.NoError(t, a.Err)
			}
		}})
		require.NoError(t, err)
		require.Len(t, answers, 10)
		for i, a := range answers[:9] {
			require.NoError(t, a.Err)
			r := (i + 1) % 4
			want := append(slices.Clone(rows(4).Float32s()[r*hidden:][:hidden]), rows(4).Float32s()[3*hidden:]...)
			require.Equal(t, want, a.Output.Float32s())
			require.Equal(t, pairs[i].Expert, a.Expert)
		}
		require.ErrorIs(t, answers[9].Err, expert.ErrDeadlineExceeded)
		require.Equal(t, WhereLocal, answers[0].Where)
		slices.Sort(each)
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, each)
		slices.Sort(w.asked)
		require.Equal(t, []string{
			"peer-a: expert-2 expert-3 expert-4 expert-5", "peer-b: expert-6 expert-7 expert-8 expert-9",
		}, w.asked)
		requireNothingUnderWay(t, w)
	})
}

func TestCall_OnlyTheMissingPairsAreAskedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(1, identity, "good")
		w.provide(2, identity, "good")
		half := func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			results := answerWith(x, pairs, func(v float32) float32 { return v })
			for i := range pairs {
				if pairs[i].Expert == 2 {
					results[i] = expert.Result{Err: expert.ErrInternal}
				}
			}
			return results, nil
		}
		w.provide(1, half, "half")
		w.provide(2, half, "half")
		w.table.RemoveProvider(1, "good")
		w.table.RemoveProvider(2, "good")
		w.do(func() { w.dht[2] = append(w.dht[2], "good") })
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 1}, {Expert: 2}}})
		require.NoError(t, err)
		require.NoError(t, answers[0].Err)
		require.NoError(t, answers[1].Err)
		require.Equal(t, []string{"half: expert-1 expert-2", "good: expert-2"}, w.asked)
		require.Len(t, answers[0].Attempts, 1)
		require.Len(t, answers[1].Attempts, 2)
	})
}

func TestCall_ColdLayerSharesExchangesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		var pairs []expert.Pair
		for id := range expert.ID(64) {
			w.announce(id, identity, "peer-a")
			pairs = append(pairs, expert.Pair{Expert: id})
		}
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: pairs})
		require.NoError(t, err)
		for _, a := range answers {
			require.NoError(t, a.Err)
		}
		require.Len(t, w.asked, 1)
	})
}

func TestCall_OneDigestForACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		other := func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			results := answerWith(x, pairs, func(v float32) float32 { return -v })
			for i := range results {
				results[i].Digest = digestY
				if !pairs[i].Digest.IsZero() && pairs[i].Digest != digestY {
					results[i] = expert.Result{Err: expert.ErrDigestMismatch, Digest: digestY}
				}
			}
			return results, nil
		}
		w.provide(42, identity, "x")
		require.Equal(t, digestX, one(t, d, 42).Digest)
		w.provide(42, other, "y")
		for range 20 {
			require.Equal(t, digestX, one(t, d, 42).Digest)
		}
		for _, p := range w.table.Peers(time.Now()) {
			require.InDelta(t, 1, p.Success, 1e-9, "other weights are no failure")
		}
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42, Digest: digestY}}})
		require.NoError(t, err)
		require.Equal(t, "y", string(answers[0].Peer))

		// The local expert's digest goes before what others have.
		w.host(43, expert.StateLoading)
		w.provide(43, other, "y")
		require.ErrorIs(t, one(t, d, 43).Err, expert.ErrDigestMismatch)
	})
}

func TestCall_ClosingEndsWalksBehindCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.do(func() { w.lag = time.Hour })
		w.table.SetFallbacks(42, []expert.ID{43})
		w.provide(42, breaks(expert.ErrDialFailed), "gone")
		w.provide(43, identity, "good")
		require.NoError(t, one(t, d, 42).Err)
		began := time.Now()
		d.Close()
		d.Close()
		require.Zero(t, time.Since(began))
		require.ErrorIs(t, d.ctx.Err(), context.Canceled)
	})
}

func TestConfig_ValidateReportsAll(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	err := Config{MaxRetries: -1}.Validate()
	require.ErrorContains(t, err, "timeout")
	require.ErrorContains(t, err, "max_retries")
}

func TestCall_AHostThatCannotDoItIsNotAskedAgain(t *testing.T) {
	for name, sentinel := range map[string]error{"too large": expert.ErrTooLarge, "unimplemented": expert.ErrUnimplemented} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, d := newWorld(t, DefaultConfig())
				w.provide(42, refuses(sentinel), "peer-a", "peer-b")
				a := one(t, d, 42)
				require.ErrorIs(t, a.Err, sentinel)
				require.Len(t, a.Attempts, 2, "one at each host")
				requireNothingUnderWay(t, w)
			})
		})
	}
}

func TestCall_ThisNodeSaysItselfWhichNumericsItsExpertHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.host(42, expert.StateReady)
		w.local = func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			results := answerWith(x, pairs, func(v float32) float32 { return v })
			results[0].Numerics = "tile-1" // it can do more than the order that it is listed with
			return results, nil
		}
		answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42, Numerics: "tile"}}, Codec: codec.F32})
		require.NoError(t, err)
		require.NoError(t, answers[0].Err)
		require.Equal(t, WhereLocal, answers[0].Where)
		require.Equal(t, "tile-1", answers[0].Numerics)
	})
}
