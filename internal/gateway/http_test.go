package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
)

func TestGuard_RefusesUnknownHosts(t *testing.T) {
	f := newFace(t, func(c *Config) { c.Hosts = []string{"Node.example"} })
	for host, allowed := range map[string]bool{
		"127.0.0.1:7575":         true,
		"localhost":              true,
		"LOCALHOST:80":           true,
		"[::1]:7575":             true,
		"127.8.8.8":              true,
		"node.example":           true,
		"node.example.:443":      true,
		"evil.example":           false,
		"localhost.evil.example": false,
		"10.0.0.1:7575":          false, // not where this connection ends
		"0.0.0.0:7575":           false,
		"[2001:db8::1]:80":       false,
	} {
		a := f.get("/healthz", "Host", host)
		if allowed {
			require.Equal(t, http.StatusOK, a.StatusCode, "%s: %s", host, a.body)
		} else {
			a.requireError(t, http.StatusForbidden, "PERMISSION_DENIED", "api_hosts")
		}
	}
}

func TestGuard_TakesTheAddressThatTheConnectionReached(t *testing.T) {
	ip := ownAddress(t)
	f := newFace(t, func(c *Config) { c.API, c.Insecure = "0.0.0.0:0", true })
	_, port, err := net.SplitHostPort(f.Addr().String())
	require.NoError(t, err)
	for _, host := range []string{ip, "127.0.0.1"} {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
		require.NoError(t, err)
		resp, err := f.client.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
	}
}

// ownAddress returns an IPv4 address of this machine that is not on loopback.
func ownAddress(t *testing.T) string {
	addrs, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback")
	return ""
}

func TestGuard_RefusesForeignOrigins(t *testing.T) {
	f := newFace(t)
	own := "http://" + f.Addr().String()
	require.Equal(t, http.StatusOK, f.get("/api/v1/status", "Origin", own).StatusCode)
	for _, origin := range []string{"http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "", "file://", own + ".evil.example"} {
		f.get("/api/v1/status", "Origin", origin).requireError(t, http.StatusForbidden, "PERMISSION_DENIED", "other sites")
	}
	f.get("/api/v1/status", "Origin", own, "Origin", "http://evil.example").requireError(t, http.StatusForbidden, "PERMISSION_DENIED", "evil.example")
}

func TestGuard_AsksForTheToken(t *testing.T) {
	f := newFace(t, func(c *Config) { c.Token, c.Pprof = "secret", true })
	for _, path := range []string{"/api/v1/status", "/metrics", "/api/v1/experts", "/debug/pprof/"} {
		for _, header := range []string{"", "secret", "Bearer", "Bearer wrong", "Bearer secre", "Bearer secret2", "Basic secret"} {
			a := f.get(path, "Authorization", header)
			a.requireError(t, http.StatusUnauthorized, "UNAUTHENTICATED", "Bearer TOKEN")
			require.Equal(t, "Bearer", a.Header.Get("WWW-Authenticate"))
		}
		require.Equal(t, http.StatusOK, f.get(path, "Authorization", "Bearer secret").StatusCode, path)
		require.Equal(t, http.StatusOK, f.get(path, "Authorization", "bearer  secret").StatusCode, path)
	}
	f.post("/api/v1/call/expert-1", mimeJSON, []byte(`{"input":[1]}`)).requireError(t, http.StatusUnauthorized, "UNAUTHENTICATED", "")
	for _, path := range []string{"/healthz", "/readyz", "/", "/app.js"} { // the page holds no secret, what it asks for does
		require.Equal(t, http.StatusOK, f.get(path).StatusCode, path)
	}
}

