package dispatch

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// quickly answers like the hosts of a good line: calls in 2 ms. (Pings take 1 ms.)
var quickly = after(2*time.Millisecond, identity)

// keepCalling has clients call expert-42 a hundred times a second each, and returns how long calls took, sorted, and how often each
// host was asked.
func keepCalling(t *testing.T, w *world, d *Dispatcher, clients int, long time.Duration) (took []time.Duration, asked map[string]int) {
	t.Helper()
	w.do(func() { w.asked = nil })
	var mu sync.Mutex
	var all sync.WaitGroup
	until := time.Now().Add(long)
	for range clients {
		all.Go(func() {
			for time.Now().Before(until) {
				began := time.Now()
				answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}})
				if err != nil || answers[0].Err != nil {
					t.Error(err, answers[0].Err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
				time.Sleep(8 * time.Millisecond)
			}
		})
	}
	all.Wait()
	asked = map[string]int{}
	for _, line := range w.asked {
		asked[line[:1]]++
	}
	slices.Sort(took)
	return took, asked
}

// A host whose line was slow once, when it was dialled say, shares the calls again soon.
func TestLine_ThatWasSlowOnceIsMeasuredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		w.provide(42, after(40*time.Millisecond, identity), "a")
		w.table.Connected("a", time.Now())
		require.NoError(t, one(t, d, 42).Err)
		w.provide(42, quickly, "a", "b", "c")
		w.table.Connected("b", time.Now())
		w.table.Connected("c", time.Now())
		keepCalling(t, w, d, 2, 40*time.Second)
		took, asked := keepCalling(t, w, d, 2, 20*time.Second)
		require.Greater(t, asked["a"], len(took)/5, "%v", asked)
	})
}

// A host that is far away, or computes slowly, is found to be so again now and then, and callers do not notice.
func TestLine_SlowHostIsTriedWithoutHarmToTheTail(t *testing.T) {
	const slow = 100 * time.Millisecond
	for _, story := range []struct {
		name string
		ping time.Duration
	}{
		{"far away", slow},
		{"slow at computing, quick to answer pings", time.Millisecond},
	} {
		for _, clients := range []int{1, 4} {
			t.Run(story.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, d := newWorld(t, quiet())
					w.provide(42, after(slow, identity), "a")
					w.do(func() { w.pings["a"] = func(context.Context) error { time.Sleep(story.ping); return nil } })
					w.provide(42, quickly, "b", "c")
					for _, p := range []peer.ID{"a", "b", "c"} {
						w.table.Connected(p, time.Now())
					}
					keepCalling(t, w, d, clients, time.Minute)
					before := d.Counts().Hedges
					took, asked := keepCalling(t, w, d, clients, 3*time.Minute)
					slowest := took[len(took)-1]
					t.Logf("%d clients: %d calls, %v, %d hedges; p99 %v, slowest %v", clients, len(took), asked, d.Counts().Hedges-before, p99(took), slowest)
					require.Equal(t, 2*time.Millisecond, p99(took))
					require.Less(t, slowest, 10*time.Millisecond, "it is hedged")
					require.Less(t, asked["a"], len(took)/500)
					if story.ping < slow {
						require.Positive(t, asked["a"], "it may compute faster now")
					}
				})
			})
		}
	}
}
