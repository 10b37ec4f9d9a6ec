package codec

import (
	"encoding/binary"
	"math"
)

const (
	nanF16 = 0x7e00
	infF16 = 0x7c00
)

// ToF16 rounds v to binary16 and returns its bits; what is above its largest number by half a place or more becomes infinite.
func ToF16(v float32) uint16 { return f16(math.Float32bits(v)) }

func f16(b uint32) uint16 {
	sign := uint16(b >> 16 & 0x8000)
	b &^= signF32
	switch {
	case b < 0x38800000: // below 2^-14: subnormal. Adding 1/2 leaves the fraction in the last places, rounded by the addition itself.
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5))
	case b < 0x47800000: // below 2^16: the exponent is 112 smaller; a carry reaches infinity by itself.
		return sign | uint16((b-112<<23+0xfff+b>>13&1)>>13)
	case b <= infF32:
		return sign | infF16
	default:
		return nanF16
	}
}

// FromF16 returns the number that the bits of a binary16 stand for.
func FromF16(h uint16) float32 {
	sign, m := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	switch {
	case m > infF16:
		return math.Float32frombits(nanF32)
	case m == infF16:
		return math.Float32frombits(sign | infF32)
	default:
		// Moved into place the exponent is 112 too small; the product is exact, and sets subnormal numbers right too.
		v := math.Float32frombits(m<<13) * 0x1p112
		return math.Float32frombits(sign | math.Float32bits(v))
	}
}

// EncodeF16 rounds src to binary16, two bytes each.
func EncodeF16(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for len(src) >= 4 && len(dst) >= 8 { // four at a time: one store
		a, b := math.Float32bits(src[0]), math.Float32bits(src[1])
		c, d := math.Float32bits(src[2]), math.Float32bits(src[3])
		binary.LittleEndian.PutUint64(dst, uint64(f16(a))|uint64(f16(b))<<16|uint64(f16(c))<<32|uint64(f16(d))<<48)
		src, dst = src[4:], dst[8:]
	}
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], ToF16(v))
	}
}

// DecodeF16 fills dst with binary16 numbers, two bytes each.
func DecodeF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for len(dst) >= 4 && len(src) >= 8 { // four at a time: one load
		u := binary.LittleEndian.Uint64(src)
		dst[0], dst[1] = FromF16(uint16(u)), FromF16(uint16(u>>16))
		dst[2], dst[3] = FromF16(uint16(u>>32)), FromF16(uint16(u>>48))
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = FromF16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}
