package expert

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"strconv"
	"strings"

	"github.com/kwaai/kwaaid/internal/codec"
)

// initNamespace separates the keys of drawn tensors from all other uses of SHA-256; it changes when the generator does.
const initNamespace = "kwaai-init/v1"

// stream is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
type stream uint64

// newStream returns the stream of one tensor. Each has its own, so that no tensor depends on the sizes of another.
func newStream(seed uint64, tensor string) stream {
	sum := sha256.Sum256([]byte(strings.Join([]string{initNamespace, strconv.FormatUint(seed, 10), tensor}, "\x00")))
	return stream(binary.BigEndian.Uint64(sum[:8]))
}

func (s *stream) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// draw returns n elements of a tensor as they would be stored: uniform in [-1/√fanIn, 1/√fanIn), rounded to the dtype.
//
// An element is a step from the stream: its upper 24 bits less 2^23, times (1/√fanIn)·2^-23, one float32 product of exact
// factors, then rounded to the dtype (to nearest, ties to even). Nothing in it depends on the machine.
func draw(seed uint64, tensor string, n, fanIn int, dtype codec.DType) []byte {
	s := newStream(seed, tensor)
	step := float32(1/math.Sqrt(float64(fanIn))) * 0x1p-23
	stored := make([]byte, dtype.Size(n))
	var values [512]float32
	for at := 0; at < n; at += len(values) {
		chunk := values[:min(len(values), n-at)]
		for i := range chunk {
			chunk[i] = float32(int32(s.next()>>40)-1<<23) * step
		}
		codec.Encode(stored[dtype.Size(at):], dtype, chunk)
	}
	return stored
}

// constant returns n elements of one value as they would be stored.
func constant(v float32, n int, dtype codec.DType) []byte {
	values := make([]float32, n)
	for i := range values {
		values[i] = v
	}
	stored := make([]byte, dtype.Size(n))
	codec.Encode(stored, dtype, values)
	return stored
}
