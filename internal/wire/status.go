package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Status says what became of a request, of one of its pairs, or of an attempt. Those up to Internal are numbers on the wire;
// the others are known to the caller's side alone.
type Status uint8

// The statuses. Faces of other protocols (HTTP, gRPC) derive their codes from these.
const (
	OK                Status = 0
	NotFound          Status = 1
	InvalidArgument   Status = 2
	ResourceExhausted Status = 3
	Overloaded        Status = 4
	DeadlineExceeded  Status = 5
	NotReady          Status = 6
	DigestMismatch    Status = 7
	Unimplemented     Status = 8
	Internal          Status = 9

	DialFailed Status = 10
	Reset      Status = 11
	Timeout    Status = 12
	Cancelled  Status = 13
	BadReply   Status = 14
)

// statusCount is the length of the table below.
const statusCount = 15

// Statuses returns all of them, for those who prepare something for each.
func Statuses() []Status {
	all := make([]Status, statusCount)
	for i := range all {
		all[i] = Status(i)
	}
	return all
}

// statuses is the one table: index is the status.
var statuses = [statusCount]struct {
	name     string
	sentinel error
}{
	OK:                {"OK", nil},
	NotFound:          {"NOT_FOUND", expert.ErrNotFound},
	InvalidArgument:   {"INVALID_ARGUMENT", expert.ErrInvalidArgument},
	ResourceExhausted: {"RESOURCE_EXHAUSTED", expert.ErrTooLarge},
	Overloaded:        {"OVERLOADED", expert.ErrOverloaded},
	DeadlineExceeded:  {"DEADLINE_EXCEEDED", expert.ErrDeadlineExceeded},
	NotReady:          {"NOT_READY", expert.ErrNotReady},
	DigestMismatch:    {"DIGEST_MISMATCH", expert.ErrDigestMismatch},
	Unimplemented:     {"UNIMPLEMENTED", expert.ErrUnimplemented},
	Internal:          {"INTERNAL", expert.ErrInternal},
	DialFailed:        {"DIAL_FAILED", expert.ErrDialFailed},
	Reset:             {"RESET", expert.ErrReset},
	Timeout:           {"TIMEOUT", expert.ErrTimeout},
	Cancelled:         {"CANCELLED", expert.ErrCancelled},
	BadReply:          {"BAD_REPLY", expert.ErrBadReply},
}

// String returns the name that `attempts` and the metrics show, such as NOT_FOUND.
func (s Status) String() string {
	if int(s) < len(statuses) {
		return statuses[s].name
	}
	return fmt.Sprintf("STATUS_%d", uint8(s))
}

// OnWire tells whether a host may send the status.
func (s Status) OnWire() bool { return s <= Internal }

// StatusOf finds the status of an error: the first sentinel of the table that it matches. Errors of a context are Cancelled and
// DeadlineExceeded; everything unknown is Internal; nil is OK.
func StatusOf(err error) Status {
	if err == nil {
		return OK
	}
	for s := NotFound; s < statusCount; s++ {
		if errors.Is(err, statuses[s].sentinel) {
			return s
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return Cancelled
	default:
		return Internal
	}
}

// maxMessage bounds a status message, in bytes: a name of 255 bytes and a sentence about it fit twice.
const maxMessage = 1024

// Err returns the error of a status: nil for OK, else one that matches its sentinel and says message, or the sentinel's own text
// where message is empty. Overloaded becomes an expert.OverloadedError with retryAfter. A status that this version does not know
// matches expert.ErrInternal.
func (s Status) Err(message string, retryAfter time.Duration) error {
	if s == OK {
		return nil
	}
	e := &statusError{message: message}
	switch {
	case s == Overloaded:
		e.err = &expert.OverloadedError{RetryAfter: retryAfter}
	case int(s) < len(statuses):
		e.err = statuses[s].sentinel
	default:
		e.err = fmt.Errorf("%w: the peer says %v, which this version does not know", expert.ErrInternal, s)
	}
	if message == "" {
		return e.err
	}
	return e
}

// statusError is a status as a peer told it: its words, our sentinel.
type statusError struct {
	message string
	err     error
}

func (e *statusError) Error() string { return e.message }

func (e *statusError) Unwrap() error { return e.err }
