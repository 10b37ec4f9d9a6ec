package codec

import (
	"encoding/binary"
	"math"
)

const (
	nanF32  = 0x7fc00000
	nanBF16 = 0x7fc0

	signF32 = 1 << 31
	infF32  = 0x7f800000
)

// ToBF16 rounds v to bfloat16 and returns its bits.
func ToBF16(v float32) uint16 { return bf16(math.Float32bits(v)) }

func bf16(b uint32) uint16 {
	if b&^signF32 > infF32 {
		return nanBF16
	}
	// Half of the last kept place less one, plus one where that place is odd: a carry out of the dropped half rounds to nearest even,
	// and one out of the largest finite number gives infinity.
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// FromBF16 returns the number that the bits of a bfloat16 stand for.
func FromBF16(h uint16) float32 {
	if h&0x7fff > infF32>>16 {
		return math.Float32frombits(nanF32)
	}
	return math.Float32frombits(uint32(h) << 16)
}

// EncodeBF16 rounds src to bfloat16, two bytes each.
func EncodeBF16(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for len(src) >= 4 && len(dst) >= 8 { // four at a time: one store
		a, b := math.Float32bits(src[0]), math.Float32bits(src[1])
		c, d := math.Float32bits(src[2]), math.Float32bits(src[3])
		binary.LittleEndian.PutUint64(dst, uint64(bf16(a))|uint64(bf16(b))<<16|uint64(bf16(c))<<32|uint64(bf16(d))<<48)
		src, dst = src[4:], dst[8:]
	}
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], ToBF16(v))
	}
}

// DecodeBF16 fills dst with bfloat16 numbers, two bytes each.
func DecodeBF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for len(dst) >= 4 && len(src) >= 8 { // four at a time: one load
		u := binary.LittleEndian.Uint64(src)
		dst[0], dst[1] = FromBF16(uint16(u)), FromBF16(uint16(u>>16))
		dst[2], dst[3] = FromBF16(uint16(u>>32)), FromBF16(uint16(u>>48))
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = FromBF16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}
