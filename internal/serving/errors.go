package serving

import (
	"context"
	"errors"
	"fmt"

	"github.com/kwaai/kwaaid/internal/expert"
)

// ErrExists: another expert is hosted under this ID. Unload it first, or ask to replace it. Matches expert.ErrInvalidArgument.
var ErrExists = fmt.Errorf("%w: another expert is hosted under this ID", expert.ErrInvalidArgument)

// ErrClosed: the host is draining or closed, and takes no experts. Matches expert.ErrNotReady.
var ErrClosed = fmt.Errorf("%w: this node is stopping", expert.ErrNotReady)

// errUnloaded: the expert was removed before it was ready, or the host stops.
var errUnloaded = fmt.Errorf("%w: unloaded while it was loading", expert.ErrCancelled)

// errCanary: an expert does not answer as experts must. Its weights or its code are broken: do not retry.
var errCanary = fmt.Errorf("%w: canary failed", expert.ErrInternal)

// MemoryError says that an expert does not fit beside those that are loaded. Matches expert.ErrTooLarge.
type MemoryError struct {
	Needed int64 // bytes that the expert takes
	Free   int64 // bytes that are left
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("needs %s of memory, %s are left: %s are missing (host fewer experts, or raise serving.memory)",
		bytesText(e.Needed), bytesText(e.Free), bytesText(e.Needed-e.Free))
}

// Unwrap makes errors.Is(err, expert.ErrTooLarge) hold.
func (e *MemoryError) Unwrap() error { return expert.ErrTooLarge }

// panicError is what an expert's panic becomes. Callers may be strangers: they see no stack.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return expert.ErrInternal.Error() + ": the expert panicked" }

func (e *panicError) Unwrap() error { return expert.ErrInternal }

// bytesText writes a number of bytes for people.
func bytesText(n int64) string {
	const kib = 1 << 10
	switch {
	case n >= kib*kib*kib:
		return fmt.Sprintf("%.1f GiB", float64(n)/(kib*kib*kib))
	case n >= kib*kib:
		return fmt.Sprintf("%.1f MiB", float64(n)/(kib*kib))
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}

// ctxError says in the words of package expert why a ctx ended.
func ctxError(ctx context.Context) error {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, expert.ErrDeadlineExceeded), errors.Is(cause, expert.ErrCancelled):
		return cause
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: before the rows were computed", expert.ErrDeadlineExceeded)
	default:
		return fmt.Errorf("%w: %w", expert.ErrCancelled, cause)
	}
}
