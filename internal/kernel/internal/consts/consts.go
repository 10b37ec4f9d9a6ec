// Package consts holds the numbers that both package kernel and the generators of its assembly code are made of. Changing any of them
// changes bits of results, and so the version of every numerics.
package consts

// The layout of packed weights and the order of sums.
const (
	Panel = 32  // outputs that are stored, and computed, together
	Half  = 16  // of which a gated panel holds gate in one and up in the other
	Step  = 32  // inputs: k is padded with zeros to a multiple of it
	Block = 128 // inputs whose products make one chain of fused multiply-adds, unless the format has blocks of its own
)

// exp.
const (
	ExpMin   = -104     // below it e^x is less than half of the smallest float32
	ExpMax   = 89       // above it e^x is infinite
	ExpMagic = 0x1.8p23 // adding it leaves an integer in the last places
	Log2E    = float32(1.442695040888963407359924681001892137)
	Ln2High  = float32(0x1.62e4p-1) // ln 2 to 15 bits: its product with n is exact
	Ln2Low   = float32(0.69314718055994530941723212145818 - 0x1.62e4p-1)
)

// ExpPoly holds the Taylor polynomial of e^r, the highest power first: for |r| <= ln(2)/2 it is right to 5e-9.
func ExpPoly() [8]float32 {
	return [8]float32{1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1, 1}
}

// gelu.
const (
	GELUMax       = 20 // beyond it the tail is zero
	GELUTanhCubic = float32(0.044715)
	GELUTanhScale = float32(-2 * 0.79788456080286535587989211986876)
	SwiGLUAlpha   = float32(1.702)
)

// GELUPoly holds, the highest power first, what (1 + z/2) exp(z*z/2) (1 - Phi(z)) is for 0 <= z <= 20 as a polynomial in (z - 4) / (z + 4),
// where Phi is the normal distribution function: a weighted least-squares fit, right to 6e-8 with these rounded coefficients.
func GELUPoly() [11]float32 {
	return [11]float32{
		-0x1.0328600000000p-15, -0x1.d64ec40000000p-15, 0x1.0fc09a0000000p-12, 0x1.659e6a0000000p-13, -0x1.26ed5e0000000p-9,
		0x1.358af20000000p-8, -0x1.5d2f0e0000000p-11, -0x1.6122820000000p-6, 0x1.1b665c0000000p-4, -0x1.1182fa0000000p-3, 0x1.22078c0000000p-2,
	}
}

// NaN is the bits of the canonical NaN.
const NaN = 0x7fc00000

// F8Scale: a float8 number is decoded as its value times 2^-8, by moving its bits into a binary16; its scale is taken times 2^8.
const F8Scale = 256
