package npy

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

const (
	// align is the multiple of bytes at which NumPy has the elements begin, so that a mapped file can be computed on.
	align = 64
	// growth is the room for digits that NumPy leaves behind the dictionary, so that the first dimension can grow in place.
	growth = 21
)

// Write writes data in C order as float32, version 1.0, byte for byte what numpy.save writes. shape has at least one dimension and
// its product is len(data).
func Write(w io.Writer, shape []int, data []float32) error {
	n := 1
	for _, d := range shape {
		n *= d
	}
	if len(shape) == 0 || n != len(data) {
		return fmt.Errorf("shape %v has %d elements, the data %d", shape, n, len(data))
	}
	if _, err := w.Write(encodeHeader(shape)); err != nil {
		return err
	}
	return writeFloats(w, data)
}

// Size returns how many bytes Write writes.
func Size(shape []int) int64 {
	n := int64(4)
	for _, d := range shape {
		n *= int64(d)
	}
	return int64(len(encodeHeader(shape))) + n
}

// encodeHeader returns everything before the elements; a handful of dimensions stays far below version 1.0's 64 KiB.
func encodeHeader(shape []int) []byte {
	dims := make([]string, len(shape))
	for i, d := range shape {
		dims[i] = strconv.Itoa(d)
	}
	tuple := strings.Join(dims, ", ")
	if len(dims) == 1 {
		tuple += ","
	}
	dict := "{'descr': '<f4', 'fortran_order': False, 'shape': (" + tuple + "), }"
	dict += strings.Repeat(" ", growth-len(dims[0]))
	length := len(magic) + 4 + len(dict) + 1
	dict += strings.Repeat(" ", (align-length%align)%align) + "\n"
	b := append(make([]byte, 0, len(magic)+4+len(dict)), magic...)
	b = append(b, 1, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(dict)))
	return append(b, dict...)
}

// writeFloats writes little-endian bytes, from the memory itself where that is what it holds.
func writeFloats(w io.Writer, data []float32) error {
	if littleEndian {
		_, err := w.Write(rawBytes(data))
		return err
	}
	var buf [chunk]byte
	for len(data) > 0 {
		n := min(len(data), chunk/4)
		for i, v := range data[:n] {
			binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
		}
		if _, err := w.Write(buf[:4*n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
