package expert_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// engine returns an engine with two workers that ends with the test.
func engine(t testing.TB) expert.Engine {
	pool := kernel.NewPool(2)
	t.Cleanup(pool.Close)
	return expert.Engine{Pool: pool, Numerics: kernel.Exact}
}

// rows draws a batch.
func rows(seed uint64, n, hidden int) *tensor.Dense {
	dice := rand.New(rand.NewPCG(seed, 0))
	values := make([]float32, n*hidden)
	for i := range values {
		values[i] = float32(dice.NormFloat64())
	}
	return expert.NewRows(values, hidden)
}

// twin computes a drawn expert in float64, the short way.
func twin(t testing.TB, p expert.Params, x []float32) []float64 {
	tensors, err := expert.Draw(p)
	require.NoError(t, err)
	w := map[string][]float64{}
	for _, tensor := range tensors {
		d, err := codec.ParseDType(tensor.DType)
		require.NoError(t, err)
		n := 1
		for _, length := range tensor.Shape {
			n *= length
		}
		values := make([]float32, n)
		codec.Decode(values, d, tensor.Data)
		for _, v := range values {
			w[tensor.Name] = append(w[tensor.Name], float64(v))
		}
	}
	linear := func(matrix, bias string, out int, in []float64) []float64 {
		y := make([]float64, out)
		for o := range y {
			for k, v := range in {
				y[o] += w[matrix][o*len(in)+k] * v
			}
			if b := w[bias]; b != nil {
				y[o] += b[o]
			}
		}
		return y
	}
	sigmoid := func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }
	act := map[string]func(float64) float64{
		"silu":      func(v float64) float64 { return v * sigmoid(v) },
		"gelu":      func(v float64) float64 { return v * math.Erfc(-v/math.Sqrt2) / 2 },
		"gelu_tanh": func(v float64) float64 { return v / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+0.044715*v*v*v))) },
		"relu":      func(v float64) float64 { return max(v, 0) },
	}
	f := p.Function()
	var y []float64
	for ; len(x) > 0; x = x[p.Hidden:] {
		row := make([]float64, p.Hidden)
		for k := range row {
			row[k] = float64(x[k])
		}
		var out []float64
		if f.Kind == expert.KindMLP {
			h := linear("w1", "b1", p.Inner, row)
			for k := range h {
				h[k] = act[f.Activation](h[k])
			}
			out = linear("w2", "b2", p.Hidden, h)
		} else {
			gate, up := linear("gate_proj.weight", "gate_proj.bias", p.Inner, row), linear("up_proj.weight", "up_proj.bias", p.Inner, row)
			for k := range up {
				if f.Activation == expert.ActivationSwiGLUClamped {
					g := min(gate[k], p.Limit)
					up[k] = (min(max(up[k], -p.Limit), p.Limit) + 1) * g * sigmoid(1.702*g)
				} else {
					up[k] *= act[f.Activation](gate[k])
				}
			}
			out = linear("down_proj.weight", "down_proj.bias", p.Hidden, up)
		}
		if f.Residual {
			for k := range out {
				out[k] += row[k]
			}
		}
		if f.Norm {
			var mean, variance float64
			for _, v := range out {
				mean += v / float64(len(out))
			}
			for _, v := range out {
				variance += (v - mean) * (v - mean) / float64(len(out))
			}
			for k := range out {
				out[k] = (out[k]-mean)/math.Sqrt(variance+float64(f.Eps))*w["norm.weight"][k] + w["norm.bias"][k]
			}
		}
		y = append(y, out...)
	}
	return y
}

