package codec

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// wordSize is the size of a float32 in bytes.
const wordSize = 4

// littleEndian tells how this machine keeps numbers in memory; the compiler makes a constant of it.
func littleEndian() bool {
	one := uint16(1)
	return *(*byte)(unsafe.Pointer(&one)) == 1
}

// ViewBytes returns the memory of x as bytes, without a copy: what is written to one is read from the other.
// It returns false, and nothing, on a machine that keeps numbers big-endian: use EncodeF32 there.
func ViewBytes(x []float32) ([]byte, bool) {
	if !littleEndian() {
		return nil, false
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), wordSize*len(x)), true
}

// ViewFloats returns the memory of b as float32, without a copy. It returns false, and nothing, where that cannot be: on a big-endian
// machine, when b does not start at a multiple of four bytes, or when its length is no multiple of four. Use DecodeF32 then.
func ViewFloats(b []byte) ([]float32, bool) {
	p := unsafe.Pointer(unsafe.SliceData(b))
	if !littleEndian() || uintptr(p)%wordSize != 0 || len(b)%wordSize != 0 {
		return nil, false
	}
	return unsafe.Slice((*float32)(p), len(b)/wordSize), true
}

// EncodeF32 copies the bits of src to dst, four bytes each.
func EncodeF32(dst []byte, src []float32) {
	dst = dst[:wordSize*len(src)]
	if view, ok := ViewBytes(src); ok {
		copy(dst, view)
		return
	}
	for i, v := range src {
		binary.LittleEndian.PutUint32(dst[wordSize*i:], math.Float32bits(v))
	}
}

// DecodeF32 fills dst with the bits in src, four bytes each.
func DecodeF32(dst []float32, src []byte) {
	src = src[:wordSize*len(dst)]
	if view, ok := ViewBytes(dst); ok {
		copy(view, src)
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[wordSize*i:]))
	}
}
