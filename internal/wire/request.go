package wire

import (
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Op is what a request asks for.
type Op uint8

// The ops. A decoder gives others through as they are: their host answers Unimplemented.
const (
	OpForward  Op = 1
	OpDescribe Op = 2
	OpPing     Op = 3
	OpGoodbye  Op = 4
	OpSum      Op = 5
)

// String returns the op's name as the logs show it.
func (o Op) String() string {
	switch o {
	case OpForward:
		return "forward"
	case OpDescribe:
		return "describe"
	case OpPing:
		return "ping"
	case OpGoodbye:
		return "goodbye"
	case OpSum:
		return "sum"
	default:
		return "unknown"
	}
}

// computes tells whether the op sends rows through experts.
func (o Op) computes() bool { return o == OpForward || o == OpSum }

// Request is a header from caller to host.
type Request struct {
	Op          Op
	Timeout     time.Duration // what is left of the deadline; 0: there is none
	Traceparent string        // W3C trace context; empty: not traced
	Input       Tensor        // of OpForward and OpSum
	Pairs       []expert.Pair // likewise; row indices are within Input, and with OpSum alone there are weights
}

const (
	// maxNumerics bounds the name of an order of operations, such as exact-1.
	maxNumerics = 64
	// traceparentBytes is the length of a W3C traceparent of version 00.
	traceparentBytes = 55
)

// AppendRequest appends the frame up to its payload. Its error matches expert.ErrInvalidArgument or expert.ErrTooLarge: a
// request that the limits forbid is not sent.
func AppendRequest(dst []byte, r *Request, limits Limits) ([]byte, error) {
	if err := r.check(limits); err != nil {
		return dst, err
	}
	before := len(dst)
	dst, since := openFrame(dst)
	dst = appendUint(dst, 1, uint64(r.Op))
	if r.Timeout > 0 {
		dst = appendUint(dst, 2, uint64(max(r.Timeout.Microseconds(), 1)))
	}
	dst = appendText(dst, 3, r.Traceparent)
	if r.Input.Rows > 0 {
		dst = r.Input.append(dst, 4)
	}
	for i := range r.Pairs {
		dst = appendPair(dst, &r.Pairs[i])
	}
	if n := len(dst) - since; n > limits.Header {
		return dst[:before], fmt.Errorf("%w: a header of %d bytes, above the limit of %d: send fewer pairs at once", expert.ErrTooLarge, n, limits.Header)
	}
	return closeAt(dst, since), nil
}

func appendPair(dst []byte, p *expert.Pair) []byte {
	dst, since := open(dst, 5)
	if p.Expert != 0 {
		dst = protowire.AppendFixed64(protowire.AppendTag(dst, 1, protowire.Fixed64Type), uint64(p.Expert))
	}
	if !p.Digest.IsZero() {
		dst = appendBytes(dst, 2, p.Digest[:])
	}
	dst = appendText(dst, 3, p.Numerics)
	if len(p.Rows) > 0 {
		var rows int
		dst, rows = open(dst, 4)
		for _, row := range p.Rows {
			dst = protowire.AppendVarint(dst, uint64(row))
		}
		dst = closeAt(dst, rows)
	}
	if len(p.Weights) > 0 {
		dst = protowire.AppendVarint(protowire.AppendTag(dst, 5, protowire.BytesType), 4*uint64(len(p.Weights)))
		for _, w := range p.Weights {
			dst = protowire.AppendFixed32(dst, math.Float32bits(w))
		}
	}
	return closeAt(dst, since)
}

// DecodeRequest reads a header and checks it. Nothing in r lives in header's memory.
//
// payload is how many bytes follow, known unless the error matches ErrMalformed. Other errors match a status sentinel: they are
// the answer to the request, and the stream is whole once its payload is skipped.
func DecodeRequest(header []byte, limits Limits) (r Request, payload int64, err error) {
	var op uint64
	var room pairRoom
	var input claim
	tensors := 0
	for len(header) > 0 {
		var f field
		if f, header, err = nextField(header); err != nil {
			return r, 0, err
		}
		switch {
		case f.is(1, protowire.VarintType):
			op = f.value
		case f.is(2, protowire.VarintType):
			r.Timeout = micros(f.value)
		case f.is(3, protowire.BytesType):
			if !utf8.Valid(f.bytes) {
				return r, 0, fmt.Errorf("%w: a trace context that is no text", ErrMalformed)
			}
			if len(f.bytes) == traceparentBytes { // others are of versions that this one does not know
				r.Traceparent = string(f.bytes)
			}
		case f.is(4, protowire.BytesType):
			tensors++
			if input, err = readClaim(f.bytes); err != nil {
				return r, 0, err
			}
			if input.length > math.MaxInt64-uint64(payload) {
				return r, 0, fmt.Errorf("%w: tensors of more than 2^63 bytes", ErrMalformed)
			}
			payload += int64(input.length)
		case f.is(5, protowire.BytesType):
			if len(r.Pairs) > limits.Pairs {
				continue // one too many is remembered, so that check refuses
			}
			if r.Pairs == nil {
				r.Pairs = make([]expert.Pair, 0, min(1+countFields(5, header), limits.Pairs+1))
			}
			r.Pairs = append(r.Pairs, expert.Pair{})
			if err = room.read(f.bytes, &r.Pairs[len(r.Pairs)-1]); err != nil {
				return r, 0, err
			}
		default:
			if err := f.unknown(6); err != nil {
				return r, 0, err
			}
		}
	}
	r.Op = Op(min(op, math.MaxUint8))
	switch r.Op {
	case OpForward, OpSum:
		if tensors != 1 {
			return r, payload, fmt.Errorf("%w: %v takes one tensor, not %d", expert.ErrInvalidArgument, r.Op, tensors)
		}
		if r.Input, err = input.check(limits); err != nil {
			return r, payload, err
		}
		return r, payload, r.check(limits)
	case OpDescribe, OpPing, OpGoodbye:
		if tensors > 0 || len(r.Pairs) > 0 {
			return r, payload, fmt.Errorf("%w: %v takes neither tensors nor pairs", expert.ErrInvalidArgument, r.Op)
		}
		return r, payload, nil
	default:
		return r, payload, fmt.Errorf("%w: op %d", expert.ErrUnimplemented, op)
	}
}

// maxTimeout keeps arithmetic on deadlines away from overflow.
const maxTimeout = 24 * time.Hour

// micros makes a duration of what a peer claims.
func micros(us uint64) time.Duration {
	return time.Duration(min(us, uint64(maxTimeout/time.Microsecond))) * time.Microsecond
}

// pairRoom is memory that all pairs of a request share. Should a later pair move a slice, those of the earlier ones stay where they are.
type pairRoom struct {
	rows    []int32
	weights []float32
}

// read reads a pair's message.
func (m *pairRoom) read(message []byte, p *expert.Pair) error {
	firstRow, firstWeight := len(m.rows), len(m.weights)
	row := func(v uint64) {
		// One that no int32 holds is outside of every batch, which check reports.
		m.rows = append(m.rows, int32(min(v, math.MaxInt32)))
	}
	for len(message) > 0 {
		f, rest, err := nextField(message)
		if err != nil {
			return err
		}
		message = rest
		switch {
		case f.is(1, protowire.Fixed64Type):
			p.Expert = expert.ID(f.value)
		case f.is(2, protowire.BytesType):
			if len(f.bytes) != len(p.Digest) {
				return fmt.Errorf("%w: a digest of %d bytes", ErrMalformed, len(f.bytes))
			}
			copy(p.Digest[:], f.bytes)
		case f.is(3, protowire.BytesType):
			if len(f.bytes) > maxNumerics || !utf8.Valid(f.bytes) {
				return fmt.Errorf("%w: numerics of %d bytes", ErrMalformed, len(f.bytes))
			}
			p.Numerics = string(f.bytes)
		case f.is(4, protowire.BytesType):
			for packed := f.bytes; len(packed) > 0; {
				v, n := protowire.ConsumeVarint(packed)
				if n < 0 {
					return malformed(n)
				}
				row(v)
				packed = packed[n:]
			}
		case f.is(4, protowire.VarintType):
			row(f.value)
		case f.is(5, protowire.BytesType):
			for packed := f.bytes; len(packed) > 0; {
				v, n := protowire.ConsumeFixed32(packed)
				if n < 0 {
					return malformed(n)
				}
				m.weights = append(m.weights, math.Float32frombits(v))
				packed = packed[n:]
			}
		case f.is(5, protowire.Fixed32Type):
			m.weights = append(m.weights, math.Float32frombits(uint32(f.value)))
		default:
			if err := f.unknown(6); err != nil {
				return err
			}
		}
	}
	if last := len(m.rows); last > firstRow {
		p.Rows = m.rows[firstRow:last:last]
	}
	if last := len(m.weights); last > firstWeight {
		p.Weights = m.weights[firstWeight:last:last]
	}
	return nil
}

// check tells whether a request may stand on the wire.
func (r *Request) check(limits Limits) error {
	if !r.Op.computes() {
		return nil
	}
	if r.Input.Rows < 1 || r.Input.Hidden < 1 {
		return fmt.Errorf("%w: an empty batch, [%d, %d]", expert.ErrInvalidArgument, r.Input.Rows, r.Input.Hidden)
	}
	if err := checkSize(uint64(r.Input.Rows), uint64(r.Input.Hidden), limits); err != nil {
		return err
	}
	if len(r.Pairs) == 0 {
		return fmt.Errorf("%w: %v without a pair of expert and rows", expert.ErrInvalidArgument, r.Op)
	}
	if len(r.Pairs) > limits.Pairs {
		return fmt.Errorf("%w: %d pairs, above the limit of %d", expert.ErrTooLarge, len(r.Pairs), limits.Pairs)
	}
	var answer int64 // rows of the reply
	for i := range r.Pairs {
		p := &r.Pairs[i]
		if len(p.Numerics) > maxNumerics || !utf8.ValidString(p.Numerics) {
			return pairError(i, p, "numerics %q", p.Numerics)
		}
		if p.Rows != nil && len(p.Rows) == 0 {
			return pairError(i, p, "no rows")
		}
		for _, row := range p.Rows {
			if row < 0 || int(row) >= r.Input.Rows {
				return pairError(i, p, "row %d of a batch of %d", row, r.Input.Rows)
			}
		}
		count := p.RowCount(r.Input.Rows)
		switch {
		case r.Op != OpSum && p.Weights != nil:
			return pairError(i, p, "weights, which %v has not", r.Op)
		case r.Op == OpSum && len(p.Weights) != count:
			return pairError(i, p, "%d weights for %d rows", len(p.Weights), count)
		}
		for _, w := range p.Weights {
			if w-w != 0 {
				return pairError(i, p, "a weight of %v", w)
			}
		}
		answer += int64(count)
	}
	if err := checkSize(uint64(answer), uint64(r.Input.Hidden), limits); err != nil {
		return fmt.Errorf("the reply: %w", err)
	}
	return nil
}

func pairError(i int, p *expert.Pair, format string, args ...any) error {
	return fmt.Errorf("%w: pair %d (%v): %s", expert.ErrInvalidArgument, i, p.Expert, fmt.Sprintf(format, args...))
}

// ReplyRows returns how many rows the experts' outputs have together at most.
func (r *Request) ReplyRows() int {
	rows := 0
	for i := range r.Pairs {
		rows += r.Pairs[i].RowCount(r.Input.Rows)
	}
	return rows
}

// IsRefusal tells whether an error of DecodeRequest is an answer to the request, rather than the end of its stream.
func IsRefusal(err error) bool { return err != nil && !errors.Is(err, ErrMalformed) }
