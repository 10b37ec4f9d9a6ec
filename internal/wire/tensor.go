package wire

import (
	"fmt"

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

func codecFromProto(c expertv1.Codec) (codec.DType, error) {
	switch c {
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

// toProto returns nil for the zero value.
func (t Tensor) toProto() *expertv1.Tensor {
	if t.Rows == 0 {
		return nil
	}
	return &expertv1.Tensor{
		Dtype:  expertv1.DataType_DATA_TYPE_F32,
		Shape:  []uint32{uint32(t.Rows), uint32(t.Hidden)},
		Codec:  codecToProto(t.Codec),
		Length: uint64(t.Length()),
	}
}

// tensorFromProto checks what a peer says about a tensor. Errors match a status sentinel.
func tensorFromProto(p *expertv1.Tensor, limits Limits) (Tensor, error) {
	if p.GetDtype() != expertv1.DataType_DATA_TYPE_F32 {
		return Tensor{}, fmt.Errorf("%w: dtype %d: expected float32", expert.ErrInvalidArgument, p.GetDtype())
	}
	shape := p.GetShape()
	if len(shape) != 2 {
		return Tensor{}, fmt.Errorf("%w: a tensor of %d dimensions: expected [rows, hidden]", expert.ErrInvalidArgument, len(shape))
	}
	if shape[0] == 0 || shape[1] == 0 {
		return Tensor{}, fmt.Errorf("%w: an empty batch, [%d, %d]", expert.ErrInvalidArgument, shape[0], shape[1])
	}
	// Two uint32 multiply without overflow in a uint64.
	if elements := uint64(shape[0]) * uint64(shape[1]); elements > uint64(limits.maxElements()) {
		return Tensor{}, fmt.Errorf("%w: [%d, %d] is above %d bytes of float32 in a frame", expert.ErrTooLarge, shape[0], shape[1], limits.Frame)
	}
	c, err := codecFromProto(p.GetCodec())
	if err != nil {
		return Tensor{}, err
	}
	t := Tensor{Rows: int(shape[0]), Hidden: int(shape[1]), Codec: c}
	if p.GetLength() != uint64(t.Length()) {
		return Tensor{}, fmt.Errorf("%w: a tensor [%d, %d] of %v takes %d bytes, the header says %d",
			expert.ErrInvalidArgument, t.Rows, t.Hidden, c, t.Length(), p.GetLength())
	}
	return t, nil
}
