package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// shapes are FFNs of every format, activation and layout, with dimensions that fill panels and that do not.
func shapes() []shape {
	var all []shape
	for d := range DType(dtypes) {
		for a := range Activation(activations) {
			s := shape{hidden: 96, inner: 160, dtype: d, gated: a != ReLU, activation: a, bias: a%2 == 1}
			all = append(all, s)
			s.hidden, s.inner, s.transposed, s.bias = 131, 77, true, !s.bias
			s.blockOut, s.blockIn = 16, 32
			if d == MXFP4 {
				s.hidden, s.inner = 160, 96
			}
			all = append(all, s)
			if a != SwiGLUClamped {
				s.gated = false
				all = append(all, s)
			}
		}
	}
	all = append(all,
		shape{hidden: 1, inner: 1, dtype: BF16, gated: true},
		shape{hidden: 300, inner: 33, dtype: F8E4M3, gated: true, blockOut: 3, blockIn: 7},
		shape{hidden: 300, inner: 290, dtype: F8E4M3, gated: true, blockOut: 128, blockIn: 128, bias: true})
	return all
}

func (s shape) String() string {
	return fmt.Sprintf("%dx%d-%v-%v-gated=%t-bias=%t-transposed=%t", s.hidden, s.inner, s.dtype, s.activation, s.gated, s.bias, s.transposed)
}

func TestForward_AgreesWithFloat64(t *testing.T) {
	pool := newTestPool(t, 2)
	for i, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(7, uint64(i)))
			m := newModel(rnd, s)
			p := m.pack(t)
			const rows = 5
			x, y := randomRows(rnd, rows*s.hidden), make([]float32, rows*s.hidden)
			for n := range Numerics(numerics) {
				p.Forward(pool, y, x, rows, n)
				tolerance := 4e-6
				if p.Numerics(n) != Exact {
					tolerance = 1.5e-2 // bf16 keeps 8 bits
				}
				for r := range rows {
					want, size := m.forward(x[r*s.hidden : (r+1)*s.hidden])
					for o, v := range y[r*s.hidden : (r+1)*s.hidden] {
						require.InDelta(t, want[o], float64(v), tolerance*size[o]+1e-30, "%v: row %d, output %d", n, r, o)
					}
				}
			}
		})
	}
}

func TestForward_RowDependsOnNothingElse(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	m := newModel(rnd, shape{hidden: 96, inner: 80, dtype: BF16, gated: true})
	p := m.pack(t)
	const most = 70
	x, y, one := randomRows(rnd, most*96), make([]float32, most*96), make([]float32, 96)
	for n := range Numerics(numerics) {
		alone, shared := newTestPool(t, 1), newTestPool(t, 3)
		want := make([]uint32, 0, most*96)
		for r := range most {
			p.Forward(alone, one, x[r*96:(r+1)*96], 1, n)
			want = append(want, bitsOf(one)...)
		}
		for rows := 1; rows <= most; rows++ {
			p.Forward(shared, y, x, rows, n)
			require.Equal(t, want[:rows*96], bitsOf(y[:rows*96]), "%v: %d rows", n, rows)
		}
	}
}

func TestForward_MakesNaNCanonicalAndKeepsItInItsRow(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	m := newModel(rnd, shape{hidden: 64, inner: 64, dtype: BF16, gated: true})
	p := m.pack(t)
	pool := newTestPool(t, 2)
	x, y, clean := randomRows(rnd, 3*64), make([]float32, 3*64), make([]float32, 3*64)
	for n := range Numerics(numerics) {
		p.Forward(pool, clean, x, 3, n)
		bad := append([]float32(nil), x...)
		bad[64+7] = math.Float32frombits(0xff812345)
		p.Forward(pool, y, bad, 3, n)
		require.Equal(t, bitsOf(clean[:64]), bitsOf(y[:64]))
		require.Equal(t, bitsOf(clean[128:]), bitsOf(y[128:]))
		for _, b := range bitsOf(y[64:128]) {
			require.Equal(t, uint32(canonicalNaN), b)
		}
	}
}

