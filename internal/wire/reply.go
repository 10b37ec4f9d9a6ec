package wire

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

// Result is what a reply's header says about a pair.
type Result struct {
	Status     Status
	Message    string        // for people
	RetryAfter time.Duration // with Overloaded
	// With OK:
	Digest   expert.Digest
	Numerics string
	Output   Tensor // [rows of the pair, hidden]; none with OpSum
}

// Reply is a header from host to caller.
type Reply struct {
	Status      Status // unless OK, the request as a whole was refused and there are no Results
	Message     string
	RetryAfter  time.Duration
	Load        expert.Load
	Results     []Result // of OpForward and OpSum, one per pair, in their order
	Sum         Tensor   // of OpSum, if any result is OK: [rows of the request, hidden]
	Description int64    // of OpDescribe: bytes of the payload, which DecodeDescription reads
}

// Answers tells whether any result holds an output.
func (r *Reply) Answers() bool {
	for i := range r.Results {
		if r.Results[i].Status == OK {
			return true
		}
	}
	return false
}

// Refusal makes the part of a reply that an error is.
func Refusal(err error) (s Status, message string, retryAfter time.Duration) {
	s = StatusOf(err)
	switch {
	case s == OK:
		return OK, "", 0
	case s == Timeout:
		s = DeadlineExceeded
	case !s.OnWire():
		s = Internal
	}
	if s == Internal {
		return s, "", 0 // what went wrong inside is for this host's log
	}
	if s == Overloaded {
		if e, ok := errors.AsType[*expert.OverloadedError](err); ok {
			retryAfter = e.RetryAfter
		}
	}
	return s, err.Error(), retryAfter
}

// AppendReply appends the frame up to its payload.
func AppendReply(dst []byte, r *Reply) []byte {
	dst, since := openFrame(dst)
	dst = appendUint(dst, 1, uint64(r.Status))
	dst = appendText(dst, 2, clip(r.Message))
	dst = appendUint(dst, 3, uint64(max(r.RetryAfter.Microseconds(), 0)))
	if r.Load != (expert.Load{}) {
		var load int
		dst, load = open(dst, 4)
		dst = appendUint(dst, 1, uint64(min(max(r.Load.QueuedRows, 0), math.MaxInt32)))
		dst = appendUint(dst, 2, uint64(max(r.Load.ServiceTime, 0)))
		dst = closeAt(dst, load)
	}
	for i := range r.Results {
		dst = appendResult(dst, &r.Results[i])
	}
	dst = appendUint(dst, 6, uint64(max(r.Description, 0)))
	if r.Sum.Rows > 0 {
		dst = r.Sum.append(dst, 7)
	}
	return closeAt(dst, since)
}

func appendResult(dst []byte, r *Result) []byte {
	dst, since := open(dst, 5)
	if r.Status == OK {
		if !r.Digest.IsZero() {
			dst = appendBytes(dst, 4, r.Digest[:])
		}
		dst = appendText(dst, 5, r.Numerics)
		if r.Output.Rows > 0 {
			dst = r.Output.append(dst, 6)
		}
	} else {
		dst = appendUint(dst, 1, uint64(r.Status))
		dst = appendText(dst, 2, clip(r.Message))
		dst = appendUint(dst, 3, uint64(max(r.RetryAfter.Microseconds(), 0)))
	}
	return closeAt(dst, since)
}

// Wanted is what the reply to a request has to look like. A reply that looks otherwise is refused before memory is taken for it.
type Wanted struct {
	Op          Op
	Pairs       []expert.Pair
	Rows        int // of the batch
	Hidden      int
	Codec       codec.DType
	Description int64 // the greatest length of a description
}

// DecodeReply reads a header and holds it against what was asked for: the number of results, each output's or the sum's dtype,
// shape, codec and length, and, where a pair pins one, the digest. Errors match expert.ErrBadReply. Nothing in the reply lives in header's
// memory.
func DecodeReply(header []byte, want Wanted) (Reply, error) {
	r, err := decodeReply(header, want)
	if err != nil {
		// In words alone: what the reply's claims match is not what the call came to.
		return Reply{}, fmt.Errorf("%w: %s", expert.ErrBadReply, err.Error())
	}
	return r, nil
}

