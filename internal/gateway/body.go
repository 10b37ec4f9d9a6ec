package gateway

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/wire"
)

const (
	// bodiesPerNode is how many of the largest bodies may be in memory at once, all requests together. What a body becomes takes at
	// most twice as much again: float16 and JSON's shortest numbers have two bytes where a float32 has four.
	bodiesPerNode = 4
	// stall is how long a client may send or take nothing before its connection is given up.
	stall = 30 * time.Second
	// stallStep is how many bytes pass before the deadline is moved: setting it costs about as much as a small read.
	stallStep = 1 << 20
	// busyFor is what a client is told to wait when the memory for bodies is in use.
	busyFor = time.Second
)

// budget is the memory that bodies may take, all requests together.
type budget struct {
	mu      sync.Mutex
	free    int64 // Invariant: >= 0.
	metrics *Metrics
}

// take reserves n bytes, or says that there is no room now.
func (b *budget) take(n int64) error {
	b.mu.Lock()
	ok := b.free >= n
	if ok {
		b.free -= n
	}
	b.mu.Unlock()
	if !ok {
		doc := refuse(wire.Overloaded, "the memory for requests' bodies is in use")
		doc.RetryAfter = busyFor
		return doc
	}
	b.metrics.reserved(n)
	return nil
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	b.free += n
	b.mu.Unlock()
	b.metrics.reserved(-n)
}

// body reads a request's body: within a limit, within the node's budget, and not for ever. Close gives the memory back: call it when
// what was read is no longer referred to.
type body struct {
	src     io.Reader
	size    int64 // as the client says, -1 when it does not
	limit   int64
	budget  *budget
	control *http.ResponseController

	read   int64 // bytes so far
	taken  int64 // Invariant: taken >= read, and taken is reserved in budget until Close.
	renew  int64 // the deadline is moved once read gets here
	failed error
}

// openBody refuses what is too large or has no room before a byte of it is read.
func (g *Gateway) openBody(w http.ResponseWriter, r *http.Request, limit int64) (*body, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit, "the body has "+strconv.FormatInt(r.ContentLength, 10)+" bytes")
	}
	b := &body{src: r.Body, size: r.ContentLength, limit: limit, budget: &g.bodies, control: http.NewResponseController(w)}
	if err := b.reserve(max(b.size, 0)); err != nil {
		return nil, err
	}
	return b, nil
}

func tooLarge(limit int64, what string) *api.Error {
	return refuse(wire.ResourceExhausted, what+": at most "+strconv.FormatInt(limit, 10)+" are taken (serving.max_frame)")
}

func (b *body) reserve(n int64) error {
	if err := b.budget.take(n); err != nil {
		return err
	}
	b.taken += n
	return nil
}

// Read implements io.Reader. At the end it takes the deadline away, so that the server may watch for the client's going.
func (b *body) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	if b.read >= b.renew {
		_ = b.control.SetReadDeadline(time.Now().Add(stall)) // not every connection has deadlines; then the client's patience counts
		b.renew = b.read + stallStep
	}
	n, err := b.src.Read(p)
	b.read += int64(n)
	if b.read > b.taken { // only without a Content-Length
		if b.read > b.limit {
			err = tooLarge(b.limit, "the body goes on and on")
		} else if more := b.reserve(b.read - b.taken); more != nil {
			err = more
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		_ = b.control.SetReadDeadline(time.Time{})
	case !errors.As(err, new(*api.Error)): // the client's fault, or its network's: nothing for the node's operator
		err = refuse(wire.InvalidArgument, "the body breaks off: "+err.Error())
	}
	b.failed = err
	return n, err
}

// Close gives the reserved memory back; the request itself is closed by its server.
func (b *body) Close() {
	b.budget.give(b.taken)
	b.taken = 0
}

// ended returns why the body could not be read, nil at its end.
func (b *body) ended() error {
	if b.failed == nil || errors.Is(b.failed, io.EOF) {
		return nil
	}
	return b.failed
}

// readAll reads what src, a buffer on b or b itself, still has; memory grows with what arrives.
func (b *body) readAll(src io.Reader) ([]byte, error) {
	const first = 64 << 10 // most documents fit
	size := b.size
	if size < 0 {
		size = b.limit
	}
	buf := make([]byte, 0, min(size+1, first)) // one byte more than a body has, so that its end is seen without growing
	for {
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return nil, err
		}
		if int64(len(buf)) > size { // src held more than b vouched for; what b says of it comes later
			return nil, tooLarge(b.limit, "the body goes on and on")
		}
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(4*int64(len(buf)), size+1))
			copy(grown, buf)
			buf = grown
		}
	}
}