func TestForward_AgreesWithANaiveTwin(t *testing.T) {
	e, yes, no := engine(t), true, false
	seed := &expert.Init{Seed: 5}
	for _, p := range []expert.Params{
		{Kind: "mlp", Hidden: 24, Inner: 40, Init: seed},
		{Kind: "mlp", Hidden: 24, Inner: 40, Init: seed, Bias: &no, Activation: "relu"},
		{Kind: "mlp", Hidden: 37, Inner: 19, Init: seed, Residual: true, DType: "bf16", Activation: "gelu_tanh"},
		{Kind: "mlp", Hidden: 37, Inner: 19, Init: seed, Residual: true, Norm: true, DType: "f16"},
		{Kind: "mlp", Hidden: 1, Inner: 1, Init: seed, Norm: true, Eps: 0.25, Activation: "silu"},
		{Kind: "glu", Hidden: 24, Inner: 40, Init: seed},
		{Kind: "glu", Hidden: 33, Inner: 17, Init: seed, Bias: &yes, DType: "bf16"},
		{Kind: "glu", Hidden: 33, Inner: 17, Init: seed, Bias: &yes, Activation: "swiglu_clamped", Limit: 0.25},
		{Kind: "glu", Hidden: 128, Inner: 65, Init: seed, Activation: "gelu", DType: "f16"},
	} {
		x := rows(7, 5, p.Hidden)
		one, err := expert.New(p, e)
		require.NoError(t, err)
		y, err := one.Forward(t.Context(), x)
		require.NoError(t, err)
		require.Equal(t, tensor.Shape{5, p.Hidden}, y.Shape())
		want := twin(t, p, x.Float32s())
		largest := slices.Max(want)
		for i, v := range y.Float32s() {
			require.InDelta(t, want[i], float64(v), 1e-6*max(1, largest), "%+v element %d", p, i)
		}

		spec := one.Spec()
		require.Equal(t, p.Function().DType, spec.DType)
		require.Equal(t, "exact-1", spec.Numerics)
		require.Positive(t, spec.Bytes)
	}
}

func TestForward_GivesARowTheSameBitsInEveryBatch(t *testing.T) {
	const hidden = 48
	one, err := expert.New(expert.Params{
		Kind: "mlp", Hidden: hidden, Inner: 33, Residual: true, Norm: true, Init: &expert.Init{Seed: 2},
	}, engine(t))
	require.NoError(t, err)
	x := rows(3, 1100, hidden) // more than two blocks between looks at the context
	whole, err := one.Forward(t.Context(), x)
	require.NoError(t, err)
	for _, row := range []int{0, 1, 511, 512, 1023, 1024, 1099} {
		alone, err := one.Forward(t.Context(), expert.NewRows(slices.Clone(x.Float32s()[row*hidden:(row+1)*hidden]), hidden))
		require.NoError(t, err)
		require.Equal(t, alone.Float32s(), whole.Float32s()[row*hidden:(row+1)*hidden], "row %d", row)
	}
}

func TestForward_StopsWithTheCause(t *testing.T) {
	one, err := expert.New(expert.Params{Kind: "glu", Hidden: 4, Inner: 4, Init: &expert.Init{}}, engine(t))
	require.NoError(t, err)
	identity, err := expert.NewIdentity(4)
	require.NoError(t, err)
	gone := errors.New("the caller is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	for _, e := range []expert.Expert{one, identity} {
		_, err := e.Forward(ctx, rows(1, 2, 4))
		require.ErrorIs(t, err, gone)
	}
}

