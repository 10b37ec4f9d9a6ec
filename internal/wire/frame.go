package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// headerStep is how much of a header is believed before it has arrived: most headers are shorter, and a longer one costs its
// sender as many bytes as it costs us.
const headerStep = 16 * kib

// ReadHeader reads a frame up to its payload and returns the header, which lives in buf's memory or in a larger slice that
// replaces it; give that back as buf next time. A stream that ends before the first byte gives io.EOF; a length above limit or
// one that is not minimal gives ErrMalformed.
func ReadHeader(r *bufio.Reader, buf []byte, limit int) ([]byte, error) {
	length, err := readUvarint(r)
	if err != nil {
		return buf[:0], err
	}
	if length > uint64(limit) {
		return buf[:0], fmt.Errorf("%w: a header of %d bytes, above the limit of %d", ErrMalformed, length, limit)
	}
	buf = buf[:0]
	for rest := int(length); rest > 0; {
		step := min(rest, max(headerStep, len(buf)))
		buf = slices.Grow(buf, step)
		part := buf[len(buf) : len(buf)+step]
		if _, err := io.ReadFull(r, part); err != nil {
			return buf[:0], midFrame(err)
		}
		buf = buf[:len(buf)+step]
		rest -= step
	}
	return buf, nil
}

// HeaderLength returns what a header of n bytes takes in its frame, its length included.
func HeaderLength(n int) int { return protowire.SizeVarint(uint64(n)) + n }

// readUvarint reads the header's length. Five bytes are enough for every limit that Validate lets through.
func readUvarint(r *bufio.Reader) (uint64, error) {
	const maxBytes = 5
	var v uint64
	for i := range maxBytes {
		b, err := r.ReadByte()
		if err != nil {
			if i > 0 {
				err = midFrame(err)
			}
			return 0, err
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			if b == 0 && i > 0 {
				return 0, fmt.Errorf("%w: a length that is not minimal", ErrMalformed)
			}
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: a length of more than %d bytes", ErrMalformed, maxBytes)
}

// midFrame names the end of a stream that comes inside a frame.
func midFrame(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
