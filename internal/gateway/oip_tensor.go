package gateway

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/wire"
)

// inferTensor is an input or output. Floats are float32 in memory, whatever their datatype.
type inferTensor struct {
	name     string
	datatype string // FP32, FP16, BF16 or INT64: how it travels
	shape    []int
	data     []float32 // row-major; floats
	ints     []int64   // row-major; INT64
}

// count is how many elements are there.
func (t *inferTensor) count() int { return len(t.data) + len(t.ints) }

// datatype is how an element travels.
type datatype struct {
	size  int         // in bytes
	codec codec.DType // of floats
	ints  bool        // these are no floats
}

// datatypeOf returns what a datatype's name stands for.
func datatypeOf(name string) (datatype, bool) {
	switch name {
	case "FP32":
		return datatype{size: 4, codec: codec.F32}, true
	case "FP16":
		return datatype{size: 2, codec: codec.F16}, true
	case "BF16":
		return datatype{size: 2, codec: codec.BF16}, true
	case "INT64":
		return datatype{size: 8, ints: true}, true
	default:
		return datatype{}, false
	}
}

// plain tells whether JSON and typed contents have a form for the datatype.
func (d datatype) plain() bool { return d.ints || d.codec == codec.F32 }

// elements checks a claimed datatype and shape, and returns how they travel and the number of elements; limit bounds their bytes, as they
// travel and in memory. Nothing is allocated for them yet.
func elements(name, typeName string, shape []int64, limit int64) (datatype, int, error) {
	d, ok := datatypeOf(typeName)
	if !ok {
		return d, 0, refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has datatype %s: expected FP32, FP16, BF16 or INT64", quoted(name), quoted(typeName)))
	}
	if len(shape) == 0 || len(shape) > maxNesting {
		return d, 0, refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has %d dimensions: expected 1 to %d", quoted(name), len(shape), maxNesting))
	}
	n := int64(1)
	for _, size := range shape {
		if size < 0 {
			return d, 0, refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has shape %v: sizes are not negative", quoted(name), shape))
		}
		if size > 0 && n > math.MaxInt64/8/size {
			return d, 0, tooLarge(limit, fmt.Sprintf("tensor %s has shape %v", quoted(name), shape))
		}
		n *= size
	}
	if bytes := int64(max(d.size, 4)) * n; bytes > limit {
		return d, 0, tooLarge(limit, fmt.Sprintf("tensor %s has shape %v: %d bytes", quoted(name), shape, bytes))
	}
	return d, int(n), nil
}

// decodeRaw fills in a tensor's n elements from its bytes, whose memory they may share.
func (t *inferTensor) decodeRaw(d datatype, n int, raw []byte) error {
	if want := n * d.size; len(raw) != want {
		return refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s has %d bytes: its shape takes %d", quoted(t.name), len(raw), want))
	}
	if d.ints {
		t.ints = make([]int64, n)
		for i := range t.ints {
			t.ints[i] = int64(binary.LittleEndian.Uint64(raw[8*i:]))
		}
		return nil
	}
	if d.codec == codec.F32 {
		if view, ok := codec.ViewFloats(raw); ok {
			t.data = view
			return nil
		}
	}
	t.data = make([]float32, n)
	codec.Decode(t.data, d.codec, raw)
	return nil
}

// encodeRaw returns a tensor's bytes as they travel; they may share its memory.
func (t *inferTensor) encodeRaw() []byte {
	d, _ := datatypeOf(t.datatype) // an output has the datatype of an input, which was checked, or one of its own
	if d.ints {
		raw := make([]byte, 0, len(t.ints)*d.size)
		for _, v := range t.ints {
			raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
		}
		return raw
	}
	if d.codec == codec.F32 {
		if view, ok := codec.ViewBytes(t.data); ok {
			return view
		}
	}
	raw := make([]byte, len(t.data)*d.size)
	codec.Encode(raw, d.codec, t.data)
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
