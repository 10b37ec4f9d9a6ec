package gateway

import (
	"fmt"
	"math"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/wire"
)

// inferTensor is an input or output, in memory always float32.
type inferTensor struct {
	name     string
	datatype string // FP32, FP16 or BF16: how it travels
	shape    []int
	data     []float32 // row-major
}

// elements checks a claimed datatype and shape, and returns the codec and the number of elements; limit bounds their bytes, as they
// travel and as float32. Nothing is allocated for them yet.
func elements(name, datatype string, shape []int64, limit int64) (codec.DType, int, error) {
	d, ok := codecOf(datatype)
	if !ok {
		return 0, 0, refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has datatype %s: expected FP32, FP16 or BF16", quoted(name), quoted(datatype)))
	}
	if len(shape) == 0 || len(shape) > maxNesting {
		return 0, 0, refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has %d dimensions: expected 1 to %d", quoted(name), len(shape), maxNesting))
	}
	n := int64(1)
	for _, size := range shape {
		if size < 0 {
			return 0, 0, refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has shape %v: sizes are not negative", quoted(name), shape))
		}
		if size > 0 && n > math.MaxInt64/4/size {
			return 0, 0, tooLarge(limit, fmt.Sprintf("tensor %s has shape %v", quoted(name), shape))
		}
		n *= size
	}
	if 4*n > limit {
		return 0, 0, tooLarge(limit, fmt.Sprintf("tensor %s has shape %v: %d bytes", quoted(name), shape, 4*n))
	}
	return d, int(n), nil
}

// codecOf returns how a datatype travels.
func codecOf(datatype string) (codec.DType, bool) {
	switch datatype {
	case "FP32":
		return codec.F32, true
	case "FP16":
		return codec.F16, true
	case "BF16":
		return codec.BF16, true
	default:
		return 0, false
	}
}

// itemSize returns the bytes of an element of a datatype that codecOf knows.
func itemSize(d codec.DType) int {
	if d == codec.F32 {
		return 4
	}
	return 2
}

// decodeRaw makes n floats of a tensor's bytes. The floats may share raw's memory.
func decodeRaw(name string, d codec.DType, n int, raw []byte) ([]float32, error) {
	if want := n * itemSize(d); len(raw) != want {
		return nil, refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has %d bytes: its shape takes %d", quoted(name), len(raw), want))
	}
	if d == codec.F32 {
		if view, ok := codec.ViewFloats(raw); ok {
			return view, nil
		}
	}
	data := make([]float32, n)
	codec.Decode(data, d, raw)
	return data, nil
}

// encodeRaw returns a tensor's bytes as they travel; they may share its memory.
func encodeRaw(t inferTensor) []byte {
	d, _ := codecOf(t.datatype) // an output has the datatype of an input, which was checked
	if d == codec.F32 {
		if view, ok := codec.ViewBytes(t.data); ok {
			return view
		}
	}
	raw := make([]byte, len(t.data)*itemSize(d))
	codec.Encode(raw, d, t.data)
	return raw
}

// toInts converts a shape whose product was checked.
func toInts(shape []int64) []int {
	out := make([]int, len(shape))
	for i, size := range shape {
		out[i] = int(size)
	}
	return out
}

// toInt64s converts a shape.
func toInt64s(shape []int) []int64 {
	out := make([]int64, len(shape))
	for i, size := range shape {
		out[i] = int64(size)
	}
	return out
}
