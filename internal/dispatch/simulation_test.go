package dispatch

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// delayed answers in times around 2 ms, and 2% of the answers 100 ms later.
func delayed(r *lockedDice) behaviour {
	return func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
		r.mu.Lock()
		takes := time.Duration(float64(2*time.Millisecond) * math.Exp(0.25*r.r.NormFloat64()))
		if r.r.Float64() < 0.02 {
			takes += 100 * time.Millisecond
		}
		r.mu.Unlock()
		return after(takes, identity)(ctx, x, pairs)
	}
}

// playDelayed has clients call one expert of three such replicas, and returns how long calls took, sorted, and how many exchanges
// were made for them.
func playDelayed(t *testing.T, hedge bool, pairs int) (took []time.Duration, exchanges int) {
	cfg := quiet()
	cfg.Hedge = hedge
	w, d := newWorld(t, cfg)
	hosts := []peer.ID{"a", "b", "c"}
	var req Request
	for id := range pairs {
		w.provide(expert.ID(id), delayed(&lockedDice{r: rand.New(rand.NewPCG(3, uint64(id)))}), hosts...)
		req.Pairs = append(req.Pairs, expert.Pair{Expert: expert.ID(id)})
	}
	for _, p := range hosts {
		w.table.Connected(p, time.Now())
	}
	const clients, calls = 8, 2500
	var mu sync.Mutex
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range calls {
				began := time.Now()
				answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: req.Pairs})
				lasted := time.Since(began)
				mu.Lock()
				took = append(took, lasted)
				for _, a := range answers {
					err = errors.Join(err, a.Err)
				}
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	return took, len(w.asked)
}

func p99(sorted []time.Duration) time.Duration { return sorted[len(sorted)*99/100] }

// TestSimulation_HedgingCutsTheTail: 2% of every host's answers come 100 ms late. With hedging the p99 falls by at least five times,
// for at most 5% more exchanges.
func TestSimulation_HedgingCutsTheTail(t *testing.T) {
	var with, without []time.Duration
	var extra float64
	synctest.Test(t, func(t *testing.T) {
		var exchanges int
		with, exchanges = playDelayed(t, true, 1)
		extra = float64(exchanges)/float64(len(with)) - 1
	})
	synctest.Test(t, func(t *testing.T) {
		without, _ = playDelayed(t, false, 1)
	})
	t.Logf("p99 %v with hedging, %v without: %.1f times; p50 %v and %v; %.2f%% more exchanges", p99(with), p99(without),
		float64(p99(without))/float64(p99(with)), with[len(with)/2], without[len(without)/2], 100*extra)
	require.Less(t, 5*p99(with), p99(without))
	require.LessOrEqual(t, extra, 0.05)
}

// TestSimulation_LiarAmongFive: one of five replicas lies always. It is out within 200 of its wrong answers in 98 of 100 worlds.
func TestSimulation_LiarAmongFive(t *testing.T) {
	worlds, within := 200, 0
	if raceEnabled {
		worlds = 20
	}
	most := 0
	for seed := range worlds {
		synctest.Test(t, func(t *testing.T) {
			w, d := newWorld(t, DefaultConfig(), withDice(&lockedDice{r: rand.New(rand.NewPCG(uint64(seed), 5))}))
			var mu sync.Mutex
			wrong := 0
			w.provide(42, identity, "a", "b", "c", "d")
			w.provide(42, func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
				mu.Lock()
				defer mu.Unlock()
				wrong++
				return lies(1)(ctx, x, pairs)
			}, "liar")
			w.connect("a", "b", "c", "d", "liar")
			for range 20_000 {
				one(t, d, 42)
				synctest.Wait()
				if len(shutOut(w)) > 0 {
					break
				}
			}
			require.Equal(t, []string{"liar"}, shutOut(w))
			most = max(most, wrong)
			if wrong <= 200 {
				within++
			}
		})
	}
	t.Logf("out within 200 wrong answers in %d of %d worlds; at most %d", within, worlds, most)
	require.GreaterOrEqual(t, within, worlds*98/100)
}

// TestSimulation_HonestHostsStay: a million calls to honest hosts, some of which are at times full, slow or failing, shut nobody out.
func TestSimulation_HonestHostsStay(t *testing.T) {
	calls := 1_000_000
	if raceEnabled || testing.Short() {
		calls = 20_000
	}
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		dice := &lockedDice{r: rand.New(rand.NewPCG(9, 9))}
		moody := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			switch dice.IntN(1000) {
			case 0:
				return refuses(expert.ErrInternal)(ctx, x, pairs)
			case 1, 2, 3:
				return refuses(&expert.OverloadedError{RetryAfter: time.Millisecond})(ctx, x, pairs)
			case 4:
				return nil, expert.ErrReset
			default:
				return identity(ctx, x, pairs)
			}
		}
		w.provide(42, moody, "a", "b", "c", "d", "e")
		w.forgetful = true
		failed := 0
		req := Request{X: rows(1), Pairs: []expert.Pair{{Expert: 42}}}
		for range calls {
			answers, err := d.Call(t.Context(), req)
			require.NoError(t, err)
			if answers[0].Err != nil {
				failed++
			}
		}
		synctest.Wait()
		require.Empty(t, shutOut(w))
		require.Zero(t, failed)
		requireNothingUnderWay(t, w)
	})
}
