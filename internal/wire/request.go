package wire

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kwaai/kwaaid/internal/expert"
	expertv1 "github.com/kwaai/kwaaid/proto/kwaai/expert/v1"
)

// Op is what a request asks for.
type Op uint8

// The ops. A decoder gives others through as they are: their host answers Unimplemented.
const (
	OpForward  Op = 1
	OpDescribe Op = 2
	OpPing     Op = 3
	OpGoodbye  Op = 4
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
	default:
		return "unknown"
	}
}

// Request is a header from caller to host.
type Request struct {
	Op          Op
	Timeout     time.Duration // what is left of the deadline; 0: there is none
	Traceparent string        // W3C trace context; empty: not traced
	Input       Tensor        // of OpForward
	Pairs       []expert.Pair // of OpForward; row indices are within Input
}

const (
	// digestBytes is the length of a SHA-256.
	digestBytes = 32
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
	m := &expertv1.Request{Op: expertv1.Op(r.Op), Traceparent: r.Traceparent}
	if r.Timeout > 0 {
		m.TimeoutUs = uint64(max(r.Timeout.Microseconds(), 1))
	}
	if t := r.Input.toProto(); t != nil {
		m.Tensors = []*expertv1.Tensor{t}
	}
	if len(r.Pairs) > 0 {
		store := make([]expertv1.Pair, len(r.Pairs))
		m.Pairs = make([]*expertv1.Pair, len(r.Pairs))
		for i := range r.Pairs {
			p := &r.Pairs[i]
			m.Pairs[i] = &store[i]
			store[i].Expert = uint64(p.Expert)
			store[i].Numerics = p.Numerics
			store[i].Rows = p.Rows
			if !p.Digest.IsZero() {
				store[i].Digest = p.Digest[:]
			}
		}
	}
	before := len(dst)
	dst, err := appendFrame(dst, m)
	if err != nil {
		return dst[:before], fmt.Errorf("%w: %w", expert.ErrInvalidArgument, err)
	}
	if n := len(dst) - before; n > limits.Header {
		return dst[:before], fmt.Errorf("%w: a header of %d bytes, above the limit of %d: send fewer pairs at once", expert.ErrTooLarge, n, limits.Header)
	}
	return dst, nil
}

// DecodeRequest reads a header and checks it. Nothing that it returns lives in header's memory.
//
// payload is how many bytes follow, known unless the error matches ErrMalformed. Other errors match a status sentinel: they are
// the answer to the request, and the stream is whole once its payload is skipped.
func DecodeRequest(header []byte, limits Limits) (r Request, payload int64, err error) {
	if err := checkRepeats(header, func(field protowire.Number) int {
		switch field {
		case 4: // tensors
			return maxTensors
		case 5: // pairs
			return limits.Pairs
		default:
			return math.MaxInt
		}
	}); err != nil {
		return r, 0, err
	}
	var m expertv1.Request
	if err := unmarshal(header, &m); err != nil {
		return r, 0, err
	}
	var total uint64
	for _, t := range m.GetTensors() {
		var carry uint64
		if total, carry = bits.Add64(total, t.GetLength(), 0); carry != 0 || total > math.MaxInt64 {
			return r, 0, fmt.Errorf("%w: tensors of more than 2^63 bytes", ErrMalformed)
		}
	}
	payload = int64(total)

	r.Op = Op(min(max(m.GetOp(), 0), math.MaxUint8))
	if us := m.GetTimeoutUs(); us > 0 {
		r.Timeout = time.Duration(min(us, uint64(maxTimeout/time.Microsecond))) * time.Microsecond
	}
	if len(m.GetTraceparent()) == traceparentBytes {
		r.Traceparent = m.GetTraceparent()
	}
	switch r.Op {
	case OpForward:
		err = r.decodeForward(&m, limits)
	case OpDescribe, OpPing, OpGoodbye:
		if len(m.GetTensors()) > 0 || len(m.GetPairs()) > 0 {
			err = fmt.Errorf("%w: %v takes neither tensors nor pairs", expert.ErrInvalidArgument, r.Op)
		}
	default:
		err = fmt.Errorf("%w: op %d", expert.ErrUnimplemented, m.GetOp())
	}
	return r, payload, err
}

