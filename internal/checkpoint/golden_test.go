package checkpoint_test

import (
	"flag"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

const fixtures = "../../testdata/fixtures"

// more lets a developer try checkpoints of other seeds and sizes.
var more = flag.String("fixtures", "", "a pattern of directories with further golden checkpoints")

// engine returns an engine with two workers that ends with the test.
func engine(t testing.TB) expert.Engine {
	pool := kernel.NewPool(2)
	t.Cleanup(pool.Close)
	return expert.Engine{Pool: pool, Numerics: kernel.Exact}
}

func open(t testing.TB, dir string) *checkpoint.Checkpoint {
	c, err := checkpoint.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// eachFixture runs a test for every checkpoint with golden values.
func eachFixture(t *testing.T, run func(t *testing.T, dir string, f checkpointtest.Golden, golden *checkpoint.File)) {
	checkpointtest.EachGolden(t, fixtures, *more, func(t *testing.T, f checkpointtest.Golden) {
		golden, err := checkpoint.OpenFile(filepath.Join(f.Dir, "golden.safetensors"))
		require.NoError(t, err)
		defer golden.Close()
		run(t, f.Dir, f, golden)
	})
}

// near compares with a golden tensor.
func near(t *testing.T, golden *checkpoint.File, name string, got []float32) {
	t.Helper()
	want, _, err := golden.Float32s(name)
	require.NoError(t, err)
	checkpointtest.Near(t, want, got, name)
}

func TestLoad_ExpertsOfEveryFamilyGiveTheGoldenOutputs(t *testing.T) {
	e := engine(t)
	eachFixture(t, func(t *testing.T, dir string, f checkpointtest.Golden, golden *checkpoint.File) {
		c := open(t, dir)
		layers := c.Layers()
		require.Len(t, layers, len(f.Layers))
		for i, at := range f.Layers {
			l := layers[i]
			require.NoError(t, l.Err)
			require.Equal(t, at.Layer, l.Name)
			require.Equal(t, f.Dims.Experts, l.Experts)
			require.Equal(t, f.Dims.Hidden, l.Function.Hidden)
			require.Equal(t, f.Dims.Inner, l.Function.Inner)
			require.Same(t, l, c.Layer(at.Layer))

			x, _, err := golden.Float32s(at.Golden + ".rows17.input")
			require.NoError(t, err)
			five := expert.NewRows(x[:5*f.Dims.Hidden], f.Dims.Hidden)
			for index := range l.Experts {
				var read int64
				one, err := l.Load(t.Context(), index, e, func(n int64) { read += n })
				require.NoError(t, err)
				require.Equal(t, l.ExpertBytes, read, "the bytes of one expert and no others")
				y, err := one.Forward(t.Context(), five)
				require.NoError(t, err)
				near(t, golden, fmt.Sprintf("%s.expert.%d.output", at.Golden, index), y.Float32s())
			}

			shared, err := l.LoadShared(t.Context(), e)
			require.NoError(t, err)
			require.Equal(t, f.Dims.Shared > 0, shared != nil)
			if f.Dims.Shared > 0 {
				require.Equal(t, f.Dims.Shared, shared.Spec().Inner)
				y, err := shared.Forward(t.Context(), expert.NewRows(x, f.Dims.Hidden))
				require.NoError(t, err)
				near(t, golden, at.Golden+".rows17.shared_output", y.Float32s())
			}
		}
	})
}

func TestRouter_GivesTheGoldenLogits(t *testing.T) {
	eachFixture(t, func(t *testing.T, dir string, f checkpointtest.Golden, golden *checkpoint.File) {
		c := open(t, dir)
		for _, at := range f.Layers {
			r, err := c.Layer(at.Layer).Router()
			require.NoError(t, err)
			x, _, err := golden.Float32s(at.Golden + ".rows17.input")
			require.NoError(t, err)
			near(t, golden, at.Golden+".rows17.router_logits", product(x, r.Weight, r.Bias, f.Dims.Hidden))
			if r.SharedGate != nil {
				near(t, golden, at.Golden+".rows17.shared_gate_logits", product(x, r.SharedGate, nil, f.Dims.Hidden))
			}
		}
	})
}

// product is x [rows, hidden] times weight [out, hidden] transposed, plus bias, in float64.
func product(x, weight, bias []float32, hidden int) []float32 {
	var y []float32
	for ; len(x) > 0; x = x[hidden:] {
		for o := range len(weight) / hidden {
			var sum float64
			for k := range hidden {
				sum += float64(x[k]) * float64(weight[o*hidden+k])
			}
			if bias != nil {
				sum += float64(bias[o])
			}
			y = append(y, float32(sum))
		}
	}
	return y
}

func TestDigest_IsTheSameHoweverTheCheckpointIsSplit(t *testing.T) {
	e := engine(t)
	whole, sharded := open(t, fixtures+"/moe/mixtral-f32"), open(t, fixtures+"/moe/mixtral-f32-sharded")
	bf16 := open(t, fixtures+"/moe/mixtral-bf16")
	seen := map[expert.Digest]bool{}
	for _, l := range whole.Layers() {
		for index := range l.Experts {
			a, err := l.Load(t.Context(), index, e, nil)
			require.NoError(t, err)
			b, err := sharded.Layer(l.Name).Load(t.Context(), index, e, nil)
			require.NoError(t, err)
			require.Equal(t, a.Spec(), b.Spec())
			rounded, err := bf16.Layer(l.Name).Load(t.Context(), index, e, nil)
			require.NoError(t, err)
			require.False(t, seen[a.Spec().Digest] || seen[rounded.Spec().Digest], "no two experts have one digest")
			seen[a.Spec().Digest], seen[rounded.Spec().Digest] = true, true
		}
	}
	require.Len(t, seen, 32)
}