func decodeReply(header []byte, want Wanted) (r Reply, err error) {
	if len(want.Pairs) > 0 {
		r.Results = make([]Result, 0, len(want.Pairs))
	}
	var sum claim
	hasSum := false
	for len(header) > 0 {
		var f field
		if f, header, err = nextField(header); err != nil {
			return r, err
		}
		switch {
		case f.is(1, protowire.VarintType):
			if r.Status, err = statusFromProto(f.value); err != nil {
				return r, err
			}
		case f.is(2, protowire.BytesType):
			r.Message = clip(f.bytes)
		case f.is(3, protowire.VarintType):
			r.RetryAfter = micros(f.value)
		case f.is(4, protowire.BytesType):
			if r.Load, err = readLoad(f.bytes); err != nil {
				return r, err
			}
		case f.is(5, protowire.BytesType):
			i := len(r.Results)
			if i == len(want.Pairs) {
				return r, fmt.Errorf("more results than %d pairs", len(want.Pairs))
			}
			result, err := readResult(f.bytes, want, want.Pairs[i])
			if err != nil {
				return r, fmt.Errorf("pair %d (%v): %w", i, want.Pairs[i].Expert, err)
			}
			r.Results = append(r.Results, result)
		case f.is(6, protowire.VarintType):
			if want.Op != OpDescribe || f.value > uint64(want.Description) {
				return r, fmt.Errorf("a description of %d bytes, above the limit of %d", f.value, want.Description)
			}
			r.Description = int64(f.value)
		case f.is(7, protowire.BytesType):
			hasSum = true
			if sum, err = readClaim(f.bytes); err != nil {
				return r, err
			}
		default:
			if err := f.unknown(8); err != nil {
				return r, err
			}
		}
	}
	summed := want.Op == OpSum && r.Answers()
	switch {
	case r.Status == OK && len(r.Results) != len(want.Pairs):
		return r, fmt.Errorf("%d results for %d pairs", len(r.Results), len(want.Pairs))
	case r.Status != OK && (len(r.Results) > 0 || r.Description > 0):
		return r, fmt.Errorf("%v with results", r.Status)
	case hasSum != summed:
		return r, fmt.Errorf("a sum is there: %t, expected: %t", hasSum, summed)
	case summed:
		if r.Sum, err = sum.expect(want.tensor(want.Rows)); err != nil {
			return r, fmt.Errorf("the sum: %w", err)
		}
	}
	return r, nil
}

// tensor is what so many rows have to look like.
func (w *Wanted) tensor(rows int) Tensor { return Tensor{Rows: rows, Hidden: w.Hidden, Codec: w.Codec} }

// expect holds what a host says about a tensor against what was asked for, which bounds what may come.
func (c *claim) expect(wanted Tensor) (Tensor, error) {
	t, err := c.check(Limits{Frame: int64(wanted.Elements()) * floatBytes})
	if err == nil && t != wanted {
		err = fmt.Errorf("[%d, %d] of %v, expected [%d, %d] of %v", t.Rows, t.Hidden, t.Codec, wanted.Rows, wanted.Hidden, wanted.Codec)
	}
	return t, err
}

func readLoad(message []byte) (l expert.Load, err error) {
	for len(message) > 0 {
		var f field
		if f, message, err = nextField(message); err != nil {
			return l, err
		}
		switch {
		case f.is(1, protowire.VarintType):
			l.QueuedRows = int(min(f.value, math.MaxInt32))
		case f.is(2, protowire.VarintType):
			l.ServiceTime = time.Duration(min(f.value, uint64(maxTimeout)))
		default:
			if err := f.unknown(3); err != nil {
				return l, err
			}
		}
	}
	return l, nil
}

// readResult reads a result's message and holds it against the pair that it answers.
func readResult(message []byte, want Wanted, pair expert.Pair) (r Result, err error) {
	var output claim
	hasOutput := false
	for len(message) > 0 {
		var f field
		if f, message, err = nextField(message); err != nil {
			return r, err
		}
		switch {
		case f.is(1, protowire.VarintType):
			if r.Status, err = statusFromProto(f.value); err != nil {
				return r, err
			}
		case f.is(2, protowire.BytesType):
			r.Message = clip(f.bytes)
		case f.is(3, protowire.VarintType):
			r.RetryAfter = micros(f.value)
		case f.is(4, protowire.BytesType):
			if len(f.bytes) != len(r.Digest) {
				return r, fmt.Errorf("a digest of %d bytes", len(f.bytes))
			}
			copy(r.Digest[:], f.bytes)
		case f.is(5, protowire.BytesType):
			if len(f.bytes) > maxNumerics || !utf8.Valid(f.bytes) {
				return r, fmt.Errorf("numerics of %d bytes", len(f.bytes))
			}
			r.Numerics = string(f.bytes)
			if strings.ContainsFunc(r.Numerics, unicode.IsControl) {
				return r, fmt.Errorf("numerics %q", r.Numerics)
			}
		case f.is(6, protowire.BytesType):
			hasOutput = true
			if output, err = readClaim(f.bytes); err != nil {
				return r, err
			}
		default:
			if err := f.unknown(7); err != nil {
				return r, err
			}
		}
	}
	if r.Status != OK {
		if hasOutput {
			return r, fmt.Errorf("%v with an output", r.Status)
		}
		return Result{Status: r.Status, Message: r.Message, RetryAfter: r.RetryAfter}, nil
	}
	if !pair.Digest.IsZero() && r.Digest != pair.Digest {
		return r, fmt.Errorf("digest %v, asked for %v", r.Digest, pair.Digest)
	}
	if want.Op == OpSum {
		if hasOutput {
			return r, errors.New("an output beside the sum")
		}
		return r, nil
	}
	if r.Output, err = output.expect(want.tensor(pair.RowCount(want.Rows))); err != nil {
		return r, fmt.Errorf("the output: %w", err)
	}
	return r, nil
}

// statusFromProto refuses what a host may not say: the statuses that only the caller's side knows. One that a later version may
// have added is Internal.
func statusFromProto(v uint64) (Status, error) {
	switch {
	case v >= statusCount:
		return Internal, nil
	case !Status(v).OnWire():
		return 0, fmt.Errorf("status %v, which is not a host's to say", Status(v))
	default:
		return Status(v), nil
	}
}

// clip makes a message fit for a header, a log line and a terminal: text of bounded length that controls nothing.
func clip[T string | []byte](message T) string {
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	s := string(message)
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		s = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, s)
	}
	return s
}
