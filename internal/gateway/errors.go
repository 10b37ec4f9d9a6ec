package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/npy"
	"github.com/kwaai/kwaaid/internal/wire"
)

// Codes of error documents. Those of a call are the names of its statuses, see package wire.
const (
	codeUnauthenticated  = "UNAUTHENTICATED"
	codePermissionDenied = "PERMISSION_DENIED"
	codeMethodNotAllowed = "METHOD_NOT_ALLOWED"
)

// statusClientGone is what nginx calls a request whose client went away: nobody reads it, the metrics count it.
const statusClientGone = 499

// status says how both faces report a code.
type status struct {
	http int
	grpc codes.Code
}

// faces says how both faces report the status of a call.
func faces(s wire.Status) status {
	switch s {
	case wire.OK:
		return status{http.StatusOK, codes.OK}
	case wire.NotFound:
		return status{http.StatusNotFound, codes.NotFound}
	case wire.InvalidArgument:
		return status{http.StatusBadRequest, codes.InvalidArgument}
	case wire.ResourceExhausted:
		return status{http.StatusRequestEntityTooLarge, codes.ResourceExhausted}
	case wire.Overloaded:
		return status{http.StatusTooManyRequests, codes.ResourceExhausted}
	case wire.DeadlineExceeded, wire.Timeout:
		return status{http.StatusGatewayTimeout, codes.DeadlineExceeded}
	case wire.NotReady, wire.DialFailed, wire.Reset:
		return status{http.StatusServiceUnavailable, codes.Unavailable}
	case wire.DigestMismatch:
		return status{http.StatusConflict, codes.FailedPrecondition}
	case wire.Unimplemented:
		return status{http.StatusNotImplemented, codes.Unimplemented}
	case wire.Cancelled:
		return status{statusClientGone, codes.Canceled}
	default: // Internal, BadReply
		return status{http.StatusInternalServerError, codes.Internal}
	}
}

// statusOf maps the code of an error document. An unknown one counts as INTERNAL.
func statusOf(code string) status {
	switch code {
	case codeUnauthenticated:
		return status{http.StatusUnauthorized, codes.Unauthenticated}
	case codePermissionDenied:
		return status{http.StatusForbidden, codes.PermissionDenied}
	case codeMethodNotAllowed:
		return status{http.StatusMethodNotAllowed, codes.Unimplemented}
	}
	for _, s := range wire.Statuses() {
		if s.String() == code {
			return faces(s)
		}
	}
	return faces(wire.Internal)
}

// document turns any failure into the one that is sent.
func document(err error) *api.Error {
	if doc, ok := errors.AsType[*api.Error](err); ok {
		return doc
	}
	s := wire.StatusOf(err)
	switch {
	case errors.Is(err, npy.ErrFormat):
		s = wire.InvalidArgument
	case errors.Is(err, npy.ErrTooLarge):
		s = wire.ResourceExhausted
	}
	doc := api.NewError(s.String(), err.Error(), err)
	if overloaded, ok := errors.AsType[*expert.OverloadedError](err); ok {
		doc.RetryAfter = overloaded.RetryAfter
	}
	return doc
}

// refuse is a failure that this package found.
func refuse(s wire.Status, message string) *api.Error { return api.NewError(s.String(), message, nil) }

// retryAfter returns the header's value for a wait: whole seconds, at least one.
func retryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}
