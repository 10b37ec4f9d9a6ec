package expert

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The statuses of a call. Each says what the caller should do; `wire` holds the one table that maps them to codes.
var (
	// ErrNotFound: nobody hosts the expert. Try a fallback.
	ErrNotFound = errors.New("expert not found")
	// ErrInvalidArgument: the request itself is wrong. Do not retry.
	ErrInvalidArgument = errors.New("invalid argument")
	// ErrTooLarge: the request is above a limit of this host. Send less, or ask another host.
	ErrTooLarge = errors.New("too large")
	// ErrOverloaded: the peer is well but full. Ask the next provider now; do not count it as a failure. See OverloadedError.
	ErrOverloaded = errors.New("overloaded")
	// ErrDeadlineExceeded: the call's deadline passed before the answer was there.
	ErrDeadlineExceeded = errors.New("deadline exceeded")
	// ErrNotReady: the expert is loading, draining or failed. Ask another provider.
	ErrNotReady = errors.New("expert not ready")
	// ErrDigestMismatch: the host has other weights than the call pins. It is another expert that shares a name.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrUnimplemented: the host does not know the codec, numerics or combine that was asked for.
	ErrUnimplemented = errors.New("unimplemented")
	// ErrInternal: the host failed in a way that it cannot explain.
	ErrInternal = errors.New("internal error")
)

// What an attempt may meet besides, on the caller's side.
var (
	// ErrDialFailed: no connection to the peer could be made.
	ErrDialFailed = errors.New("dial failed")
	// ErrReset: the stream or its connection ended before the reply was whole.
	ErrReset = errors.New("stream reset")
	// ErrTimeout: this attempt's share of the deadline passed without a reply.
	ErrTimeout = errors.New("attempt timed out")
	// ErrCancelled: the caller gave up, or another attempt answered first.
	ErrCancelled = errors.New("cancelled")
	// ErrBadReply: the reply breaks the protocol, or has the wrong shape, dtype or digest.
	ErrBadReply = errors.New("bad reply")
)

// ErrRetriesExhausted: providers remained, but calls.max_retries attempts were made.
var ErrRetriesExhausted = errors.New("retries exhausted")

// OverloadedError is ErrOverloaded with the time after which the host expects to have room.
type OverloadedError struct{ RetryAfter time.Duration }

func (e *OverloadedError) Error() string {
	return fmt.Sprintf("overloaded, retry after %v", e.RetryAfter)
}

// Unwrap makes errors.Is(err, ErrOverloaded) hold.
func (e *OverloadedError) Unwrap() error { return ErrOverloaded }

// Attempt is one try of a call at one peer.
type Attempt struct {
	Expert ID            // who was asked for: the expert of the call or a fallback
	Peer   string        // base58 peer ID; empty for a local expert
	Op     string        // what went wrong: dial, send, wait or decode; empty where it is not known or nothing did
	Took   time.Duration // from its start to its end
	Err    error         // nil when it answered
}

// CallError says that a call failed and what was tried, in order. errors.Is sees Err, the reason that decided.
type CallError struct {
	Expert   ID
	Attempts []Attempt
	Err      error
}

func (e *CallError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", e.Expert, e.Err)
	separator := "; tried "
	for _, a := range e.Attempts {
		b.WriteString(separator)
		separator = ", "
		if a.Expert != e.Expert {
			fmt.Fprintf(&b, "%s ", a.Expert)
		}
		who := a.Peer
		if who == "" {
			who = "this node"
		}
		fmt.Fprintf(&b, "%s (%v: %v)", who, a.Took.Round(time.Microsecond), a.Err)
	}
	return b.String()
}

// Unwrap returns the reason that decided.
func (e *CallError) Unwrap() error { return e.Err }
