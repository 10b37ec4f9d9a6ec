package wire

import "errors"

// ErrMalformed: the bytes are no frame of this protocol, so where the next one begins is unknown. Reset the stream.
var ErrMalformed = errors.New("malformed frame")