func TestRoutes_SayWhatIsThere(t *testing.T) {
	f := newFace(t)
	f.get("/nothing").requireError(t, http.StatusNotFound, "NOT_FOUND", "/nothing")
	f.get("/api/v1/status/").requireError(t, http.StatusNotFound, "NOT_FOUND", "")
	f.get("/debug/pprof/").requireError(t, http.StatusNotFound, "NOT_FOUND", "")
	a := f.do(http.MethodPut, "/api/v1/experts", nil)
	a.requireError(t, http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", "GET, HEAD, POST")
	require.Equal(t, "GET, HEAD, POST", a.Header.Get("Allow"))
	require.Equal(t, http.StatusOK, f.do(http.MethodHead, "/api/v1/status", nil).StatusCode)
}

func TestNames_KeepTheirSlashes(t *testing.T) {
	f := newFace(t)
	f.node.resolve = func(name string) (api.Resolved, error) {
		ref, err := expert.ParseRef(name)
		return api.Resolved{Expert: ref.ID, Name: ref.String()}, err
	}
	for path, want := range map[string]string{
		"mixtral/0/3":               "mixtral/0/3",
		"mixtral%2F0%2f3":           "mixtral/0/3",
		"mixtral%40v2/0/3":          "mixtral@v2/0/3",
		"mixtral@v2/0/3":            "mixtral@v2/0/3",
		"t5/encoder.block.1.mlp/31": "t5/encoder.block.1.mlp/31",
	} {
		a := f.get("/api/v1/resolve/" + path)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s: %s", path, a.body)
		var doc api.Resolved
		require.NoError(t, json.Unmarshal(a.body, &doc))
		require.Equal(t, want, doc.Name)
		require.Contains(t, string(a.body), `"providers":[]`)
	}
	for _, path := range []string{"", "/", "mixtral//3", "a/b/c/d", "mixtral/0/03", "..", "mixtral/0/3/", "expert-", "%00", "a b/0/1"} {
		f.get("/api/v1/resolve/"+strings.ReplaceAll(path, " ", "%20")).requireError(t, http.StatusBadRequest, "INVALID_ARGUMENT", "")
	}
}

func TestHealth_FollowsTheNode(t *testing.T) {
	f := newFace(t)
	require.Equal(t, http.StatusOK, f.get("/healthz").StatusCode)
	f.node.set(api.Readiness{Ready: true, Degraded: []string{"no bootstrap answers"}}, nil)
	a := f.get("/readyz")
	require.Equal(t, http.StatusOK, a.StatusCode)
	require.JSONEq(t, `{"ready":true,"degraded":["no bootstrap answers"]}`, string(a.body))
	f.node.set(api.Readiness{Reasons: []string{"expert-7 is loading"}}, errors.New("announcing stopped 3m ago"))
	a = f.get("/readyz")
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.JSONEq(t, `{"ready":false,"reasons":["expert-7 is loading"]}`, string(a.body))
	a = f.get("/healthz")
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.JSONEq(t, `{"alive":false,"reason":"announcing stopped 3m ago"}`, string(a.body))
}

func TestDocuments_AreThoseOfTheClient(t *testing.T) {
	f := newFace(t)
	f.node.status = api.Status{Peer: "peer-a", Addrs: []string{"/ip4/127.0.0.1/tcp/1"}}
	f.node.experts = []api.Expert{{Expert: 7, Kind: "identity", Hidden: 4, State: expert.StateReady}}
	f.node.load = func(req api.LoadRequest, _ func(api.LoadProgress)) (api.ExpertList, error) {
		if req.Spec != "id=7,kind=identity,hidden=4" {
			return api.ExpertList{}, fmt.Errorf("%w: spec %q", expert.ErrInvalidArgument, req.Spec)
		}
		return api.ExpertList{Experts: f.node.experts}, nil
	}
	f.node.unload = func(name string) (api.ExpertList, error) {
		if name != "expert-7" {
			return api.ExpertList{}, expert.ErrNotFound
		}
		return api.ExpertList{Experts: f.node.experts}, nil
	}
	c := f.apiClient()
	ctx := context.Background()
	status, err := c.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, f.node.status, status)
	experts, err := c.Experts(ctx)
	require.NoError(t, err)
	require.Equal(t, f.node.experts, experts)
	peers, err := c.Peers(ctx)
	require.NoError(t, err)
	require.Empty(t, peers)
	list, err := c.Load(ctx, api.LoadRequest{Spec: "id=7,kind=identity,hidden=4"}, nil)
	require.NoError(t, err)
	require.Equal(t, f.node.experts, list.Experts)
	_, err = c.Load(ctx, api.LoadRequest{Spec: "what"}, nil)
	requireCode(t, err, "INVALID_ARGUMENT")
	_, err = c.Unload(ctx, "expert-7")
	require.NoError(t, err)
	_, err = c.Unload(ctx, "expert-8")
	requireCode(t, err, "NOT_FOUND")
	ready, err := c.Ready(ctx)
	require.NoError(t, err)
	require.True(t, ready.Ready)
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	doc, ok := errors.AsType[*api.Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, code, doc.Body.Code)
}

