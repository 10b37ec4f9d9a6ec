package npy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"unsafe"
)

const (
	unknownSize = -1
	// trust is how many elements are allocated on a header's word alone when the file's size is not known (256 KiB of float32); beyond
	// it, memory is taken only as fast as the bytes that fill it arrive.
	trust = 64 << 10
	// chunk is how many bytes are converted at a time (a multiple of 8, small enough for a core's first cache).
	chunk = 16 << 10
)

// Read decodes one array file that fills r to its end: its shape, one to three dimensions, and its elements in C order, the last
// dimension running fastest. float16 and float64 become float32; Fortran order is turned round, which needs the memory twice.
// limit bounds the bytes of the elements, as they come and as float32. Memory is taken as the bytes that fill it arrive, whatever the
// header claims; see ReadSized for a source that says how long it is. The error matches ErrFormat or ErrTooLarge, or is r's.
func Read(r io.Reader, limit int64) (shape []int, data []float32, err error) {
	return read(r, unknownSize, limit)
}

// ReadSized is Read for a file that is size bytes long. A header that claims anything else is refused before memory is taken, and
// what it claims is then taken at once.
func ReadSized(r io.Reader, size, limit int64) (shape []int, data []float32, err error) {
	return read(r, max(size, 0), limit)
}

func read(r io.Reader, size, limit int64) ([]int, []float32, error) {
	h, err := readHeader(r)
	if err != nil {
		return nil, nil, err
	}
	payload := int64(h.elements) * int64(h.itemSize)
	if most := int64(h.elements) * int64(max(h.itemSize, 4)); most > limit {
		return nil, nil, fmt.Errorf("%w: shape %v takes %d bytes, at most %d are allowed", ErrTooLarge, h.shape, most, limit)
	}
	if claimed := int64(h.length) + payload; size != unknownSize && size != claimed {
		return nil, nil, fmt.Errorf("%w: its header claims %d bytes in all (shape %v), the file has %d", ErrFormat, claimed, h.shape, size)
	}
	data, err := readElements(r, h, size != unknownSize)
	if err != nil {
		return nil, nil, err
	}
	var more [1]byte
	switch _, err := io.ReadFull(r, more[:]); {
	case err == nil:
		return nil, nil, fmt.Errorf("%w: bytes follow the array", ErrFormat)
	case !errors.Is(err, io.EOF):
		return nil, nil, err
	}
	if h.fortran && len(h.shape) > 1 {
		data = fromFortran(data, h.shape)
	}
	return h.shape, data, nil
}

// readElements reads in the file's order. When the size is vouched for, the memory is taken once.
func readElements(r io.Reader, h header, vouched bool) ([]float32, error) {
	room := h.elements
	if !vouched {
		room = min(room, trust)
	}
	data := make([]float32, room)
	for done := 0; ; {
		if err := readFloats(r, data[done:], h.itemSize); err != nil {
			return nil, err
		}
		if done = len(data); done == h.elements {
			return data, nil
		}
		grown := make([]float32, min(h.elements, 4*done))
		copy(grown, data)
		data = grown
	}
}

// readFloats fills dst from little-endian IEEE floats of itemSize bytes.
func readFloats(r io.Reader, dst []float32, itemSize int) error {
	if itemSize == 4 && littleEndian {
		return readFull(r, rawBytes(dst), "elements")
	}
	var buf [chunk]byte
	for len(dst) > 0 {
		n := min(len(dst), chunk/itemSize)
		b := buf[:n*itemSize]
		if err := readFull(r, b, "elements"); err != nil {
			return err
		}
		for i := range n {
			switch itemSize {
			case 2:
				dst[i] = fromHalf(binary.LittleEndian.Uint16(b[2*i:]))
			case 4:
				dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
			case 8:
				dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:])))
			}
		}
		dst = dst[n:]
	}
	return nil
}

// fromFortran returns the elements with the last dimension running fastest instead of the first.
func fromFortran(src []float32, shape []int) []float32 {
	dst := make([]float32, len(src))
	first, last := shape[0], shape[len(shape)-1]
	middle := 1
	if len(shape) == 3 {
		middle = shape[1]
	}
	for i := range first {
		for j := range middle {
			for k := range last {
				dst[(i*middle+j)*last+k] = src[i+first*(j+middle*k)]
			}
		}
	}
	return dst
}

// fromHalf converts an IEEE 754 binary16, exactly.
func fromHalf(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch exponent {
	case 0x1f: // infinities and NaNs keep their payload
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	case 0: // zeros and subnormals are multiples of 2^-24, which float32 holds exactly
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)*0x1p-24))
	default:
		return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
	}
}

// littleEndian tells whether this machine's floats have the bytes of the file.
var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// rawBytes returns f's memory.
func rawBytes(f []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 4*len(f))
}
