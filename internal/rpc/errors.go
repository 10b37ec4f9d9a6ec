package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/kwaai/kwaaid/internal/expert"
)

// The codes of our resets. The specification keeps 0 to 10,000 for libp2p. A code may get lost on its way: it explains, nothing
// depends on it.
const (
	codeCancelled network.StreamErrorCode = 10_001 // the caller has given up
	codeMalformed network.StreamErrorCode = 10_002 // what came is no frame of this protocol
	codeStreams   network.StreamErrorCode = 10_003 // the peer has too many streams open
	codeIdle      network.StreamErrorCode = 10_004 // nothing came for long
	codeStalled   network.StreamErrorCode = 10_005 // a frame began and did not end in time
	codeShutdown  network.StreamErrorCode = 10_006 // the host stops
	codeFailed    network.StreamErrorCode = 10_007 // the host failed; its log says why
)

// The steps of an exchange, as attempts report them.
const (
	opDial   = "dial"
	opSend   = "send"
	opWait   = "wait"
	opDecode = "decode"
)

// ExchangeError says at which peer and in which step an exchange ended. Err matches one of the sentinels of package expert.
type ExchangeError struct {
	Peer peer.ID
	Step string // dial, send, wait or decode
	Err  error
}

func (e *ExchangeError) Error() string { return fmt.Sprintf("%s: %v: %v", e.Step, e.Peer, e.Err) }

// Unwrap returns what ended the exchange.
func (e *ExchangeError) Unwrap() error { return e.Err }

// Op returns the step; those who may not import this package find it by errors.As and an interface of their own.
func (e *ExchangeError) Op() string { return e.Step }

// endOf tells a context's end apart: ErrTimeout when its deadline passed, else ErrCancelled; nil when it has not ended. A cause
// that is one of the two already is kept.
func endOf(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, expert.ErrTimeout), errors.Is(cause, expert.ErrCancelled):
		return cause
	case errors.Is(cause, context.DeadlineExceeded):
		return expert.ErrTimeout
	case errors.Is(cause, context.Canceled):
		return expert.ErrCancelled
	default:
		return fmt.Errorf("%w: %s", expert.ErrCancelled, cause.Error()) // the cause may match a status that this is not
	}
}

// dialError says why no stream could be opened.
func dialError(err error) error {
	switch {
	case errors.Is(err, network.ErrResourceLimitExceeded):
		// This node's own limit: the peer may be well, so this is no failure of the peer's.
		return fmt.Errorf("%w: this node may open no further stream: %w", expert.ErrOverloaded, err)
	case isUnsupported(err):
		return fmt.Errorf("%w: the peer does not speak %s", expert.ErrUnimplemented, Protocol)
	default:
		return fmt.Errorf("%w: %w", expert.ErrDialFailed, err)
	}
}

// streamError says why a stream ended before the reply was whole.
func streamError(err error) error {
	var reset *network.StreamError
	switch {
	case isUnsupported(err):
		// Negotiation is lazy: a peer that does not speak the protocol says so to the first read.
		return fmt.Errorf("%w: the peer does not speak %s", expert.ErrUnimplemented, Protocol)
	case errors.As(err, &reset) && reset.Remote &&
		(reset.ErrorCode == codeStreams || reset.ErrorCode == network.StreamResourceLimitExceeded):
		return fmt.Errorf("%w: the peer takes no further stream: %w", expert.ErrOverloaded, err)
	default:
		return fmt.Errorf("%w: %w", expert.ErrReset, err)
	}
}

// isStale tells whether an exchange may have failed because its stream had ended before: without a byte of a reply, and without a
// code that says that the host has seen the request.
func isStale(err error) bool {
	failed, ok := errors.AsType[*ExchangeError](err)
	if !ok || failed.Step == opDecode || !errors.Is(err, expert.ErrReset) {
		return false
	}
	reset, ok := errors.AsType[*network.StreamError](err)
	return !ok || !reset.Remote || reset.ErrorCode < codeCancelled || reset.ErrorCode == codeIdle
}

// isUnsupported tells whether the peer lacks the protocol.
func isUnsupported(err error) bool {
	return errors.As(err, new(multistream.ErrNotSupported[protocol.ID]))
}

// isDeadline tells whether a stream's read or write was ended by a deadline.
func isDeadline(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
