package gateway

import (
	"context"
	"net/http"

	"github.com/kwaai/kwaaid/internal/api"
)

// bench has the node make load and streams how far it is. The node's stop ends it too: load that nobody needs holds nothing up.
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
	return stream(ctx, w, func(ctx context.Context, progress func(api.BenchProgress)) (api.BenchResult, error) {
		return g.node.Bench(ctx, req, progress)
	})
}
