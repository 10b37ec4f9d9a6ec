package gateway

import (
	"context"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
)

// healthz says whether the node's loops beat.
func (g *Gateway) healthz(w http.ResponseWriter, _ *http.Request, _ string) error {
	type document struct {
		Alive  bool   `json:"alive"`
		Reason string `json:"reason,omitempty"`
	}
	if err := g.node.Alive(); err != nil {
		return writeJSON(w, http.StatusServiceUnavailable, document{Reason: err.Error()})
	}
	return writeJSON(w, http.StatusOK, document{Alive: true})
}

// readyz says whether the node is ready, else why not, and what is degraded.
func (g *Gateway) readyz(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Ready(r.Context())
	if err != nil {
		return err
	}
	if !doc.Ready {
		return writeJSON(w, http.StatusServiceUnavailable, doc)
	}
	return writeJSON(w, http.StatusOK, doc)
}

// metricsPage serves the node's registry to Prometheus.
func (g *Gateway) metricsPage() handle {
	h := promhttp.HandlerFor(g.registry, promhttp.HandlerOpts{Registry: nil})
	return func(w http.ResponseWriter, r *http.Request, _ string) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

// profiles serves Go's own profiles.
func profiles(w http.ResponseWriter, r *http.Request, rest string) error {
	switch rest {
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Index(w, r)
	}
	return nil
}

func (g *Gateway) status(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Status(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, doc)
}

func (g *Gateway) checkup(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Checkup(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, doc)
}

func (g *Gateway) experts(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Experts(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, notNull(doc))
}

func (g *Gateway) layers(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Layers(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, notNull(doc))
}

func (g *Gateway) peers(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Peers(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, notNull(doc))
}

// notNull makes an empty list [] in JSON: to a caller "none" is a list too.
func notNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (g *Gateway) resolve(w http.ResponseWriter, r *http.Request, name string) error {
	if _, err := expert.ParseRef(name); err != nil {
		return err
	}
	doc, err := g.node.Resolve(r.Context(), name)
	if err != nil {
		return err
	}
	doc.Providers = notNull(doc.Providers)
	return writeJSON(w, http.StatusOK, doc)
}

// load hosts more experts, and tells those who ask for events how far it is.
func (g *Gateway) load(w http.ResponseWriter, r *http.Request, _ string) error {
	var req api.LoadRequest
	if err := g.readJSON(w, r, &req); err != nil {
		return err
	}
	load := func(ctx context.Context, progress func(api.LoadProgress)) (api.ExpertList, error) {
		doc, err := g.node.Load(ctx, req, progress)
		doc.Experts = notNull(doc.Experts)
		return doc, err
	}
	if r.Header.Get("Accept") == api.MIMEEvents {
		return stream(r.Context(), w, load)
	}
	doc, err := load(r.Context(), nil)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, doc)
}

func (g *Gateway) unload(w http.ResponseWriter, r *http.Request, name string) error {
	if _, err := expert.ParseRef(name); err != nil {
		return err
	}
	doc, err := g.node.Unload(r.Context(), name)
	if err != nil {
		return err
	}
	doc.Experts = notNull(doc.Experts)
	return writeJSON(w, http.StatusOK, doc)
}
