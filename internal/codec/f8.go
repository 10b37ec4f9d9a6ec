package codec

import "math"

const (
	nanF8 = 0x7f
	maxF8 = 0x7e // 448; the format has no infinity
)

// ToF8E4M3 rounds v to float8 E4M3 and returns its bits. The format has no infinity: what is too large, infinity too, becomes ±448.
func ToF8E4M3(v float32) byte {
	b := math.Float32bits(v)
	sign := byte(b >> 24 & 0x80)
	b &^= signF32
	switch {
	case b > infF32:
		return nanF8
	case b >= 0x43e00000: // 448
		return sign | maxF8
	case b < 0x3c800000: // below 2^-6: subnormal. Adding 2^14 leaves multiples of 2^-9 in the last places.
		return sign | byte(math.Float32bits(math.Float32frombits(b)+0x1p14)-math.Float32bits(0x1p14))
	default: // the exponent is 120 smaller
		return sign | byte((b-120<<23+0x7ffff+b>>20&1)>>20)
	}
}

// FromF8E4M3 returns the number that the bits of a float8 E4M3 stand for.
func FromF8E4M3(q byte) float32 {
	if q&nanF8 == nanF8 {
		return math.Float32frombits(nanF32)
	}
	v := math.Float32frombits(uint32(q&0x7f)<<20) * 0x1p120 // exact, subnormal numbers too
	return math.Float32frombits(uint32(q&0x80)<<24 | math.Float32bits(v))
}

// EncodeF8E4M3 rounds src to float8 E4M3, a byte each.
func EncodeF8E4M3(dst []byte, src []float32) {
	dst = dst[:len(src)]
	for i, v := range src {
		dst[i] = ToF8E4M3(v)
	}
}

// DecodeF8E4M3 fills dst with float8 E4M3 numbers, a byte each.
func DecodeF8E4M3(dst []float32, src []byte) {
	src = src[:len(dst)]
	for i, q := range src {
		dst[i] = FromF8E4M3(q)
	}
}
