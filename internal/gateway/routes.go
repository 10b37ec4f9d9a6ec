package gateway

import (
	"net/http"
	"slices"
	"strings"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/wire"
)

// routeOther is the metrics' name for requests that no route takes.
const routeOther = "other"

// route is what is done with the paths that begin or are the same as its own. Routes may share a path if they share no method.
type route struct {
	name    string // in metrics and logs
	path    string // ends in a slash: every longer path too, its rest is handed to the methods
	open    bool   // answered without the token
	methods map[string]handle
}

// handle answers a request; rest is what follows the route's path, unescaped. An error before the answer has begun becomes an error
// document, one after it a reset.
type handle func(w http.ResponseWriter, r *http.Request, rest string) error

// routeTable finds routes. Go's mux cannot: it cleans paths and so redirects names that hold two slashes, and it has no wildcards in
// the middle of a path.
type routeTable []route

// match is the route of a request.
type match struct {
	name   string
	open   bool
	handle handle
}

// routes lists the whole HTTP face.
func (g *Gateway) routes() routeTable {
	get := func(h handle) map[string]handle { return map[string]handle{http.MethodGet: h, http.MethodHead: h} }
	post := func(h handle) map[string]handle { return map[string]handle{http.MethodPost: h} }
	table := routeTable{
		{name: "healthz", path: "/healthz", open: true, methods: get(g.healthz)},
		{name: "readyz", path: "/readyz", open: true, methods: get(g.readyz)},
		{name: "metrics", path: "/metrics", methods: get(g.metricsPage())},
		{name: "status", path: "/api/v1/status", methods: get(g.status)},
		{name: "peers", path: "/api/v1/peers", methods: get(g.peers)},
		{name: "experts", path: "/api/v1/experts", methods: map[string]handle{
			http.MethodGet: g.experts, http.MethodHead: g.experts, http.MethodPost: g.load,
		}},
		{name: "layers", path: "/api/v1/layers", methods: get(g.layers)},
		{name: "unload", path: "/api/v1/experts/", methods: map[string]handle{http.MethodDelete: g.unload}},
		{name: "resolve", path: "/api/v1/resolve/", methods: get(g.resolve)},
		{name: "call", path: "/api/v1/call/", methods: post(g.call)},
		{name: "bench", path: "/api/v1/bench", methods: post(g.bench)},
		{name: "checkup", path: "/api/v1/checkup", methods: post(g.checkup)},
		{name: "v2", path: "/v2", methods: get(g.v2Server)},
		{name: "v2_live", path: "/v2/health/live", open: true, methods: get(g.v2Live)},
		{name: "v2_ready", path: "/v2/health/ready", open: true, methods: get(g.v2Ready)},
		{name: "v2_model", path: v2Models, methods: get(g.v2Model)},
		{name: "v2_infer", path: v2Models, methods: post(g.v2Infer)},
	}
	for _, asset := range pageAssets() {
		table = append(table, route{name: "page", path: asset.path, open: true, methods: get(asset.serve)})
	}
	if g.cfg.Pprof {
		table = append(table, route{name: "pprof", path: "/debug/pprof/", methods: map[string]handle{
			http.MethodGet: profiles, http.MethodPost: profiles,
		}})
	}
	return table
}

// find returns the route of a request and the rest of its path.
func (t routeTable) find(w http.ResponseWriter, r *http.Request) (match, string, error) {
	var allowed []string // methods of the routes with this path
	for _, route := range t {
		rest, ok := strings.CutPrefix(r.URL.Path, route.path)
		tree := strings.HasSuffix(route.path, "/") && route.path != "/"
		if !ok || (rest != "" && !tree) {
			continue
		}
		if h := route.methods[r.Method]; h != nil {
			return match{name: route.name, open: route.open, handle: h}, rest, nil
		}
		for method := range route.methods {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) == 0 {
		return match{}, "", refuse(wire.NotFound, "nothing is at "+quoted(r.URL.Path))
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	return match{}, "", api.NewError(codeMethodNotAllowed, r.Method+" is not for "+quoted(r.URL.Path)+": "+w.Header().Get("Allow")+" are", nil)
}
