package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/wire"
)

const (
	// headerTimeout is for a client to send its request's header, which fits one packet.
	headerTimeout = 10 * time.Second
	// idleTimeout is how long a connection may wait for its next request: longer than the pauses of the status page and of Prometheus.
	idleTimeout = 2 * time.Minute
	// maxRequestHeader leaves room for a long name, a token and a browser's own fields.
	maxRequestHeader = 32 << 10
	// maxDocument bounds the JSON documents that ask for something: a bench of some 10,000 names.
	maxDocument = 1 << 20
)

// connKey is under what a request's context holds its *conn.
type connKey struct{}

// newHTTPServer makes the server whose requests' contexts descend from requests.
func (g *Gateway) newHTTPServer(requests context.Context) *http.Server {
	return &http.Server{
		Handler:           g.handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxRequestHeader,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ErrorLog: log.New(debugLog{g}, "", 0),
	}
}

// debugLog takes what net/http would print: clients' faults, which are nothing to worry an operator with.
type debugLog struct{ g *Gateway }

func (l debugLog) Write(line []byte) (int, error) {
	l.g.log.Debug().Str("face", "api").Bytes("line", line).Msg("http server")
	return len(line), nil
}

// handler is the whole HTTP face: guard, route, token, answer; one log line and one metric for each request.
func (g *Gateway) handler() http.Handler {
	guard := newGuard(g.cfg)
	routes := g.routes()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			c.beginRequest()
			defer c.endRequest()
		}
		out := &response{ResponseWriter: w, control: http.NewResponseController(w)}
		route := routeOther
		g.metrics.begin()
		var err error
		defer func() {
			if thrown := recover(); thrown != nil && !isAbort(thrown) {
				g.log.Error().Str("op", route).Any("panic", thrown).Bytes("stack", debug.Stack()).Msg("request panicked")
				err = errors.New("this request met a fault of the node; its log says more")
			}
			g.finish(out, r, route, start, err)
		}()
		for key, value := range safetyHeaders {
			w.Header().Set(key, value)
		}
		if err = guard.origin(r); err != nil {
			return
		}
		found, rest, err2 := routes.find(out, r)
		if err = err2; err != nil {
			return
		}
		route = found.name
		if !found.open {
			if err = guard.token(out, r); err != nil {
				return
			}
		}
		err = found.handle(out, r, rest)
	})
}

// finish ends a request: with an error document, or with a reset where the answer has already begun.
func (g *Gateway) finish(out *response, r *http.Request, route string, start time.Time, err error) {
	begun := out.status != 0
	if err != nil && !begun {
		g.writeError(out, r, err)
	}
	took := time.Since(start)
	status := out.status
	if status == 0 {
		status = http.StatusOK // net/http sends it for a handler that wrote nothing
	}
	if r.Context().Err() != nil {
		status = statusClientGone
	}
	g.metrics.end(route, status, took)
	g.log.Debug().Str("op", route).Str("method", r.Method).Str("path", r.URL.Path).Str("remote", r.RemoteAddr).
		Int("status", status).Dur("took", took).Err(err).Msg("request")
	if err != nil && begun {
		panic(http.ErrAbortHandler) // the client must see that the answer broke off
	}
}

func isAbort(thrown any) bool {
	err, ok := thrown.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}

// safetyHeaders stand in every answer: whatever a peer calls itself, a browser must not run it.
var safetyHeaders = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	"X-Content-Type-Options": "nosniff",
	"Referrer-Policy":        "no-referrer",
	"Cache-Control":          "no-store",
}

// response remembers the status, and gives up on a client that takes nothing for too long.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int // 0 until the answer begins
}

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		_ = w.control.SetWriteDeadline(time.Now().Add(stall)) // not every connection has deadlines; then the client's patience counts
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write passes p on in pieces, each with a deadline of its own.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	written := 0
	for {
		piece := p[written:min(len(p), written+stallStep)]
		_ = w.control.SetWriteDeadline(time.Now().Add(stall))
		n, err := w.ResponseWriter.Write(piece)
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// writeError sends the document of a failure, that of the protocol which was spoken.
func (g *Gateway) writeError(w http.ResponseWriter, r *http.Request, err error) {
	doc := document(err)
	status := statusOf(doc.Body.Code).http
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", retryAfter(doc.RetryAfter))
	}
	if status == http.StatusInternalServerError {
		g.log.Warn().Err(err).Msg("request failed inside the node")
	}
	var body any = doc
	if isV2(r.URL.Path) {
		body = v2Error{Error: doc.Body.Message, Code: doc.Body.Code}
	}
	_ = writeJSON(w, status, body) // it fails when the client is gone: nobody is left to be told
}

// writeJSON sends one document.
func writeJSON(w http.ResponseWriter, status int, doc any) error {
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(b, '\n'))
	return err
}

// readJSON decodes the one document that a request holds; unknown fields are mistakes.
func (g *Gateway) readJSON(w http.ResponseWriter, r *http.Request, doc any) error {
	b, err := g.openBody(w, r, maxDocument)
	if err != nil {
		return err
	}
	defer b.Close()
	d := json.NewDecoder(b)
	d.DisallowUnknownFields()
	err = d.Decode(doc)
	if err == nil && d.More() {
		err = errors.New("more than one document")
	}
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*api.Error)):
		return err
	default:
		return refuse(wire.InvalidArgument, "the body is no such JSON document: "+err.Error())
	}
}
