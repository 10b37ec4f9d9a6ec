package wire

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	expertv1 "github.com/kwaai/kwaaid/proto/kwaai/expert/v1"
)

// Tensor is what a header says about float32 rows in the payload. The zero value is no tensor.
type Tensor struct {
	Rows, Hidden int         // both above 0
	Codec        codec.DType // how the numbers are written: F32, BF16 or F16
}

// Elements returns how many numbers the tensor holds.
func (t Tensor) Elements() int { return t.Rows * t.Hidden }

// Length returns the tensor's bytes in the payload.
func (t Tensor) Length() int64 { return int64(t.Elements()) * int64(codecBytes(t.Codec)) }

// codecBytes returns how many bytes a number takes in a payload; 0 for a codec that has no place there.
func codecBytes(c codec.DType) int {
	switch c {
	case codec.F32:
		return 4
	case codec.BF16, codec.F16:
		return 2
	default:
		return 0
	}
}

// CheckCodec returns an error that matches expert.ErrUnimplemented when the codec cannot be spoken on the wire.
func CheckCodec(c codec.DType) error {
	if codecBytes(c) == 0 {
		return fmt.Errorf("%w: codec %v: the wire knows f32, bf16 and f16", expert.ErrUnimplemented, c)
	}
	return nil
}

func codecToProto(c codec.DType) expertv1.Codec {
	switch c {
	case codec.F32:
		return expertv1.Codec_CODEC_F32
	case codec.BF16:
		return expertv1.Codec_CODEC_BF16
	case codec.F16:
		return expertv1.Codec_CODEC_F16
	default:
		return expertv1.Codec_CODEC_UNSPECIFIED
	}
}

func codecFromProto(c uint64) (codec.DType, error) {
	switch expertv1.Codec(min(c, math.MaxInt32)) {
	case expertv1.Codec_CODEC_F32:
		return codec.F32, nil
	case expertv1.Codec_CODEC_BF16:
		return codec.BF16, nil
	case expertv1.Codec_CODEC_F16:
		return codec.F16, nil
	default:
		return 0, fmt.Errorf("%w: codec %d: this host knows f32, bf16 and f16", expert.ErrUnimplemented, c)
	}
}

// dtypeF32 is DATA_TYPE_F32, the only one there is.
const dtypeF32 = 1

// append appends the tensor as a message.
func (t Tensor) append(dst []byte, number protowire.Number) []byte {
	dst, since := open(dst, number)
	dst = appendUint(dst, 1, dtypeF32)
	dst, shape := open(dst, 2)
	dst = protowire.AppendVarint(dst, uint64(t.Rows))
	dst = protowire.AppendVarint(dst, uint64(t.Hidden))
	dst = closeAt(dst, shape)
	dst = appendUint(dst, 3, uint64(codecToProto(t.Codec)))
	dst = appendUint(dst, 4, uint64(t.Length()))
	return closeAt(dst, since)
}

// claim is what a peer says about a tensor, before it is checked.
type claim struct {
	dtype, codec, length uint64
	shape                [2]uint64
	dimensions           int
}

// readClaim reads a tensor's message.
func readClaim(message []byte) (c claim, err error) {
	dimension := func(v uint64) {
		if c.dimensions < len(c.shape) {
			c.shape[c.dimensions] = v
		}
		c.dimensions++
	}
	for len(message) > 0 {
		var f field
		if f, message, err = nextField(message); err != nil {
			return c, err
		}
		switch {
		case f.is(1, protowire.VarintType):
			c.dtype = f.value
		case f.is(2, protowire.BytesType):
			for packed := f.bytes; len(packed) > 0; {
				v, n := protowire.ConsumeVarint(packed)
				if n < 0 {
					return c, malformed(n)
				}
				dimension(v)
				packed = packed[n:]
			}
		case f.is(2, protowire.VarintType):
			dimension(f.value)
		case f.is(3, protowire.VarintType):
			c.codec = f.value
		case f.is(4, protowire.VarintType):
			c.length = f.value
		default:
			if err := f.unknown(5); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

// check holds what a peer says about a tensor against itself and the limits. Errors match a status sentinel.
func (c *claim) check(limits Limits) (Tensor, error) {
	if c.dtype != dtypeF32 {
		return Tensor{}, fmt.Errorf("%w: dtype %d: expected float32", expert.ErrInvalidArgument, c.dtype)
	}
	if c.dimensions != 2 {
		return Tensor{}, fmt.Errorf("%w: a tensor of %d dimensions: expected [rows, hidden]", expert.ErrInvalidArgument, c.dimensions)
	}
	rows, hidden := c.shape[0], c.shape[1]
	if rows == 0 || hidden == 0 {
		return Tensor{}, fmt.Errorf("%w: an empty batch, [%d, %d]", expert.ErrInvalidArgument, rows, hidden)
	}
	if err := checkSize(rows, hidden, limits); err != nil {
		return Tensor{}, err
	}
	as, err := codecFromProto(c.codec)
	if err != nil {
		return Tensor{}, err
	}
	t := Tensor{Rows: int(rows), Hidden: int(hidden), Codec: as}
	if c.length != uint64(t.Length()) {
		return Tensor{}, fmt.Errorf("%w: a tensor [%d, %d] of %v takes %d bytes, the header says %d",
			expert.ErrInvalidArgument, t.Rows, t.Hidden, as, t.Length(), c.length)
	}
	return t, nil
}

// checkSize tells whether a frame may hold so many rows, of at least one number each.
func checkSize(rows, hidden uint64, limits Limits) error {
	// Divided, since a product may overflow.
	if most := uint64(limits.Frame / floatBytes); hidden > most || rows > most/hidden || rows > math.MaxInt32 || hidden > math.MaxInt32 {
		return fmt.Errorf("%w: [%d, %d] is above the %d bytes of float32 that a frame may hold", expert.ErrTooLarge, rows, hidden, limits.Frame)
	}
	return nil
}
