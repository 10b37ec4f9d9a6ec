package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
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

// appendFrame appends the header's length and the header.
func appendFrame(dst []byte, m proto.Message) ([]byte, error) {
	opts := proto.MarshalOptions{}
	dst = binary.AppendUvarint(dst, uint64(opts.Size(m)))
	opts.UseCachedSize = true
	return opts.MarshalAppend(dst, m)
}

// unmarshal reads a header. Fields that this version does not know are dropped.
func unmarshal(header []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(header, m); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// checkRepeats walks over the header's outer fields and refuses one that holds a field more often than limit allows: the decoder
// would make a message for each, and two bytes are enough for a claim to one.
func checkRepeats(header []byte, limit func(protowire.Number) int) error {
	var seen [16]int // by field number; our messages have fewer fields
	for len(header) > 0 {
		number, kind, n := protowire.ConsumeTag(header)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
		}
		m := protowire.ConsumeFieldValue(number, kind, header[n:])
		if m < 0 {
			return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(m))
		}
		header = header[n+m:]
		if int(number) >= len(seen) {
			continue
		}
		seen[number]++
		if most := limit(number); seen[number] > most {
			return fmt.Errorf("%w: more than %d times field %d", ErrMalformed, most, number)
		}
	}
	return nil
}