func TestForward_SaysWhatItExpects(t *testing.T) {
	one, err := expert.New(expert.Params{Kind: "glu", Hidden: 4, Inner: 4, Init: &expert.Init{}}, engine(t))
	require.NoError(t, err)
	identity, err := expert.NewIdentity(4)
	require.NoError(t, err)

	transposed := rows(1, 4, 4)
	require.NoError(t, transposed.T())
	columns, err := rows(1, 4, 8).Slice(nil, tensor.S(0, 4))
	require.NoError(t, err)
	for name, x := range map[string]*tensor.Dense{
		"none":       nil,
		"float64":    tensor.New(tensor.WithShape(2, 4), tensor.WithBacking(make([]float64, 8))),
		"one axis":   tensor.New(tensor.WithShape(4), tensor.WithBacking(make([]float32, 4))),
		"three axes": tensor.New(tensor.WithShape(1, 1, 4), tensor.WithBacking(make([]float32, 4))),
		"too wide":   rows(1, 2, 5),
		"transposed": transposed,
		"columns":    columns.(*tensor.Dense),
		"by columns": tensor.New(tensor.AsFortran([]float32{1, 2, 3, 4, 5, 6, 7, 8}), tensor.WithShape(2, 4)),
		"a scalar":   tensor.New(tensor.FromScalar(float32(1))),
	} {
		for _, e := range []expert.Expert{one, identity} {
			_, err := e.Forward(t.Context(), x)
			require.ErrorIs(t, err, expert.ErrInvalidArgument, name)
			require.ErrorContains(t, err, "expected", name)
		}
	}

	// A view of whole rows is as good as a tensor.
	x := rows(1, 6, 4)
	view, err := x.Slice(tensor.S(2, 5))
	require.NoError(t, err)
	y, err := one.Forward(t.Context(), view.(*tensor.Dense))
	require.NoError(t, err)
	whole, err := one.Forward(t.Context(), x)
	require.NoError(t, err)
	require.Equal(t, whole.Float32s()[8:20], y.Float32s())
}

func TestWithNumerics_SharesTheWeights(t *testing.T) {
	e, p := engine(t), expert.Params{Kind: "glu", Hidden: 32, Inner: 32, DType: "bf16", Init: &expert.Init{}}
	one, err := expert.New(p, e)
	require.NoError(t, err)
	tile := one.(*expert.FFN).WithNumerics(kernel.Tile)
	require.Equal(t, "tile-1", tile.Spec().Numerics)
	require.Equal(t, "exact-1", one.Spec().Numerics)
	require.Equal(t, one.Spec().Digest, tile.Spec().Digest, "how it is computed is no part of the digest")

	p.DType = "f32"
	one, err = expert.New(p, e)
	require.NoError(t, err)
	require.Equal(t, "exact-1", one.(*expert.FFN).WithNumerics(kernel.Tile).Spec().Numerics, "tile is for bf16 weights")
}

func TestIdentity_ReturnsTheInputItselfAtNoCost(t *testing.T) {
	identity, err := expert.NewIdentity(8)
	require.NoError(t, err)
	x := rows(1, 3, 8)
	y, err := identity.Forward(t.Context(), x)
	require.NoError(t, err)
	require.Same(t, x, y)
	ctx := t.Context()
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = identity.Forward(ctx, x) }))
}

func TestForwardRows_AllocatesNothing(t *testing.T) {
	p := expert.Params{Kind: "mlp", Hidden: 32, Inner: 32, Residual: true, Norm: true, Init: &expert.Init{}}
	e, err := expert.New(p, engine(t))
	require.NoError(t, err)
	x, y, ctx := rows(1, 8, 32).Float32s(), make([]float32, 8*32), t.Context()
	if allocs := testing.AllocsPerRun(100, func() { _ = e.(*expert.FFN).ForwardRows(ctx, y, x) }); !raceEnabled {
		require.Zero(t, allocs)
	}
}

func TestNaN_BecomesTheSameOneEverywhere(t *testing.T) {
	e, err := expert.New(expert.Params{
		Kind: "mlp", Hidden: 4, Inner: 4, Residual: true, Norm: true, Init: &expert.Init{},
	}, engine(t))
	require.NoError(t, err)
	x := rows(1, 1, 4)
	x.Float32s()[2] = math.Float32frombits(0xffc12345)
	y, err := e.Forward(t.Context(), x)
	require.NoError(t, err)
	for _, v := range y.Float32s() {
		require.Equal(t, uint32(0x7fc00000), math.Float32bits(v))
	}
}

