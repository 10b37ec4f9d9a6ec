package gateway

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/kwaai/kwaaid/internal/api"
)

// stream does work and sends how far it is as NDJSON, one api.Event a line, the result or the error last. The client's going away ends it. What
// fails before the first progress has a status of its own.
func stream[P, R any](ctx context.Context, w http.ResponseWriter, work func(ctx context.Context, progress func(P)) (R, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := eventStream{w: w, control: http.NewResponseController(w)}
	result, err := work(ctx, func(p P) {
		if err := s.send(api.Event[P, R]{Progress: &p}); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		if !s.begun {
			return err
		}
		return s.send(api.Event[P, R]{Error: &document(err).Body})
	}
	return s.send(api.Event[P, R]{Result: &result})
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
		s.w.Header().Set("Content-Type", api.MIMEEvents)
	}
	if _, err := s.w.Write(append(line, '\n')); err != nil {
		return err
	}
	return s.control.Flush()
}
