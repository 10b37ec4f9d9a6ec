package codec

import (
	"errors"
	"fmt"
)

// DType is a number format.
type DType uint8

// The formats. The zero value is F32.
const (
	F32    DType = iota // IEEE 754 binary32
	BF16                // the upper half of binary32
	F16                 // IEEE 754 binary16
	F8E4M3              // OCP float8, finite only
	MXFP4               // OCP blocks of 32 numbers of 4 bits; its exponents are stored apart
)

// ErrUnknownDType says that a name is not one of a format.
var ErrUnknownDType = errors.New("unknown number format")

// names are those that users write and read: in the configuration, in flags and in the description of an expert.
var names = [...]string{F32: "f32", BF16: "bf16", F16: "f16", F8E4M3: "f8_e4m3", MXFP4: "mxfp4"}

// ParseDType reads what String writes. The error matches ErrUnknownDType.
func ParseDType(s string) (DType, error) {
	for d, name := range names {
		if s == name {
			return DType(d), nil
		}
	}
	return 0, fmt.Errorf("%w: %q: expected one of %v", ErrUnknownDType, s, names)
}

// String returns the name, such as "bf16".
func (d DType) String() string {
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// Size returns the bytes that n elements take; for MXFP4 without their exponents, an odd n rounded up.
func (d DType) Size(n int) int {
	switch d {
	case F32:
		return 4 * n
	case BF16, F16:
		return 2 * n
	case F8E4M3:
		return n
	case MXFP4:
		return n/2 + n%2
	default:
		panic("codec: size of " + d.String())
	}
}

// Encode writes src in the format d to the first d.Size(len(src)) bytes of dst. Not for MXFP4: kernels read that themselves.
func Encode(dst []byte, d DType, src []float32) {
	switch d {
	case F32:
		EncodeF32(dst, src)
	case BF16:
		EncodeBF16(dst, src)
	case F16:
		EncodeF16(dst, src)
	case F8E4M3:
		EncodeF8E4M3(dst, src)
	default:
		panic("codec: encode to " + d.String())
	}
}

// Decode fills dst with numbers of the format d from the first d.Size(len(dst)) bytes of src. Not for MXFP4 either.
func Decode(dst []float32, d DType, src []byte) {
	switch d {
	case F32:
		DecodeF32(dst, src)
	case BF16:
		DecodeBF16(dst, src)
	case F16:
		DecodeF16(dst, src)
	case F8E4M3:
		DecodeF8E4M3(dst, src)
	default:
		panic("codec: decode from " + d.String())
	}
}