func TestDocuments_RefuseWhatTheyDoNotKnow(t *testing.T) {
	f := newFace(t)
	for body, says := range map[string]string{
		`{"spec":"a","more":1}`: `unknown field`,
		`{"spec":"a"} {}`:       `more than one`,
		`{`:                     `unexpected EOF`,
		``:                      `EOF`,
		`[]`:                    `cannot unmarshal`,
	} {
		f.post("/api/v1/experts", mimeJSON, []byte(body)).requireError(t, http.StatusBadRequest, "INVALID_ARGUMENT", says)
	}
	f.post("/api/v1/experts", mimeJSON, bytes.Repeat([]byte(" "), maxDocument+1)).requireError(t, http.StatusRequestEntityTooLarge, "RESOURCE_EXHAUSTED", "")
}

func TestLoad_StreamsProgressToThoseWhoAskForIt(t *testing.T) {
	f := newFace(t)
	heard := make(chan struct{})
	f.node.load = func(req api.LoadRequest, progress func(api.LoadProgress)) (api.ExpertList, error) {
		if progress == nil {
			return api.ExpertList{}, nil
		}
		progress(api.LoadProgress{Name: "a", Done: 1, Total: 2})
		<-heard // the line arrives while the loading goes on
		if req.Spec == "broken" {
			return api.ExpertList{}, fmt.Errorf("%w: broken", expert.ErrInvalidArgument)
		}
		return api.ExpertList{Experts: []api.Expert{{Expert: 7}}}, nil
	}
	c := f.apiClient()
	list, err := c.Load(context.Background(), api.LoadRequest{Spec: "whole"}, func(p api.LoadProgress) {
		require.Equal(t, api.LoadProgress{Name: "a", Done: 1, Total: 2}, p)
		close(heard)
	})
	require.NoError(t, err)
	require.Len(t, list.Experts, 1)
	_, err = c.Load(context.Background(), api.LoadRequest{Spec: "broken"}, nil) // an error behind progress
	requireCode(t, err, "INVALID_ARGUMENT")
	a := f.post("/api/v1/experts", mimeJSON, []byte(`{"spec":"whole"}`)) // one document to everyone else
	require.JSONEq(t, `{"experts":[]}`, string(a.body))
}

func TestBench_StreamsProgressAndResult(t *testing.T) {
	f := newFace(t)
	heard := make(chan struct{})
	f.node.bench = func(_ context.Context, req api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
		if req.Rows == 0 {
			return api.BenchResult{}, fmt.Errorf("%w: no rows", expert.ErrInvalidArgument)
		}
		progress(api.BenchProgress{Done: 1, Total: 2})
		<-heard // the line arrives while the bench goes on
		if req.Rows == 13 {
			return api.BenchResult{}, fmt.Errorf("%w: nobody", expert.ErrNotFound)
		}
		return api.BenchResult{Calls: 2}, nil
	}
	c := f.apiClient()
	result, err := c.Bench(context.Background(), api.BenchRequest{Names: []string{"expert-1"}, Rows: 1}, func(p api.BenchProgress) {
		require.Equal(t, api.BenchProgress{Done: 1, Total: 2}, p)
		close(heard)
	})
	require.NoError(t, err)
	require.Equal(t, 2, result.Calls)
	_, err = c.Bench(context.Background(), api.BenchRequest{Rows: 13}, nil) // an error behind progress
	requireCode(t, err, "NOT_FOUND")
	f.post("/api/v1/bench", mimeJSON, []byte(`{"rows":0}`)).requireError(t, http.StatusBadRequest, "INVALID_ARGUMENT", "no rows")
}

