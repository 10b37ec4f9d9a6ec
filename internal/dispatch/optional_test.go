package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestCall_WhatMayBeLeftOutIsNotLookedForAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(42, breaks(expert.ErrDialFailed), "gone")
		ask := func(optional bool, id expert.ID) (Answer, time.Duration) {
			began := time.Now()
			answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: id}}, Optional: optional})
			require.NoError(t, err)
			return answers[0], time.Since(began)
		}
		for _, id := range []expert.ID{42, 43} { // one whose hosts are gone, and one that nobody ever had
			a, took := ask(true, id)
			require.Error(t, a.Err)
			require.GreaterOrEqual(t, took, huntFor)
			a, took = ask(true, id)
			require.Error(t, a.Err)
			require.Less(t, took, 10*time.Millisecond)
			_, took = ask(false, id)
			require.GreaterOrEqual(t, took, huntFor, "who needs it has it looked for")
			time.Sleep(absenceLife)
			_, took = ask(true, id)
			require.GreaterOrEqual(t, took, huntFor, "now and then it is looked for")

			w.provide(id, identity, "back")
			a, took = ask(true, id)
			require.NoError(t, a.Err)
			require.Less(t, took, 10*time.Millisecond)
			_, unanswered := w.table.UnansweredSince(id, time.Now())
			require.False(t, unanswered)
		}
	})
}

func TestCall_LeavesOutWhoseHostsAreSilentWhereItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(42, frozen, "frozen")
		w.provide(43, identity, "well")
		w.connect("frozen", "well")
		w.do(func() { w.pings["frozen"] = silent })
		ask := func(optional bool) ([]Answer, time.Duration) {
			began := time.Now()
			answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}, {Expert: 43}}, Optional: optional})
			require.NoError(t, err)
			require.NoError(t, answers[1].Err)
			return answers, time.Since(began)
		}
		answers, took := ask(true)
		require.ErrorContains(t, answers[0].Err, "missed a ping")
		require.Less(t, took, 2*huntFor)
		// From then on it costs nothing, but for the probes of its breaker: its rest is over by now, then after twice as long.
		for probes := range 3 {
			answers, took = ask(true)
			require.Error(t, answers[0].Err)
			require.LessOrEqual(t, took, silence+pingStranger)
			for range 3 {
				answers, took = ask(true)
				require.Error(t, answers[0].Err)
				require.Less(t, took, 10*time.Millisecond)
			}
			time.Sleep(2 * time.Second << probes)
		}
		answers, took = ask(false)
		require.ErrorIs(t, answers[0].Err, expert.ErrDeadlineExceeded, "who needs it waits for it")
		require.Equal(t, DefaultConfig().Timeout, took)

		w.do(func() { w.peers["frozen"], w.pings["frozen"] = identity, nil })
		time.Sleep(10 * time.Second) // the longest rest of a breaker
		answers, _ = ask(true)
		require.NoError(t, answers[0].Err)
		requireNothingUnderWay(t, w)
	})
}

func TestCall_LeavesOutWhoseHostsAreSilentInAHurryAndBesideAWalkThatHangsToo(t *testing.T) {
	for name, c := range map[string]struct{ timeout, lag, most time.Duration }{
		"short deadline":     {400 * time.Millisecond, time.Millisecond, 400 * time.Millisecond},
		"frozen peer in DHT": {5 * time.Second, time.Minute, 2 * huntFor},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, d := newWorld(t, DefaultConfig())
				w.lag = c.lag
				w.provide(42, frozen, "frozen")
				w.connect("frozen")
				w.do(func() { w.pings["frozen"] = silent })
				for _, most := range []time.Duration{c.most, silence + pingStranger, 0} { // looked for, the breaker's probe, at once
					began := time.Now()
					answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}, Timeout: c.timeout, Optional: true})
					require.NoError(t, err)
					require.Error(t, answers[0].Err)
					require.LessOrEqual(t, time.Since(began), most)
				}
				requireNothingUnderWay(t, w)
			})
		})
	}
}

func TestCall_WaitsForSlowHostsThoughTheyMayBeLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(42, after(4*time.Second, identity), "slow")
		w.connect("slow")
		for range 2 {
			answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}, Optional: true})
			require.NoError(t, err)
			require.NoError(t, answers[0].Err)
		}
	})
}
