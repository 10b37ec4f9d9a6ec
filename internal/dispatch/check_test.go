package dispatch

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// lies answers wrongly.
func lies(by float32) behaviour {
	return func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
		return answerWith(x, pairs, func(v float32) float32 { return v + by }), nil
	}
}

// suspicious checks every answer, as long as there is room.
func suspicious() Config {
	cfg := DefaultConfig()
	cfg.CheckShare = 1
	return cfg
}

// shutOut returns the peers that are shut out.
func shutOut(w *world) (out []string) {
	for _, p := range w.table.Peers(time.Now()) {
		if p.ShutOut > 0 {
			out = append(out, string(p.Peer))
		}
	}
	return out
}

func TestCheck_LiarIsShutOutWithTheEvidenceInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w, d := newWorld(t, suspicious(), WithLogger(zerolog.New(&log)))
		w.provide(42, identity, "a", "b", "c")
		w.provide(42, lies(1), "liar")
		for range 20 {
			require.NoError(t, one(t, d, 42).Err)
			synctest.Wait()
		}
		require.Equal(t, []string{"liar"}, shutOut(w))
		for _, evidence := range []string{
			"gives wrong answers", peer.ID("liar").String(), "expert-42", digestX.String(), "exact-1", "input_sha256", "votes", "f32",
		} {
			require.Contains(t, log.String(), evidence)
		}
		for range 20 {
			require.NotEqual(t, "liar", string(one(t, d, 42).Peer))
		}
		synctest.Wait()
		requireNothingUnderWay(t, w)
	})
}

func TestCheck_TwoThatDisagreeWithNobodyToDecideKeepTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, suspicious())
		w.provide(42, identity, "a")
		w.provide(42, lies(1), "b")
		for range 5 {
			require.NoError(t, one(t, d, 42).Err)
			synctest.Wait()
		}
		require.Empty(t, shutOut(w))

		// Three that all differ decide nothing either.
		w.provide(42, lies(2), "c")
		for range 5 {
			require.NoError(t, one(t, d, 42).Err)
			synctest.Wait()
		}
		require.Empty(t, shutOut(w))
	})
}

func TestCheck_OthersThatComputeOtherwiseAreNotCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, suspicious())
		w.provide(42, identity, "a", "b")
		other := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			if pairs[0].Numerics == "exact-1" {
				return refuses(expert.ErrUnimplemented)(ctx, x, pairs)
			}
			results := answerWith(x, pairs, func(v float32) float32 { return v * 1.0001 })
			for i := range results {
				results[i].Numerics = "tile-1"
			}
			return results, nil
		}
		w.provide(42, other, "tile")
		for range 30 {
			require.NoError(t, one(t, d, 42).Err)
			synctest.Wait()
		}
		require.Empty(t, shutOut(w))
		for _, p := range w.table.Peers(time.Now()) {
			require.InDelta(t, 1, p.Success, 1e-9)
		}
	})
}

func TestCheck_CallerMayReuseItsRowsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, suspicious())
		w.provide(42, after(time.Millisecond, identity), "a", "b", "c")
		for range 10 {
			x := rows(3)
			answers, err := d.Call(t.Context(), Request{X: x, Pairs: []expert.Pair{{Expert: 42, Rows: []int32{2, 0}}}})
			require.NoError(t, err)
			require.NoError(t, answers[0].Err)
			for i := range x.Float32s() {
				x.Float32s()[i] = -1
			}
			for i := range answers[0].Output.Float32s() {
				answers[0].Output.Float32s()[i] = -1
			}
		}
		synctest.Wait()
		time.Sleep(time.Second)
		require.Empty(t, shutOut(w))
	})
}

func TestCheck_LargeAnswersAreSampledByRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, suspicious())
		const n = 3 * checkBytes / 4 / hidden
		checked := 0
		honest := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			if x.Shape()[0] < n {
				checked = x.Shape()[0]
			}
			return identity(ctx, x, pairs)
		}
		w.provide(42, honest, "a", "b", "c")
		answers, err := d.Call(t.Context(), Request{X: rows(n), Pairs: []expert.Pair{{Expert: 42}}})
		require.NoError(t, err)
		require.NoError(t, answers[0].Err)
		synctest.Wait()
		require.Equal(t, n/3, checked)
		require.Empty(t, shutOut(w))
		w.provide(42, lies(1), "liar")
		w.connect("liar")
		for range 4 {
			_, err := d.Call(t.Context(), Request{X: rows(n), Pairs: []expert.Pair{{Expert: 42}}})
			require.NoError(t, err)
			synctest.Wait()
		}
		require.Equal(t, []string{"liar"}, shutOut(w))
	})
}

func TestCheck_FullHostsAreNotBlamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, suspicious())
		w.provide(42, identity, "a")
		w.provide(42, refuses(&expert.OverloadedError{RetryAfter: 10 * time.Millisecond}), "full")
		for range 10 {
			require.NoError(t, one(t, d, 42).Err)
			synctest.Wait()
		}
		require.Empty(t, shutOut(w))
		full, _ := w.table.Peer("full", time.Now())
		require.InDelta(t, 1, full.Success, 1e-9)
	})
}
