package kernel

import "math"

// fma returns a*b + c, rounded once to float32. The obvious float32(math.FMA(...)) rounds twice.
//
// The product of two float32 is exact in float64. Their sum with c is rounded to 53 bits; rounding that again to 24 is harmless unless it
// lies in the middle of two float32, where what the first rounding dropped decides, or among the subnormal numbers, whose middles lie elsewhere.
func fma(a, b, c float32) float32 {
	p := float64(float64(a) * float64(b))
	s := p + float64(c)
	bits := math.Float64bits(s)
	if bits&(1<<29-1) != 1<<28 && bits>>52&0x7ff > 1023-126 {
		return float32(s)
	}
	return float32(toOdd(p, float64(c), s))
}

// toOdd returns p + c rounded to odd, given their sum s rounded to nearest: where s is not exact, of the two float64 around the exact sum
// the one whose last bit is set. With 53 bits before and 24 or fewer after, rounding it again is as good as rounding the exact sum.
func toOdd(p, c, s float64) float64 {
	t := s - p
	lost := (p - (s - t)) + (c - t) // exact: Knuth's TwoSum
	bits := math.Float64bits(s)
	if !(lost < 0 || lost > 0) || bits&1 == 1 || math.IsInf(s, 0) {
		return s
	}
	if (lost > 0) == (s > 0) {
		return math.Float64frombits(bits + 1)
	}
	return math.Float64frombits(bits - 1)
}

// minNormal is the smallest normal float32.
const minNormal = 0x1p-126

// fmaFlushed returns a*b + c as the bf16 instructions do: rounded once, and zero with its sign where that is below the normal numbers.
// None of a, b and c may be subnormal; see flush.
func fmaFlushed(a, b, c float32) float32 {
	p := float64(float64(a) * float64(b))
	s := p + float64(c)
	bits := math.Float64bits(s)
	if bits&(1<<29-1) != 1<<28 && bits>>52&0x7ff > 1023-126 {
		return float32(s)
	}
	return roundFlushed(toOdd(p, float64(c), s))
}

// addFlushed returns a + b as the bf16 instructions do; see fmaFlushed.
func addFlushed(a, b float32) float32 { return fmaFlushed(a, 1, b) }

// roundFlushed rounds s to float32. Whether it is too small for a normal number is judged after rounding to 24 bits, as the instructions do:
// far up, where those 24 bits exist.
func roundFlushed(s float64) float32 {
	if up := float32(s * 0x1p64); math.Abs(float64(up)) < minNormal*0x1p64 {
		return float32(math.Copysign(0, s))
	}
	return float32(s)
}

// flush returns v, or zero with its sign where v is subnormal.
func flush(v float32) float32 {
	if b := math.Float32bits(v); b&0x7f800000 == 0 {
		return math.Float32frombits(b & (1 << 31))
	}
	return v
}

// roundBF16 returns v with the accuracy of bf16, as VCVTNEPS2BF16 rounds: subnormal numbers to zero, then to nearest even. NaN stays NaN.
func roundBF16(v float32) float32 {
	b := math.Float32bits(flush(v))
	if b&0x7fffffff > 0x7f800000 {
		return math.Float32frombits(canonicalNaN)
	}
	return math.Float32frombits((b + 0x7fff + b>>16&1) &^ 0xffff)
}

// canonicalNaN are the bits of every NaN in a result.
const canonicalNaN = 0x7fc00000

// canonical returns v, or the canonical NaN.
func canonical(v float32) float32 {
	if v != v {
		return math.Float32frombits(canonicalNaN)
	}
	return v
}
