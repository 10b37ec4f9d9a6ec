package dispatch

import (
	"bytes"
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

// adds makes a host that adds up, when asked to, what it would have answered otherwise.
func adds(b behaviour) behaviour {
	return func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
		results, err := b(ctx, x, pairs)
		if err != nil || pairs[0].Weights == nil {
			return results, err
		}
		sum := &expert.Sum{Output: expert.NewRows(make([]float32, len(x.Float32s())), hidden)}
		for i, p := range pairs {
			if results[i].Err == nil {
				expert.AddWeighted(sum.Output.Float32s(), results[i].Output.Float32s(), p.Rows, p.Weights, hidden)
				results[i].Output, results[i].Sum = nil, sum
			}
		}
		return results, nil
	}
}

// weighted returns pairs of some experts, each with the same two rows and weights of its own.
func weighted(experts ...expert.ID) []expert.Pair {
	var pairs []expert.Pair
	for _, id := range experts {
		pairs = append(pairs, expert.Pair{Expert: id, Rows: []int32{0, 2}, Weights: []float32{float32(id), 0.25}})
	}
	return pairs
}

// total adds up what the good answers hold: every sum once, and outputs times their weights.
func total(t testing.TB, req Request, answers []Answer) []float32 {
	t.Helper()
	all := make([]float32, len(req.X.Float32s()))
	seen := map[*expert.Sum]bool{}
	for i, a := range answers {
		if a.Err != nil {
			continue
		}
		require.NotEqual(t, a.Output == nil, a.Sum == nil, "exactly one of output and sum")
		switch {
		case a.Output != nil:
			expert.AddWeighted(all, a.Output.Float32s(), req.Pairs[i].Rows, req.Pairs[i].Weights, hidden)
		case !seen[a.Sum]:
			seen[a.Sum] = true
			for k, v := range a.Sum.Output.Float32s() {
				all[k] += v
			}
		}
	}
	return all
}

// identities is what total has to be where all experts are the identity.
func identities(req Request, answers []Answer) []float32 {
	all := make([]float32, len(req.X.Float32s()))
	for i, p := range req.Pairs {
		if answers[i].Err != nil {
			continue
		}
		for j, r := range p.Rows {
			for k := range hidden {
				all[int(r)*hidden+k] += p.Weights[j] * req.X.Float32s()[int(r)*hidden+k]
			}
		}
	}
	return all
}

func requireNoFailure(t testing.TB, answers []Answer) {
	t.Helper()
	for _, a := range answers {
		require.NoError(t, a.Err)
	}
}

func TestSum_EachPeerAddsUpItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(1, adds(identity), "a")
		w.provide(2, adds(identity), "a")
		w.provide(3, adds(identity), "b")
		w.host(4, expert.StateReady)
		req := Request{X: rows(3), Pairs: weighted(1, 2, 3, 4)}
		answers, err := d.Call(t.Context(), req)
		require.NoError(t, err)
		requireNoFailure(t, answers)
		require.Equal(t, identities(req, answers), total(t, req, answers))
		require.NotNil(t, answers[0].Sum)
		require.Same(t, answers[0].Sum, answers[1].Sum)
		require.NotSame(t, answers[0].Sum, answers[2].Sum)
		require.NotNil(t, answers[3].Output, "what is computed here travels nowhere")
		require.ElementsMatch(t, []string{"a: expert-1 expert-2", "b: expert-3"}, w.asked)
	})
}

func TestSum_PairsThatFailAreAddedUpElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		without2 := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			results, err := identity(ctx, x, pairs)
			for i, p := range pairs {
				if p.Expert == 2 {
					results[i] = expert.Result{Err: expert.ErrNotReady}
				}
			}
			return results, err
		}
		w.provide(1, adds(without2), "a")
		w.provide(2, adds(without2), "a")
		w.provide(3, adds(without2), "a")
		w.announce(2, adds(identity), "b")
		req := Request{X: rows(3), Pairs: weighted(1, 2, 3)}
		answers, err := d.Call(t.Context(), req)
		require.NoError(t, err)
		requireNoFailure(t, answers)
		require.Equal(t, identities(req, answers), total(t, req, answers))
		require.Same(t, answers[0].Sum, answers[2].Sum)
		require.NotNil(t, answers[1].Sum)
	})
}