func TestBench_EndsWhenTheClientGoes(t *testing.T) {
	f := newFace(t)
	ended := make(chan error, 1)
	f.node.bench = func(ctx context.Context, _ api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
		progress(api.BenchProgress{})
		<-ctx.Done()
		ended <- ctx.Err()
		return api.BenchResult{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := f.apiClient()
	_, err := c.Bench(ctx, api.BenchRequest{}, func(api.BenchProgress) { cancel() })
	require.Error(t, err)
	require.Error(t, requireSoon(t, ended))
}

func requireSoon[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

func TestPage_IsWholeAndItsOwn(t *testing.T) {
	f := newFace(t)
	a := f.get("/")
	require.Equal(t, "text/html; charset=utf-8", a.Header.Get("Content-Type"))
	require.Contains(t, a.Header.Get("Content-Security-Policy"), "default-src 'none'")
	for _, asset := range pageAssets() {
		got := f.get(asset.path)
		require.Equal(t, http.StatusOK, got.StatusCode)
		require.NotEmpty(t, got.body)
		require.Equal(t, asset.kind, got.Header.Get("Content-Type"))
		require.Equal(t, http.StatusNotModified, f.get(asset.path, "If-None-Match", got.Header.Get("Etag")).StatusCode)
		for _, foreign := range []string{"https://", "//cdn", " style=\"", "innerHTML", "eval("} { // the policy would break them
			require.NotContains(t, string(got.body), foreign, asset.path)
		}
	}
}

func TestPanic_IsAnErrorDocumentAndTheNextRequestWorks(t *testing.T) {
	f := newFace(t)
	f.node.resolve = func(string) (api.Resolved, error) { panic("a bug") }
	f.get("/api/v1/resolve/expert-1").requireError(t, http.StatusInternalServerError, "INTERNAL", "log says more")
	require.Equal(t, http.StatusOK, f.get("/healthz").StatusCode)
}

func TestErrors_HaveTheStatusesOfTheContract(t *testing.T) {
	f := newFace(t)
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{expert.ErrNotFound, 404, "NOT_FOUND"},
		{expert.ErrInvalidArgument, 400, "INVALID_ARGUMENT"},
		{expert.ErrTooLarge, 413, "RESOURCE_EXHAUSTED"},
		{&expert.OverloadedError{RetryAfter: 1500 * time.Millisecond}, 429, "OVERLOADED"},
		{expert.ErrDeadlineExceeded, 504, "DEADLINE_EXCEEDED"},
		{context.DeadlineExceeded, 504, "DEADLINE_EXCEEDED"},
		{expert.ErrNotReady, 503, "NOT_READY"},
		{expert.ErrDigestMismatch, 409, "DIGEST_MISMATCH"},
		{expert.ErrUnimplemented, 501, "UNIMPLEMENTED"},
		{expert.ErrInternal, 500, "INTERNAL"},
		{errors.New("who knows"), 500, "INTERNAL"},
		{&expert.CallError{Expert: 1, Err: expert.ErrNotReady}, 503, "NOT_READY"},
		{api.NewError("TIMEOUT", "late", nil), 504, "TIMEOUT"},
		{api.NewError("DIAL_FAILED", "nobody", nil), 503, "DIAL_FAILED"},
	} {
		f.node.resolve = func(string) (api.Resolved, error) { return api.Resolved{}, fmt.Errorf("wrapped: %w", c.err) }
		a := f.get("/api/v1/resolve/expert-1")
		a.requireError(t, c.status, c.code, "")
		if c.status == 429 {
			require.Equal(t, "2", a.Header.Get("Retry-After"))
		}
	}
}

func TestStop_AnswersWhatIsUnderWay(t *testing.T) {
	f := newFace(t)
	entered, release := make(chan struct{}), make(chan struct{})
	f.node.resolve = func(string) (api.Resolved, error) {
		close(entered)
		<-release
		return api.Resolved{Name: "late"}, nil
	}
	got := make(chan answer, 1)
	go func() { got <- f.get("/api/v1/resolve/expert-1") }()
	requireSoon(t, entered)
	stopped := make(chan struct{})
	go func() {
		f.stop()
		close(stopped)
	}()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", f.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 10*time.Second, time.Millisecond)
	close(release)
	require.Contains(t, string(requireSoon(t, got).body), "late")
	requireSoon(t, stopped)
}

func TestStop_CutsWhatOutlivesTheDrainTime(t *testing.T) {
	f := newFace(t, func(c *Config) { c.Drain = 50 * time.Millisecond })
	cause := make(chan error, 1)
	entered := make(chan struct{})
	f.inference.call = func(ctx context.Context, _ api.CallRequest) (api.CallResult, *tensor.Dense, error) {
		close(entered)
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return api.CallResult{}, nil, ctx.Err()
	}
	go func() {
		req, _ := http.NewRequest(http.MethodPost, f.url("/api/v1/call/expert-1"), nil)
		if resp, err := f.client.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}()
	requireSoon(t, entered)
	f.stop()
	require.ErrorIs(t, requireSoon(t, cause), errStopped)
}

func TestStop_EndsABenchAtOnce(t *testing.T) {
	f := newFace(t, func(c *Config) { c.Drain = time.Hour })
	entered := make(chan struct{})
	f.node.bench = func(ctx context.Context, _ api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
		progress(api.BenchProgress{})
		close(entered)
		<-ctx.Done()
		return api.BenchResult{}, context.Cause(ctx)
	}
	heard := make(chan answer, 1)
	go func() { heard <- f.post("/api/v1/bench", mimeJSON, []byte("{}")) }()
	requireSoon(t, entered)
	f.stop()
	require.Contains(t, string(requireSoon(t, heard).body), errStopped.Error())
}

func TestOpen_SaysWhichPortIsTaken(t *testing.T) {
	f := newFace(t)
	cfg := DefaultConfig()
	cfg.API, cfg.GRPC = "127.0.0.1:0", f.Addr().String()
	_, err := Open(cfg, f.inference, f.node)
	require.ErrorContains(t, err, "grpc: cannot listen on "+f.Addr().String())
	require.ErrorContains(t, err, "free the port")
}

func TestClose_GivesTheAddressesBack(t *testing.T) {
	cfg := DefaultConfig()
	cfg.API, cfg.GRPC = "127.0.0.1:0", ""
	g, err := Open(cfg, &fakeInference{}, &fakeNode{})
	require.NoError(t, err)
	require.Nil(t, g.GRPCAddr())
	addr := g.Addr().String()
	require.NoError(t, g.Close())
	require.NoError(t, g.Close())
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

func TestNoise_IsCountedAndNothingElse(t *testing.T) {
	f := newFace(t)
	for _, addr := range []string{f.Addr().String(), f.GRPCAddr().String()} {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		_, err = c.Write([]byte("\x00\x01\x02 noise, longer than the preface of HTTP/2 \xff\r\n\r\n"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(15*time.Second)))
		_, err = io.Copy(io.Discard, c)
		var timeout net.Error
		require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "the connection stays open")
		require.NoError(t, c.Close())
	}
	for _, face := range []string{"api", "grpc"} {
		require.Eventually(t, func() bool { return f.metric("kwaai_gateway_noise_connections_total", face) == 1 }, 5*time.Second, time.Millisecond, face)
	}
	require.Equal(t, http.StatusOK, f.get("/healthz").StatusCode)
	f.client.CloseIdleConnections()
	c, err := net.Dial("tcp", f.Addr().String()) // a connection without bytes is no noise
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.InDelta(t, 1, f.metric("kwaai_gateway_noise_connections_total", "api"), 0)
}

func TestMetrics_CountRequestsByRouteAndStatus(t *testing.T) {
	f := newFace(t)
	f.get("/healthz")
	f.get("/api/v1/resolve/what")
	f.get("/elsewhere")
	f.requireMetric(1, "kwaai_gateway_requests_total", "healthz", "200")
	f.requireMetric(1, "kwaai_gateway_requests_total", "resolve", "400")
	f.requireMetric(1, "kwaai_gateway_requests_total", routeOther, "404")
	f.requireMetric(0, "kwaai_gateway_inflight_requests")
	a := f.get("/metrics")
	require.Contains(t, string(a.body), `kwaai_gateway_requests_total{route="healthz",status="200"} 1`)
}

func TestMetrics_MayBeNil(t *testing.T) {
	var m *Metrics
	require.Zero(t, testing.AllocsPerRun(10, func() {
		m.begin()
		m.end("a", 200, 1)
		m.reserved(1)
		m.noisy("api")
	}))
}

func TestConfig_ReportsEverythingWrong(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	err := Config{API: "0.0.0.0:7575", GRPC: "nowhere", Token: "", Hosts: []string{"http://a"}, Drain: -1}.Validate()
	for _, says := range []string{"0.0.0.0:7575 is not on loopback", "insecure: true", `grpc: "nowhere" is no address`, `api_hosts: "http://a"`, "max_frame", "drain"} {
		require.ErrorContains(t, err, says)
	}
	open := DefaultConfig()
	open.API, open.Token = "[::]:7575", "t"
	require.NoError(t, open.Validate())
	open.Token = "with space"
	require.ErrorContains(t, open.Validate(), "api_token")
	open = DefaultConfig()
	open.API = "localhost:99999"
	require.ErrorContains(t, open.Validate(), "no port")
}

func TestPprof_IsThereWhenAskedFor(t *testing.T) {
	f := newFace(t, func(c *Config) { c.Pprof = true })
	require.Contains(t, string(f.get("/debug/pprof/").body), "goroutine")
	require.Contains(t, string(f.get("/debug/pprof/goroutine?debug=1").body), "goroutine profile")
}

func TestConnection_IsKeptAfterARefusal(t *testing.T) {
	f := newFace(t)
	c, err := net.Dial("tcp", f.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	r := bufio.NewReader(c)
	for range 3 {
		_, err = fmt.Fprintf(c, "POST /api/v1/call/expert-1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n{\"input\":[[1,]}")
		require.NoError(t, err)
		resp, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusBadRequest, resp.StatusCode)
		require.False(t, resp.Close)
	}
}

func TestHTTP_IdleConnectionsKeepNobodyOut(t *testing.T) {
	f := newFace(t)
	busy, entered := make(chan struct{}), make(chan struct{})
	f.node.resolve = func(string) (api.Resolved, error) {
		close(entered)
		<-busy
		return api.Resolved{Expert: 7}, nil
	}
	underWay := make(chan error, 1)
	go func() {
		_, err := api.NewClient(f.Addr().String(), "").Resolve(context.Background(), "7")
		underWay <- err
	}()
	requireSoon(t, entered)
	var idle []net.Conn
	for range maxConnections + 100 { // some send nothing, some but the beginning of a request
		c, err := net.Dial("tcp", f.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		idle = append(idle, c)
		if len(idle)%2 == 0 {
			_, err = c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: "))
			require.NoError(t, err)
		}
	}
	client := &http.Client{Timeout: headerTimeout - 2*time.Second}
	resp, err := client.Get("http://" + f.Addr().String() + "/healthz")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	close(busy)
	require.NoError(t, requireSoon(t, underWay), "what is under way goes on")
}
