package kernel

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// sweep calls f with numbers of all sizes and both signs.
func sweep(f func(v float32)) {
	distance := uint32(0x2f17)
	if underRace {
		distance *= 16
	}
	for b := uint32(0); b < 0x7f800000; b += distance {
		f(math.Float32frombits(b))
		f(math.Float32frombits(b | 1<<31))
	}
}

// ulps returns how far got is from want in units of the last place of want, or of at where that is larger.
func ulps(got float32, want, at float64) float64 {
	_, e := math.Frexp(math.Max(math.Max(math.Abs(want), math.Abs(at)), 0x1p-126))
	return math.Abs(float64(got)-want) / math.Ldexp(1, e-24)
}

func TestExp_IsWithinOneUlp(t *testing.T) {
	var worst float64
	sweep(func(v float32) {
		want := math.Exp(float64(v))
		if want > math.MaxFloat32 {
			return
		}
		worst = math.Max(worst, ulps(exp(v), want, 0))
	})
	require.Less(t, worst, 1.0)
	require.True(t, math.IsInf(float64(exp(89)), 1))
	require.True(t, math.IsInf(float64(exp(float32(math.Inf(1)))), 1))
	require.Zero(t, exp(float32(math.Inf(-1))))
	require.Equal(t, float32(1), exp(0))
	require.True(t, math.IsNaN(float64(exp(float32(math.NaN())))))
}

// The bounds are those that the package's documentation states.
func TestActivations_AreAccurate(t *testing.T) {
	logistic := func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }
	cases := []struct {
		name  string
		f     func(float32) float32
		want  func(float64) float64
		bound float64                 // in ulp
		at    func(v float64) float64 // of a number at least this large
	}{
		{"silu", silu, func(v float64) float64 { return v * logistic(v) }, 3, func(float64) float64 { return 0x1p-100 }},
		{"gelu", gelu, func(v float64) float64 { return v * math.Erfc(-v/math.Sqrt2) / 2 }, 6, func(float64) float64 { return 0x1p-100 }},
		{"gelu where it is not tiny", gelu, func(v float64) float64 { return v * math.Erfc(-v/math.Sqrt2) / 2 }, 4.5, func(v float64) float64 { return math.Abs(v) * 0x1p-8 }},
		{"gelu_tanh", geluTanh, func(v float64) float64 {
			return v * logistic(2*math.Sqrt(2/math.Pi)*(v+0.044715*v*v*v))
		}, 6, func(v float64) float64 { return math.Abs(v) * 0x1p-4 }},
		{"relu", relu, func(v float64) float64 { return math.Max(v, 0) }, 0, func(float64) float64 { return 0 }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var worst float64
			var where float32
			sweep(func(v float32) {
				want := c.want(float64(v))
				if v < -1e10 { // 0 times infinity, in the reference
					want = 0
				}
				if u := ulps(c.f(v), want, c.at(float64(v))); u > worst {
					worst, where = u, v
				}
			})
			t.Logf("worst: %.2f ulp at %v", worst, where)
			require.LessOrEqual(t, worst, c.bound, "at %v", where)
			require.True(t, math.IsNaN(float64(c.f(float32(math.NaN())))))
			require.Equal(t, float32(math.Inf(1)), c.f(float32(math.Inf(1))))
		})
	}
}

func TestSwiGLUClamped_ClampsAsGPTOSS(t *testing.T) {
	want := func(g, u, limit float64) float64 {
		g = math.Min(g, limit)
		u = math.Max(-limit, math.Min(u, limit))
		return (u + 1) * g / (1 + math.Exp(-float64(float32(1.702))*g))
	}
	for g := float32(-12); g < 12; g += 0.37 {
		for u := float32(-12); u < 12; u += 0.41 {
			w := want(float64(g), float64(u), 7)
			require.LessOrEqual(t, ulps(swigluClamped(g, u, 7), w, 1e-5), 10.0, "%v %v", g, u)
		}
	}
	nan := float32(math.NaN())
	require.True(t, math.IsNaN(float64(swigluClamped(nan, 1, 7))))
	require.True(t, math.IsNaN(float64(swigluClamped(1, nan, 7))))
}
