package wire

import (
	"io"
	"slices"
	"sync"

	"github.com/kwaai/kwaaid/internal/codec"
)

// chunkBytes is how much of a converted tensor stands in memory at once: as much as yamux puts into one of its frames.
const chunkBytes = 64 * kib

// chunks lends buffers of chunkBytes for the time of one WriteRows or ReadRows.
var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// AppendRows appends rows as a payload holds them. c is a codec of the wire.
func AppendRows(dst []byte, x []float32, c codec.DType) []byte {
	n := len(dst)
	end := n + len(x)*codecBytes(c)
	if end > cap(dst) {
		dst = slices.Grow(dst, end-n)
	}
	dst = dst[:end] // what lies there is overwritten
	codec.Encode(dst[n:], c, x)
	return dst
}

// WriteRows writes rows as a payload holds them: float32 straight from x where the machine is little-endian, else in chunks.
// c is a codec of the wire.
func WriteRows(w io.Writer, x []float32, c codec.DType) error {
	if c == codec.F32 {
		if b, ok := codec.ViewBytes(x); ok {
			_, err := w.Write(b)
			return err
		}
	}
	chunk := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(chunk)
	size := codecBytes(c)
	for len(x) > 0 {
		n := min(len(x), chunkBytes/size)
		codec.Encode(chunk[:n*size], c, x[:n])
		if _, err := w.Write(chunk[:n*size]); err != nil {
			return err
		}
		x = x[n:]
	}
	return nil
}

// ReadRows fills x from a payload: float32 straight into x where the machine is little-endian, else in chunks. c is a codec of
// the wire. A stream that ends before gives io.ErrUnexpectedEOF.
func ReadRows(r io.Reader, x []float32, c codec.DType) error {
	if c == codec.F32 {
		if b, ok := codec.ViewBytes(x); ok {
			_, err := io.ReadFull(r, b)
			return midFrame(err)
		}
	}
	chunk := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(chunk)
	size := codecBytes(c)
	for len(x) > 0 {
		n := min(len(x), chunkBytes/size)
		if _, err := io.ReadFull(r, chunk[:n*size]); err != nil {
			return midFrame(err)
		}
		codec.Decode(x[:n], c, chunk[:n*size])
		x = x[n:]
	}
	return nil
}
