package dispatch

import (
	"errors"
	"fmt"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
	"github.com/kwaai/kwaaid/internal/wire"
)

// errNotFinite: the answer holds NaN or Inf, though the input held none.
var errNotFinite = fmt.Errorf("%w: NaN or Inf in the answer, none in the input", expert.ErrBadReply)

// judge checks a result against what was asked for, rows [rows, hidden] of a pair, and returns the error that it amounts to; nil for a
// good answer.
func judge(r *expert.Result, pair *expert.Pair, rows, hidden int, checkNaN bool) error {
	if r.Err != nil {
		return r.Err
	}
	switch {
	case !pair.Digest.IsZero() && r.Digest != pair.Digest:
		return fmt.Errorf("%w: asked for digest %v, answered by %v", expert.ErrBadReply, pair.Digest, r.Digest)
	case !pair.Takes(r.Numerics):
		return fmt.Errorf("%w: asked for numerics %s, answered in %s", expert.ErrBadReply, pair.Numerics, r.Numerics)
	case pair.Weights != nil:
		return nil // judgeSum looks at what they share
	default:
		return judgeRows(r.Output, rows, hidden, checkNaN)
	}
}

// judgeRows checks what a host computed.
func judgeRows(y *tensor.Dense, rows, hidden int, checkNaN bool) error {
	values, err := expert.Rows(y, hidden)
	switch {
	case err != nil:
		return fmt.Errorf("%w: wrong output: %v", expert.ErrBadReply, err) //nolint:errorlint // it is not the caller's argument that is invalid
	case len(values) != rows*hidden:
		return fmt.Errorf("%w: expected %d rows, found %d", expert.ErrBadReply, rows, len(values)/hidden)
	case checkNaN && !expert.Finite(values):
		return errNotFinite
	default:
		return nil
	}
}

// kindOf says what an error teaches the registry about the peer. whole: it ended the exchange, rather than one pair in it.
func kindOf(err error, whole bool) registry.Kind {
	if err == nil {
		return registry.Answered
	}
	if errors.Is(err, errNotFinite) {
		return registry.Suspect
	}
	switch wire.StatusOf(err) {
	case wire.NotFound:
		return registry.NotFound
	case wire.InvalidArgument, wire.ResourceExhausted, wire.Unimplemented:
		return registry.Refused
	case wire.Overloaded:
		return registry.Overloaded
	case wire.NotReady:
		return registry.NotReady
	case wire.DigestMismatch:
		return registry.Mismatch
	case wire.DialFailed:
		return registry.Unreachable
	case wire.Reset:
		return registry.Broken
	case wire.Timeout, wire.Cancelled:
		return registry.Cancelled
	case wire.BadReply:
		if whole {
			return registry.Garbled
		}
		return registry.Failed
	case wire.OK, wire.DeadlineExceeded, wire.Internal:
		return registry.Failed
	default:
		return registry.Failed
	}
}

// opOf returns the step in which an error came, where it says so.
func opOf(err error) string {
	var step interface{ Op() string }
	if errors.As(err, &step) {
		return step.Op()
	}
	return ""
}
