package gateway

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/kwaai/kwaaid/internal/api"
)

// bench has the node make load and streams its progress as NDJSON, one api.BenchEvent a line, the result or the error last. The
// client's going away ends it, and so does the node's stop: load that nobody needs holds nothing up. What fails before the first progress has a status of its own.
func (g *Gateway) bench(w http.ResponseWriter, r *http.Request, _ string) error {
	var req api.BenchRequest
	if err := g.readJSON(w, r, &req); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-g.stopping:
			cancel(errStopped)
		case <-done:
		}
	}()
	s := eventStream{w: w, control: http.NewResponseController(w)}
	result, err := g.node.Bench(ctx, req, func(p api.BenchProgress) {
		if err := s.send(api.BenchEvent{Progress: &p}); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		if !s.begun {
			return err
		}
		return s.send(api.BenchEvent{Error: &document(err).Body})
	}
	return s.send(api.BenchEvent{Result: &result})
}

// eventStream sends lines that arrive at once.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (s *eventStream) send(event any) error {
	line, err := json.Marshal(event)
	if err != nil {
		return err
	}
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	if _, err := s.w.Write(append(line, '\n')); err != nil {
		return err
	}
	return s.control.Flush()
}