func TestDraw_IsUniformWithinTheBound(t *testing.T) {
	tensors, err := expert.Draw(expert.Params{Kind: "glu", Hidden: 64, Inner: 256, Init: &expert.Init{Seed: 9}})
	require.NoError(t, err)
	for _, tensor := range tensors {
		values := make([]float32, len(tensor.Data)/4)
		codec.DecodeF32(values, tensor.Data)
		bound := 1 / math.Sqrt(float64(tensor.Shape[1]))
		var sum, squares float64
		for _, v := range values {
			require.LessOrEqual(t, math.Abs(float64(v)), bound*(1+1e-6))
			sum += float64(v)
			squares += float64(v) * float64(v)
		}
		n := float64(len(values))
		require.InDelta(t, 0, sum/n, 4*bound/math.Sqrt(3*n), tensor.Name)
		require.InDelta(t, bound*bound/3, squares/n, 0.05*bound*bound, tensor.Name)
	}
	// The first elements that docs/PROTOCOL.md states.
	tensors, err = expert.Draw(expert.Params{Kind: "glu", Hidden: 4, Inner: 6, Init: &expert.Init{Seed: 1}})
	require.NoError(t, err)
	require.Equal(t, "gate_proj.weight", tensors[0].Name)
	first := make([]float32, 4)
	codec.DecodeF32(first, tensors[0].Data)
	for i, bits := range []uint32{0xbe38bf74, 0x3e0ffde0, 0x3d9d2e50, 0xbeca31d8} {
		require.Equal(t, bits, math.Float32bits(first[i]))
	}
}

func TestNewFFN_ComparesWeightsWithTheManifest(t *testing.T) {
	p := expert.Params{Kind: "mlp", Hidden: 4, Inner: 6, Init: &expert.Init{}}
	data := make([]byte, 4*24)
	matrix := func(out, in int) kernel.Weights {
		return kernel.Weights{Out: out, In: in, Data: data, StrideOut: in, StrideIn: 1}
	}
	good := func() expert.Weights { return expert.Weights{FFN: kernel.FFN{Up: matrix(6, 4), Down: matrix(4, 6)}} }
	_, err := expert.NewFFN(expert.Manifest{Function: p.Function()}, good(), engine(t))
	require.NoError(t, err)
	for name, spoil := range map[string]func(w *expert.Weights, f *expert.Function){
		"a pool's absence": nil,
		"sizes":            func(_ *expert.Weights, f *expert.Function) { f.Inner = 7 },
		"down":             func(w *expert.Weights, _ *expert.Function) { w.Down = matrix(6, 4) },
		"a gate":           func(w *expert.Weights, _ *expert.Function) { w.Gate = matrix(6, 4) },
		"dtype":            func(_ *expert.Weights, f *expert.Function) { f.DType = "bf16" },
		"no norm":          func(_ *expert.Weights, f *expert.Function) { f.Norm, f.Eps = true, 1 },
		"a norm":           func(w *expert.Weights, _ *expert.Function) { w.NormWeight = make([]float32, 4) },
		"a short bias":     func(w *expert.Weights, _ *expert.Function) { w.UpBias = make([]float32, 5) },
		"function":         func(_ *expert.Weights, f *expert.Function) { f.Activation = "" },
	} {
		w, f, e := good(), p.Function(), engine(t)
		if spoil == nil {
			e.Pool = nil
		} else {
			spoil(&w, &f)
		}
		_, err := expert.NewFFN(expert.Manifest{Function: f}, w, e)
		require.Error(t, err, name)
	}
}

func TestFFN_VariantsAreTheOtherOrdersThatItsWeightsAreFor(t *testing.T) {
	pool := kernel.NewPool(1)
	defer pool.Close()
	for dtype, want := range map[string][]string{
		expert.DTypeBF16: {"dot-1", "tile-1"},
		expert.DTypeF32:  nil,
	} {
		e, err := expert.New(expert.Params{Kind: expert.KindGLU, Hidden: 32, Inner: 48, DType: dtype, Init: &expert.Init{Seed: 1}}, expert.Engine{Pool: pool})
		require.NoError(t, err)
		var got []string
		for _, v := range e.(*expert.FFN).Variants() {
			require.Equal(t, e.Spec().Digest, v.Spec().Digest)
			got = append(got, v.Spec().Numerics)
		}
		require.Equal(t, want, got)
	}
}
