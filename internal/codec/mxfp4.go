package codec

import "math"

// MXBlock is the number of MXFP4 elements that share an exponent.
const MXBlock = 32

// e2m1 holds the numbers of 4 bits: a sign, two bits of exponent, one of fraction.
var e2m1 = [16]float32{0, 0.5, 1, 1.5, 2, 3, 4, 6, float32(math.Copysign(0, -1)), -0.5, -1, -1.5, -2, -3, -4, -6}

// FromE2M1 returns the number that the lower four bits of q stand for.
func FromE2M1(q byte) float32 { return e2m1[q&15] }

// FromE8M0 returns the scale that an exponent of MXFP4 stands for, 2^(e-127); 255, which the format keeps for NaN, gives NaN.
func FromE8M0(e byte) float32 {
	switch e {
	case 0:
		return 0x1p-127
	case 255:
		return math.Float32frombits(nanF32)
	default:
		return math.Float32frombits(uint32(e) << 23)
	}
}

// DecodeMXFP4 fills dst with MXFP4 numbers: element i is the low (i even) or high half of blocks[i/2], times 2^(exponents[i/32]-127).
func DecodeMXFP4(dst []float32, blocks, exponents []byte) {
	for i := range dst {
		dst[i] = FromE2M1(blocks[i/2]>>(i%2*4)) * FromE8M0(exponents[i/MXBlock])
	}
}

// EncodeMXFP4 writes src as DecodeMXFP4 reads it. A block's exponent is that of its largest element, less the two that 4 to 6 need
// (OCP Microscaling 1.0, section 6.3); elements round to nearest even, and to ±6 above. A block with a NaN or an infinity becomes NaN.
func EncodeMXFP4(blocks, exponents []byte, src []float32) {
	for start := 0; start < len(src); start += MXBlock {
		block := src[start:min(start+MXBlock, len(src))]
		e := mxExponent(block)
		exponents[start/MXBlock] = e
		// In float64 neither the scale nor its inverse leaves the range of normal numbers.
		inverse := math.Ldexp(1, 127-int(e))
		for i := range block {
			q := toE2M1(float64(block[i]) * inverse)
			if at := (start + i) / 2; (start+i)%2 == 0 {
				blocks[at] = q
			} else {
				blocks[at] |= q << 4
			}
		}
	}
}

func mxExponent(block []float32) byte {
	var largest uint32
	for _, v := range block {
		largest = max(largest, math.Float32bits(v)&^signF32)
	}
	if largest >= infF32 {
		return 255
	}
	return byte(max(int(largest>>23)-2, 0))
}

// toE2M1 rounds v to nearest even; a NaN becomes 0, since its block's exponent says NaN already.
func toE2M1(v float64) byte {
	var sign byte
	if math.Signbit(v) {
		sign, v = 8, -v
	}
	// The places between two neighbours; a tie goes to the one with an even code.
	for q, middle := range [...]float64{0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5} {
		if v < middle || (v == middle && q%2 == 0) {
			return sign | byte(q)
		}
	}
	if v > 5 {
		return sign | 7
	}
	return 0
}