const (
	// maxTensors bounds what is decoded; OpForward takes one, later ops may take a few.
	maxTensors = 8
	// maxTimeout keeps arithmetic on deadlines away from overflow.
	maxTimeout = 24 * time.Hour
)

func (r *Request) decodeForward(m *expertv1.Request, limits Limits) error {
	if n := len(m.GetTensors()); n != 1 {
		return fmt.Errorf("%w: forward takes one tensor, not %d", expert.ErrInvalidArgument, n)
	}
	var err error
	if r.Input, err = tensorFromProto(m.GetTensors()[0], limits); err != nil {
		return err
	}
	r.Pairs = make([]expert.Pair, len(m.GetPairs()))
	for i, p := range m.GetPairs() {
		to := &r.Pairs[i]
		to.Expert = expert.ID(p.GetExpert())
		to.Numerics = p.GetNumerics()
		to.Rows = p.GetRows()
		switch len(p.GetDigest()) {
		case 0:
		case digestBytes:
			copy(to.Digest[:], p.GetDigest())
		default:
			return pairError(i, to, "a digest of %d bytes, expected %d", len(p.GetDigest()), digestBytes)
		}
	}
	return r.check(limits)
}

// check tells whether a request may stand on the wire.
func (r *Request) check(limits Limits) error {
	if r.Op != OpForward {
		return nil
	}
	if r.Input.Rows < 1 || r.Input.Hidden < 1 {
		return fmt.Errorf("%w: an empty batch, [%d, %d]", expert.ErrInvalidArgument, r.Input.Rows, r.Input.Hidden)
	}
	// Divided, since the product of two ints may overflow.
	most := limits.maxElements() / int64(r.Input.Hidden)
	if int64(r.Input.Rows) > most || r.Input.Rows > math.MaxInt32 || r.Input.Hidden > math.MaxInt32 {
		return fmt.Errorf("%w: [%d, %d] is above %d bytes of float32 in a frame", expert.ErrTooLarge, r.Input.Rows, r.Input.Hidden, limits.Frame)
	}
	if len(r.Pairs) == 0 {
		return fmt.Errorf("%w: forward without a pair of expert and rows", expert.ErrInvalidArgument)
	}
	if len(r.Pairs) > limits.Pairs {
		return fmt.Errorf("%w: %d pairs, above the limit of %d", expert.ErrTooLarge, len(r.Pairs), limits.Pairs)
	}
	var answer int64 // rows of the reply
	for i := range r.Pairs {
		p := &r.Pairs[i]
		if len(p.Numerics) > maxNumerics {
			return pairError(i, p, "numerics of %d bytes, above %d", len(p.Numerics), maxNumerics)
		}
		if p.Rows != nil && len(p.Rows) == 0 {
			return pairError(i, p, "no rows")
		}
		for _, row := range p.Rows {
			if row < 0 || int(row) >= r.Input.Rows {
				return pairError(i, p, "row %d of a batch of %d", row, r.Input.Rows)
			}
		}
		answer += int64(p.RowCount(r.Input.Rows))
	}
	if answer > most {
		return fmt.Errorf("%w: the reply of %d rows of %d is above %d bytes of float32 in a frame", expert.ErrTooLarge, answer, r.Input.Hidden, limits.Frame)
	}
	return nil
}

func pairError(i int, p *expert.Pair, format string, args ...any) error {
	return fmt.Errorf("%w: pair %d (%v): %s", expert.ErrInvalidArgument, i, p.Expert, fmt.Sprintf(format, args...))
}

// ReplyRows returns how many rows the reply to OpForward holds at most.
func (r *Request) ReplyRows() int {
	rows := 0
	for i := range r.Pairs {
		rows += r.Pairs[i].RowCount(r.Input.Rows)
	}
	return rows
}

// IsRefusal tells whether an error of DecodeRequest is an answer to the request, rather than the end of its stream.
func IsRefusal(err error) bool { return err != nil && !errors.Is(err, ErrMalformed) }