// A slow host's pairs are asked for elsewhere one by one, for a pair in two sums would count twice.
func TestSum_NoPairCountsTwiceWhoeverIsFirst(t *testing.T) {
	for name, late := range map[string]struct {
		a, b, c time.Duration
		sum     bool
	}{
		"the others are first":            {a: time.Second, b: 0, c: 0},
		"one of the others is first":      {a: 300 * time.Millisecond, b: 0, c: time.Second, sum: true},
		"the slow one is first after all": {a: 150 * time.Millisecond, b: time.Second, c: time.Second, sum: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, d := newWorld(t, DefaultConfig())
				w.provide(1, adds(after(late.a, identity)), "a")
				w.provide(2, adds(after(late.a, identity)), "a")
				w.announce(1, adds(after(late.b, identity)), "b")
				w.announce(2, adds(after(late.c, identity)), "c")
				time.AfterFunc(time.Millisecond, func() { // b and c come too late to be asked first
					w.provide(1, adds(after(late.b, identity)), "b")
					w.provide(2, adds(after(late.c, identity)), "c")
				})
				req := Request{X: rows(3), Pairs: weighted(1, 2)}
				answers, err := d.Call(t.Context(), req)
				require.NoError(t, err)
				requireNoFailure(t, answers)
				require.Equal(t, identities(req, answers), total(t, req, answers))
				require.Contains(t, w.asked, "b: expert-1")
				require.Contains(t, w.asked, "c: expert-2")
				if late.sum {
					require.NotNil(t, answers[0].Sum)
					require.Same(t, answers[0].Sum, answers[1].Sum)
				} else {
					require.NotNil(t, answers[0].Output)
					require.NotNil(t, answers[1].Output)
				}
				synctest.Wait()
				requireNothingUnderWay(t, w)
			})
		})
	}
}

func TestSum_WithNaNIsTakenApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		broken2 := func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			results := answerWith(x, pairs, func(v float32) float32 { return v })
			for i, p := range pairs {
				if p.Expert == 2 {
					results[i].Output.Float32s()[1] = float32(math.NaN())
				}
			}
			return results, nil
		}
		w.provide(1, adds(broken2), "a")
		w.provide(2, adds(broken2), "a")
		w.announce(2, adds(identity), "b")
		req := Request{X: rows(3), Pairs: weighted(1, 2)}
		answers, err := d.Call(t.Context(), req)
		require.NoError(t, err)
		requireNoFailure(t, answers)
		require.Equal(t, identities(req, answers), total(t, req, answers))
		require.Equal(t, "a", string(answers[0].Peer), "what was well is taken from the same host")
		require.Equal(t, "b", string(answers[1].Peer))
	})
}

func TestSum_HostsThatKnowNoneReturnOutputs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		old := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			if pairs[0].Weights != nil {
				return nil, expert.ErrUnimplemented
			}
			return identity(ctx, x, pairs)
		}
		w.provide(1, old, "a")
		w.provide(2, old, "a")
		req := Request{X: rows(3), Pairs: weighted(1, 2)}
		answers, err := d.Call(t.Context(), req)
		require.NoError(t, err)
		requireNoFailure(t, answers)
		require.Equal(t, identities(req, answers), total(t, req, answers))
		require.Equal(t, []string{"a: expert-1 expert-2", "a: expert-1 expert-2"}, w.asked)
		p, _ := w.table.Peer("a", time.Now())
		require.InDelta(t, 1, p.Success, 1e-9)
	})
}

func TestSum_WhoAnswersWithoutOneIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.provide(1, identity, "a")
		w.announce(1, adds(identity), "b")
		req := Request{X: rows(3), Pairs: weighted(1)}
		answers, err := d.Call(t.Context(), req)
		require.NoError(t, err)
		require.Equal(t, "b", string(answers[0].Peer))
		require.ErrorIs(t, answers[0].Attempts[0].Err, expert.ErrBadReply)
	})
}

func TestSum_RefusesWeightsThatMakeNoSense(t *testing.T) {
	_, d := newWorld(t, DefaultConfig())
	for _, weights := range [][]float32{{1}, {1, 2, 3}, {}, {1, float32(math.NaN())}, {float32(math.Inf(1)), 1}} {
		_, err := d.Call(t.Context(), Request{X: rows(3), Pairs: []expert.Pair{{Expert: 1, Rows: []int32{0, 2}, Weights: weights}}})
		require.ErrorIs(t, err, expert.ErrInvalidArgument)
		require.ErrorContains(t, err, "expected 2 finite weights")
	}
}

func TestSum_LiarIsCaughtByItsOwnOutputs(t *testing.T) {
	for _, as := range []codec.DType{codec.F32, codec.BF16} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			w, d := newWorld(t, suspicious(), WithLogger(zerolog.New(zerolog.SyncWriter(&log))))
			onWire := func(b behaviour) behaviour { // rounds as the codec of a request does
				return func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
					results, err := b(ctx, x, pairs)
					if err == nil && results[0].Sum != nil {
						rounded(results[0].Sum.Output.Float32s(), as)
					}
					return results, err
				}
			}
			liesInSums := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
				results, err := onWire(adds(identity))(ctx, x, pairs)
				if results[0].Sum != nil {
					results[0].Sum.Output.Float32s()[1] += 7
				}
				return results, err
			}
			for _, id := range []expert.ID{1, 2, 3} {
				w.provide(id, onWire(adds(identity)), "a", "b")
				w.provide(id, liesInSums, "liar")
			}
			for range 20 {
				_, err := d.Call(t.Context(), Request{X: rows(3), Pairs: weighted(1, 2, 3), Codec: as})
				require.NoError(t, err)
				synctest.Wait()
			}
			require.Equal(t, []string{"liar"}, shutOut(w))
			for _, evidence := range []string{"not that of its own outputs", peer.ID("liar").String(), "expert-", "sum_sha256", "parts_sha256", as.String()} {
				require.Contains(t, log.String(), evidence)
			}
			requireNothingUnderWay(t, w)
		})
	}
}

func TestSum_LiarWhoKeepsToHisWordIsCaughtByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, suspicious())
		for _, id := range []expert.ID{1, 2} {
			w.provide(id, adds(identity), "a", "b")
			w.provide(id, adds(lies(1)), "liar")
		}
		for range 30 {
			_, err := d.Call(t.Context(), Request{X: rows(3), Pairs: weighted(1, 2)})
			require.NoError(t, err)
			synctest.Wait()
		}
		require.Equal(t, []string{"liar"}, shutOut(w))
	})
}

func TestSum_LargeOnesAreSampledByRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, suspicious())
		const n = 3 * checkBytes / 4 / hidden
		most := 0
		honest := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			if pairs[0].Weights == nil {
				w.do(func() { most = max(most, x.Shape()[0]*len(pairs)) })
			}
			return identity(ctx, x, pairs)
		}
		pairs := make([]expert.Pair, 2)
		for i := range pairs {
			pairs[i].Expert = expert.ID(i)
			for r := i; r < n; r += 1 + i {
				pairs[i].Rows, pairs[i].Weights = append(pairs[i].Rows, int32(r)), append(pairs[i].Weights, 0.5)
			}
			w.provide(expert.ID(i), adds(honest), "a", "b", "c")
		}
		for range 5 {
			_, err := d.Call(t.Context(), Request{X: rows(n), Pairs: pairs})
			require.NoError(t, err)
			synctest.Wait()
		}
		require.Equal(t, checkBytes/4/hidden, most, "rows that are asked for again, of all pairs")
		require.Empty(t, shutOut(w))
	})
}
