package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Headers are protobuf, and proto/kwaai/expert/v1 is what they are. They are written and read here by hand, field by field: the
// generated code takes 10 µs and 30 allocations for what an exchange carries, a quarter of its time, and makes messages before a
// limit can be checked. The tests hold the two against each other.

// field is one field of a message. Either value or bytes is set, as kind says.
type field struct {
	number protowire.Number
	kind   protowire.Type
	value  uint64 // varint, fixed64 or fixed32
	bytes  []byte // within the message's memory
}

// nextField cuts the first field from a message; rest is what follows.
func nextField(message []byte) (f field, rest []byte, err error) {
	var n int
	if f.number, f.kind, n = protowire.ConsumeTag(message); n < 0 {
		return f, nil, malformed(n)
	}
	if !f.number.IsValid() { // ConsumeTag takes numbers up to 2^31
		return f, nil, fmt.Errorf("%w: field %d", ErrMalformed, f.number)
	}
	message = message[n:]
	switch f.kind {
	case protowire.VarintType:
		f.value, n = protowire.ConsumeVarint(message)
	case protowire.Fixed64Type:
		f.value, n = protowire.ConsumeFixed64(message)
	case protowire.Fixed32Type:
		var v uint32
		v, n = protowire.ConsumeFixed32(message)
		f.value = uint64(v)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(message)
	default: // groups, which we have none of
		n = protowire.ConsumeFieldValue(f.number, f.kind, message)
	}
	if n < 0 {
		return f, nil, malformed(n)
	}
	return f, message[n:], nil
}

// countFields counts a message's fields of that number, up to the first that is malformed.
func countFields(number protowire.Number, message []byte) (count int) {
	for len(message) > 0 {
		f, rest, err := nextField(message)
		if err != nil {
			break
		}
		if f.number == number {
			count++
		}
		message = rest
	}
	return count
}

func malformed(n int) error { return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n)) }

// errKind: a field that we know has another kind than ours.
var errKind = errors.New("a field of the wrong kind")

// is tells whether the field is one of a message's, by number and kind. A field with our number and another kind is an error,
// which the caller's next look at it reports.
func (f *field) is(number protowire.Number, kind protowire.Type) bool {
	return f.number == number && f.kind == kind
}

// unknown returns an error when the field's number is below limit, that is one of a message's own which no case took.
func (f *field) unknown(limit protowire.Number) error {
	if f.number < limit {
		return fmt.Errorf("%w: field %d: %w", ErrMalformed, f.number, errKind)
	}
	return nil
}

func appendUint(dst []byte, number protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, number, protowire.VarintType), v)
}

func appendBytes(dst []byte, number protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, number, protowire.BytesType), v)
}

func appendText(dst []byte, number protowire.Number, v string) []byte {
	if v == "" {
		return dst
	}
	return protowire.AppendString(protowire.AppendTag(dst, number, protowire.BytesType), v)
}

// open begins a message inside a message; close, with what open returned, ends it.
func open(dst []byte, number protowire.Number) ([]byte, int) {
	return openFrame(protowire.AppendTag(dst, number, protowire.BytesType))
}

// openFrame leaves room for a length of one byte, which is enough for most.
func openFrame(dst []byte) ([]byte, int) { return append(dst, 0), len(dst) + 1 }

// closeAt writes the length of what was appended since.
func closeAt(dst []byte, since int) []byte {
	length := uint64(len(dst) - since)
	if more := protowire.SizeVarint(length) - 1; more > 0 {
		var room [binary.MaxVarintLen64]byte
		dst = append(dst, room[:more]...)
		copy(dst[since+more:], dst[since:])
	}
	binary.PutUvarint(dst[since-1:], length)
	return dst
}
