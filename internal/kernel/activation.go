package kernel

import (
	"math"

	"github.com/kwaai/kwaaid/internal/kernel/internal/consts"
)

// Every sum of a product is written with fma and every other product converted explicitly, so that no compiler fuses what must not be.

// exp returns e to the x, to 1 ulp; see the package's documentation for its operations.
func exp(x float32) float32 {
	x = minOf(consts.ExpMax, maxOf(consts.ExpMin, x))
	t := fma(x, consts.Log2E, consts.ExpMagic)
	n := t - consts.ExpMagic
	r := fma(n, -consts.Ln2High, x)
	r = fma(n, -consts.Ln2Low, r)
	p := horner(expPoly[:], r)
	// 2^n in two steps: n may lie outside of what one factor can hold.
	whole := int32(math.Float32bits(t)) - int32(math.Float32bits(consts.ExpMagic))
	half := whole >> 1
	p = float32(p * math.Float32frombits(uint32(half+127)<<23))
	return float32(p * math.Float32frombits(uint32(whole-half+127)<<23))
}

var (
	expPoly  = consts.ExpPoly()
	geluPoly = consts.GELUPoly()
)

// horner returns the polynomial of x whose coefficients are given, the highest power first.
func horner(poly []float32, x float32) float32 {
	p := poly[0]
	for _, c := range poly[1:] {
		p = fma(p, x, c)
	}
	return p
}

// maxOf returns the larger one; v where either is NaN.
func maxOf(bound, v float32) float32 {
	if bound > v {
		return bound
	}
	return v
}

// minOf returns the smaller one; v where either is NaN.
func minOf(bound, v float32) float32 {
	if bound < v {
		return bound
	}
	return v
}

func silu(v float32) float32 { return v / (1 + exp(-v)) }

func gelu(v float32) float32 {
	a := float32(math.Abs(float64(v)))
	z := minOf(consts.GELUMax, a)
	// exp(-z*z/2), with what the square's rounding loses put back.
	square := float32(z * z)
	lost := fma(z, z, -square)
	e := exp(float32(square * -0.5))
	e = fma(float32(lost*-0.5), e, e)
	q := (z - 4) / (z + 4)
	p := horner(geluPoly[:], q)
	tail := float32(e*p) / fma(z, 0.5, 1)
	return fma(-z, tail, maxOf(0, v))
}

func geluTanh(v float32) float32 {
	u := fma(float32(v*v), consts.GELUTanhCubic, 1)
	w := float32(float32(v*consts.GELUTanhScale) * u)
	return v / (1 + exp(w))
}

func relu(v float32) float32 { return maxOf(0, v) }

func swigluClamped(gate, up, limit float32) float32 {
	g := minOf(limit, gate)
	u := maxOf(-limit, minOf(limit, up))
	return float32((u + 1) * (g / (1 + exp(float32(g*-consts.SwiGLUAlpha)))))
}

// activate returns h of a gate and an up value, or of an up value alone.
func activate(a Activation, gated bool, gate, up, limit float32) float32 {
	if a == SwiGLUClamped {
		return swigluClamped(gate, up, limit)
	}
	v := up
	if gated {
		v = gate
	}
	switch a {
	case SiLU:
		v = silu(v)
	case GELU:
		v = gelu(v)
	case GELUTanh:
		v = geluTanh(v)
	default:
		v = relu(v)
	}
	if gated {
		return float32(v * up)
	}
	return v
}
