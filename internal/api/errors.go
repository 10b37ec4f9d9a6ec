package api

import (
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// ErrorBody is the code, a status name such as NOT_FOUND, and the message for people.
type ErrorBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error is the document of a failure, and a Go error on both sides of the wire.
type Error struct {
	Body       ErrorBody     `json:"error"`
	Expert     string        `json:"expert,omitempty"` // who was asked for, where it is known
	Attempts   []Attempt     `json:"attempts,omitempty"`
	RetryAfter time.Duration `json:"-"` // with OVERLOADED; travels as the Retry-After header

	cause error
}

func (e *Error) Error() string { return e.Body.Message }

// Unwrap returns what the error was made of on this side; nil when it came over the wire.
func (e *Error) Unwrap() error { return e.cause }

// NewError builds the document for a failure; cause may be nil.
func NewError(code, message string, cause error) *Error {
	return &Error{Body: ErrorBody{Code: code, Message: message}, cause: cause}
}

// WithCall adds what is known of a failed call.
func (e *Error) WithCall(id expert.ID, attempts []Attempt) *Error {
	e.Expert, e.Attempts = id.String(), attempts
	return e
}
