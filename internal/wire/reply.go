package wire

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	expertv1 "github.com/kwaai/kwaaid/proto/kwaai/expert/v1"
)

// Result is what a reply's header says about a pair.
type Result struct {
	Status     Status
	Message    string        // for people
	RetryAfter time.Duration // with Overloaded
	// With OK:
	Digest   expert.Digest
	Numerics string
	Output   Tensor // [rows of the pair, hidden]
}

// Reply is a header from host to caller.
type Reply struct {
	Status      Status // unless OK, the request as a whole was refused and there are no Results
	Message     string
	RetryAfter  time.Duration
	Load        expert.Load
	Results     []Result // of OpForward, one per pair, in their order
	Description int64    // of OpDescribe: bytes of the payload, which DecodeDescription reads
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

// AppendReply appends the frame up to its payload. It fails only when the reply's strings are no text.
func AppendReply(dst []byte, r *Reply) ([]byte, error) {
	m := &expertv1.Reply{
		Status: expertv1.Status(r.Status), Message: clip(r.Message), RetryAfterUs: micros(r.RetryAfter),
		DescriptionLength: uint64(max(r.Description, 0)),
	}
	if r.Load != (expert.Load{}) {
		m.Load = &expertv1.Load{
			QueuedRows:    uint32(min(max(r.Load.QueuedRows, 0), math.MaxInt32)),
			ServiceTimeNs: uint64(max(r.Load.ServiceTime, 0)),
		}
	}
	if len(r.Results) > 0 {
		store := make([]expertv1.Result, len(r.Results))
		m.Results = make([]*expertv1.Result, len(r.Results))
		for i := range r.Results {
			from, to := &r.Results[i], &store[i]
			m.Results[i] = to
			to.Status = expertv1.Status(from.Status)
			if from.Status != OK {
				to.Message, to.RetryAfterUs = clip(from.Message), micros(from.RetryAfter)
				continue
			}
			if !from.Digest.IsZero() {
				to.Digest = from.Digest[:]
			}
			to.Numerics = from.Numerics
			to.Output = from.Output.toProto()
		}
	}
	return appendFrame(dst, m)
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

// DecodeReply reads a header and holds it against what was asked for: the number of results, and each output's dtype, shape,
// codec, length and, where the pair pins one, digest. Errors match expert.ErrBadReply. Nothing in the reply lives in header's
// memory.
func DecodeReply(header []byte, want Wanted) (Reply, error) {
	r, err := decodeReply(header, want)
	if err != nil {
		return Reply{}, fmt.Errorf("%w: %w", expert.ErrBadReply, err)
	}
	return r, nil
}

func decodeReply(header []byte, want Wanted) (r Reply, err error) {
	if err := checkRepeats(header, func(field protowire.Number) int {
		if field == 5 { // results
			return len(want.Pairs)
		}
		return math.MaxInt
	}); err != nil {
		return r, err
	}
	var m expertv1.Reply
	if err := unmarshal(header, &m); err != nil {
		return r, err
	}
	r.Load = expert.Load{
		QueuedRows:  int(min(m.GetLoad().GetQueuedRows(), math.MaxInt32)),
		ServiceTime: nanos(m.GetLoad().GetServiceTimeNs()),
	}
	if r.Status, err = statusFromProto(m.GetStatus()); err != nil {
		return r, err
	}
	if r.Status != OK {
		r.Message, r.RetryAfter = clip(m.GetMessage()), duration(m.GetRetryAfterUs())
		if len(m.GetResults()) > 0 || m.GetDescriptionLength() > 0 {
			return r, fmt.Errorf("%v with results", r.Status)
		}
		return r, nil
	}
	if n := m.GetDescriptionLength(); n > 0 {
		if want.Op != OpDescribe {
			return r, fmt.Errorf("a description that was not asked for")
		}
		if n > uint64(want.Description) {
			return r, fmt.Errorf("a description of %d bytes, above the limit of %d", n, want.Description)
		}
		r.Description = int64(n)
	}
	if len(m.GetResults()) != len(want.Pairs) {
		return r, fmt.Errorf("%d results for %d pairs", len(m.GetResults()), len(want.Pairs))
	}
	if len(want.Pairs) == 0 {
		return r, nil
	}
	r.Results = make([]Result, len(want.Pairs))
	for i, from := range m.GetResults() {
		if r.Results[i], err = resultFromProto(from, want, want.Pairs[i]); err != nil {
			return r, fmt.Errorf("pair %d (%v): %w", i, want.Pairs[i].Expert, err)
		}
	}
	return r, nil
}

func resultFromProto(m *expertv1.Result, want Wanted, pair expert.Pair) (r Result, err error) {
	if r.Status, err = statusFromProto(m.GetStatus()); err != nil {
		return r, err
	}
	if r.Status != OK {
		if m.GetOutput() != nil {
			return r, fmt.Errorf("%v with an output", r.Status)
		}
		r.Message, r.RetryAfter = clip(m.GetMessage()), duration(m.GetRetryAfterUs())
		return r, nil
	}
	switch len(m.GetDigest()) {
	case 0:
	case digestBytes:
		copy(r.Digest[:], m.GetDigest())
	default:
		return r, fmt.Errorf("a digest of %d bytes", len(m.GetDigest()))
	}
	if !pair.Digest.IsZero() && r.Digest != pair.Digest {
		return r, fmt.Errorf("digest %v, asked for %v", r.Digest, pair.Digest)
	}
	if r.Numerics = m.GetNumerics(); len(r.Numerics) > maxNumerics {
		return r, fmt.Errorf("numerics of %d bytes", len(r.Numerics))
	}
	output := Tensor{Rows: pair.RowCount(want.Rows), Hidden: want.Hidden, Codec: want.Codec}
	// What was asked for bounds what may come, so the limit is the tensor itself.
	if r.Output, err = tensorFromProto(m.GetOutput(), Limits{Frame: int64(output.Elements()) * floatBytes}); err != nil {
		return r, err
	}
	if r.Output != output {
		return r, fmt.Errorf("output [%d, %d] of %v, expected [%d, %d] of %v",
			r.Output.Rows, r.Output.Hidden, r.Output.Codec, output.Rows, output.Hidden, output.Codec)
	}
	return r, nil
}

// statusFromProto refuses what a host may not say: the statuses that only the caller's side knows. One that a later version may
// have added is Internal.
func statusFromProto(s expertv1.Status) (Status, error) {
	switch {
	case s < 0:
		return 0, fmt.Errorf("status %d", s)
	case Status(min(s, math.MaxUint8)).OnWire():
		return Status(s), nil
	case s < statusCount:
		return 0, fmt.Errorf("status %v, which is not a host's to say", Status(s))
	default:
		return Internal, nil
	}
}

// clip makes a message fit for a header and for a log line: text of bounded length.
func clip(message string) string {
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	if !utf8.ValidString(message) {
		message = strings.ToValidUTF8(message, "\uFFFD")
	}
	return message
}

func micros(d time.Duration) uint64 { return uint64(max(d.Microseconds(), 0)) }

func duration(us uint64) time.Duration {
	return time.Duration(min(us, uint64(maxTimeout/time.Microsecond))) * time.Microsecond
}

func nanos(ns uint64) time.Duration { return time.Duration(min(ns, uint64(maxTimeout))) }