// Whoever changes these bits changes a numerics' version too, since hosts of both versions meet.
func TestNumerics_BitsArePinned(t *testing.T) {
	want := map[string]string{
		"exact-1 f32 silu":               "bf26c3eb205b666c",
		"exact-1 f32 gelu":               "7ea7a49b16790cbb",
		"exact-1 f32 gelu_tanh":          "a09aa5c62abfaa28",
		"exact-1 f32 relu":               "2a81eb4cc0fd5887",
		"exact-1 f32 swiglu_clamped":     "de6ec9124a5a52d4",
		"exact-1 bf16 silu":              "801933e5472a3f4d",
		"dot-1 bf16 silu":                "96d73a8be8d3e059",
		"tile-1 bf16 silu":               "b2a23516e0482dc8",
		"exact-1 bf16 gelu":              "94820a5b21707b45",
		"dot-1 bf16 gelu":                "18879e43093bbe77",
		"tile-1 bf16 gelu":               "9003256b2f858c2a",
		"exact-1 bf16 gelu_tanh":         "22f4421570afd365",
		"dot-1 bf16 gelu_tanh":           "086d175cee1574ab",
		"tile-1 bf16 gelu_tanh":          "fbdf5e3934fb85dd",
		"exact-1 bf16 relu":              "65b230791499bf43",
		"dot-1 bf16 relu":                "4557cda39f59876d",
		"tile-1 bf16 relu":               "4c6574a189a591b1",
		"exact-1 bf16 swiglu_clamped":    "c136a68d3ba30299",
		"dot-1 bf16 swiglu_clamped":      "b2643cae8d6d119f",
		"tile-1 bf16 swiglu_clamped":     "bd59a0a46913eb53",
		"exact-1 f16 silu":               "c9ee3f08575671c6",
		"exact-1 f16 gelu":               "ed7f646f7cc25c87",
		"exact-1 f16 gelu_tanh":          "ae3d865d21d0a0bf",
		"exact-1 f16 relu":               "ff0449327a8647f4",
		"exact-1 f16 swiglu_clamped":     "7c4a142e5c7b4da9",
		"exact-1 f8_e4m3 silu":           "9ad15a6330de02ad",
		"exact-1 f8_e4m3 gelu":           "b3a697f0986f8f17",
		"exact-1 f8_e4m3 gelu_tanh":      "e114f5254f3eb40a",
		"exact-1 f8_e4m3 relu":           "f99e88a125f363a8",
		"exact-1 f8_e4m3 swiglu_clamped": "3d30abdfab435ba9",
		"exact-1 mxfp4 silu":             "e2410b41850db777",
		"exact-1 mxfp4 gelu":             "1cca3a9cfe42da2e",
		"exact-1 mxfp4 gelu_tanh":        "4a3f48a775d992ef",
		"exact-1 mxfp4 relu":             "03fb7fd86b1e318a",
		"exact-1 mxfp4 swiglu_clamped":   "580a716df551924e",
	}
	pool := newTestPool(t, 1)
	for d := range DType(dtypes) {
		for a := range Activation(activations) {
			rnd := rand.New(rand.NewPCG(25, uint64(d)))
			s := shape{hidden: 160, inner: 192, dtype: d, gated: true, bias: true, activation: a, blockOut: 16, blockIn: 32}
			p := newModel(rnd, s).pack(t)
			x, y := randomRows(rnd, 3*160), make([]float32, 3*160)
			for n := range Numerics(numerics) {
				if p.Numerics(n) != n {
					continue
				}
				p.Forward(pool, y, x, 3, n)
				h := sha256.New()
				require.NoError(t, binary.Write(h, binary.LittleEndian, y))
				name := fmt.Sprintf("%v %v %v", n.Version(), d, a)
				require.Equal(t, want[name], hex.EncodeToString(h.Sum(nil)[:8]), name)
			}
		}
	}
}

func TestPack_SaysWhatIsWrong(t *testing.T) {
	rnd := rand.New(rand.NewPCG(10, 10))
	good := func(d DType) *model {
		return newModel(rnd, shape{hidden: 64, inner: 96, dtype: d, gated: true, bias: true})
	}
	cases := map[string]func() FFN{
		"takes 3 bytes":                           nil,
		"up: [96, 64] of bf16 take":               func() FFN { f := good(BF16).ffn; f.Up.Data = f.Up.Data[:100]; return f },
		"gate is [95, 64]":                        func() FFN { f := good(BF16).ffn; f.Gate.Out = 95; return f },
		"bias of 3 elements":                      func() FFN { f := good(F32).ffn; f.DownBias = f.DownBias[:3]; return f },
		"expected one to be the other transposed": func() FFN { f := good(F32).ffn; f.Down.In = 95; return f },
		"gate is f32":                             func() FFN { f := good(BF16).ffn; f.Gate = good(F32).ffn.Gate; return f },
		"scales: expected":                        func() FFN { f := good(F8E4M3).ffn; f.Up.Scales = nil; return f },
		"expected blocks of 1":                    func() FFN { f := good(F8E4M3).ffn; f.Up.BlockIn = 0; return f },
		"NaN among the f8_e4m3":                   func() FFN { f := good(F8E4M3).ffn; f.Up.Data[f.Up.Offset] = 0xff; return f },
		"exponents: expected":                     func() FFN { f := good(MXFP4).ffn; f.Down.Exponents = f.Down.Exponents[:2]; return f },
		"expected multiples of 32":                func() FFN { f := good(MXFP4).ffn; f.Down.Offset = 1; return f },
		"limit":                                   func() FFN { f := good(F32).ffn; f.Activation = SwiGLUClamped; return f },
		"needs a gate": func() FFN {
			f := good(F32).ffn
			f.Activation, f.Gate, f.GateBias, f.Limit = SwiGLUClamped, Weights{}, nil, 1
			return f
		},
		"shape [0, 64]": func() FFN { f := good(F32).ffn; f.Up.Out = 0; return f },
		"offset -1":     func() FFN { f := good(F32).ffn; f.Up.Offset = -1; return f },
	}
	delete(cases, "takes 3 bytes")
	for text, f := range cases {
		_, err := Pack(f())
		require.ErrorIs(t, err, ErrWeights, text)
		require.ErrorContains(t, err, text)
	}
}

func TestPackedFFN_BytesAreThoseOfTheWeights(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 11))
	for d, stored := range map[DType]float64{F32: 4, BF16: 2, F16: 2, F8E4M3: 1, MXFP4: 0.5 + 1.0/32} {
		p := newModel(rnd, shape{hidden: 512, inner: 256, dtype: d, gated: true}).pack(t)
		weights := stored * 3 * 512 * 256
		require.InDelta(t, weights, float64(p.Bytes()), 0.05*weights, "%v", d)
	}
}

func TestNames_ComeBack(t *testing.T) {
	for a := range Activation(activations) {
		got, err := ParseActivation(a.String())
		require.NoError(t, err)
		require.Equal(t, a, got)
	}
	for n := range Numerics(numerics + 1) {
		got, err := ParseNumerics(n.String())
		require.NoError(t, err)
		require.Equal(t, n, got)
	}
	n, err := ParseNumerics("dot-1")
	require.NoError(t, err)
	require.Equal(t, Dot, n)
	_, err = ParseNumerics("dot-2")
	require.ErrorIs(t, err, ErrUnknownName)
	_, err = ParseActivation("elu")
	require.ErrorIs(t, err, ErrUnknownName)
}
