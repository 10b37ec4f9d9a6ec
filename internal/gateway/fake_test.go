package gateway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
)

// fakeInference answers with its input, or as call says.
type fakeInference struct {
	call  func(ctx context.Context, req api.CallRequest) (api.CallResult, *tensor.Dense, error)
	layer func(ctx context.Context, req api.LayerRequest) (api.LayerResult, api.LayerOutput, error)

	mu        sync.Mutex
	last      api.CallRequest
	lastLayer api.LayerRequest
}

func (f *fakeInference) Call(ctx context.Context, req api.CallRequest) (api.CallResult, *tensor.Dense, error) {
	f.mu.Lock()
	f.last = req
	f.mu.Unlock()
	if f.call != nil {
		return f.call(ctx, req)
	}
	return echo(req)
}

func (f *fakeInference) CallLayer(ctx context.Context, req api.LayerRequest) (api.LayerResult, api.LayerOutput, error) {
	f.mu.Lock()
	f.lastLayer = req
	f.mu.Unlock()
	if f.layer != nil {
		return f.layer(ctx, req)
	}
	return echoLayer(req)
}

func (f *fakeInference) askedLayer() api.LayerRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lastLayer
}

func (f *fakeInference) asked() api.CallRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// echo answers as a local identity expert of hidden 4 does.
func echo(req api.CallRequest) (api.CallResult, *tensor.Dense, error) {
	ref, err := expert.ParseRef(req.Name)
	if err != nil {
		return api.CallResult{}, nil, err
	}
	y := req.Input
	if y == nil {
		y = tensor.New(tensor.WithShape(max(req.Rows, 1), 4), tensor.WithBacking(make([]float32, 4*max(req.Rows, 1))))
	}
	return api.CallResult{
		Expert:     ref.ID,
		AnsweredBy: api.AnsweredBy{Peer: "peer-a", Expert: ref.ID, Where: api.WhereLocal},
		Attempts:   []api.Attempt{{Expert: ref.ID, Peer: "peer-a", Status: "OK", Detail: "größer 🙂"}},
		Shape:      y.Shape(), Digest: strings.Repeat("ab", 32), Numerics: "exact-1",
	}, y, nil
}

// echoLayer answers as a layer of hidden 4 with 3 identity experts does, of which each row chose 2 and 0.
func echoLayer(req api.LayerRequest) (api.LayerResult, api.LayerOutput, error) {
	y := req.Input
	if y == nil {
		y = tensor.New(tensor.WithShape(max(req.Rows, 1), 4), tensor.WithBacking(make([]float32, 4*max(req.Rows, 1))))
	}
	out := api.LayerOutput{HiddenStates: y, Rows: y.Shape().TotalSize() / 4, K: 2}
	for range out.Rows {
		out.Experts = append(out.Experts, 2, 0)
		out.Weights = append(out.Weights, 0.75, 0.25)
		out.RouterLogits = append(out.RouterLogits, 1, -1, 2)
	}
	by := func(peer string, index int) api.LayerAnswer {
		return api.LayerAnswer{AnsweredBy: api.AnsweredBy{Peer: peer, Where: api.WhereRemote}, Index: index, Rows: out.Rows}
	}
	return api.LayerResult{
		Layer: req.Name, AnsweredBy: []api.LayerAnswer{by("peer-a", 0), by("peer-b", 1), by("peer-a", 2)}, Attempts: []api.Attempt{},
		MissingExperts: []expert.ID{}, Shape: y.Shape(), Digest: strings.Repeat("ab", 32), Numerics: "exact-1",
	}, out, nil
}

// fakeNode answers from its fields; a nil func answers with nothing.
type fakeNode struct {
	status  api.Status
	experts []api.Expert
	layers  []api.Layer
	resolve func(name string) (api.Resolved, error)
	load    func(req api.LoadRequest, progress func(api.LoadProgress)) (api.ExpertList, error)
	unload  func(name string) (api.ExpertList, error)
	bench   func(ctx context.Context, req api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error)

	mu    sync.Mutex
	ready api.Readiness
	dead  error
}

func (f *fakeNode) Status(context.Context) (api.Status, error)    { return f.status, nil }
func (f *fakeNode) Experts(context.Context) ([]api.Expert, error) { return f.experts, nil }
func (f *fakeNode) Layers(context.Context) ([]api.Layer, error)   { return f.layers, nil }
func (f *fakeNode) Peers(context.Context) ([]api.Peer, error)     { return nil, nil }
func (f *fakeNode) Resolve(_ context.Context, name string) (api.Resolved, error) {
	return f.resolve(name)
}

func (f *fakeNode) Expert(_ context.Context, name string) (api.Expert, error) {
	ref, err := expert.ParseRef(name)
	if err != nil {
		return api.Expert{}, err
	}
	for _, e := range f.experts {
		if e.Expert == ref.ID {
			return e, nil
		}
	}
	return api.Expert{}, expert.ErrNotFound
}

func (f *fakeNode) Answerable(name string) (bool, error) {
	e, err := f.Expert(context.Background(), name)
	return err == nil && e.State == expert.StateReady, err
}

func (f *fakeNode) Load(_ context.Context, req api.LoadRequest, progress func(api.LoadProgress)) (api.ExpertList, error) {
	return f.load(req, progress)
}

func (f *fakeNode) Unload(_ context.Context, name string) (api.ExpertList, error) {
	return f.unload(name)
}

func (f *fakeNode) Bench(ctx context.Context, req api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
	return f.bench(ctx, req, progress)
}

func (f *fakeNode) Checkup(context.Context) (api.Checkup, error) {
	return api.Checkup{Peer: f.status.Peer}, nil
}

func (f *fakeNode) Ready(context.Context) (api.Readiness, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ready, nil
}

func (f *fakeNode) Alive() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

func (f *fakeNode) set(ready api.Readiness, dead error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready, f.dead = ready, dead
}

// face is a gateway that runs on ports of its own.
type face struct {
	*Gateway
	t         testing.TB
	inference *fakeInference
	node      *fakeNode
	registry  *prometheus.Registry
	client    *http.Client
	stop      func() // as SIGTERM would; returns once Run has
}

func newFace(t testing.TB, change ...func(*Config)) *face {
	t.Helper()
	f := &face{t: t, inference: &fakeInference{}, node: &fakeNode{ready: api.Readiness{Ready: true}}, registry: prometheus.NewRegistry()}
	cfg := DefaultConfig()
	cfg.API, cfg.GRPC = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Drain = 5 * time.Second
	for _, c := range change {
		c(&cfg)
	}
	var err error
	f.Gateway, err = Open(cfg, f.inference, f.node, WithRegistry(f.registry))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.client = &http.Client{Transport: &http.Transport{DisableCompression: true}, Timeout: 20 * time.Second}
	var once sync.Once
	f.stop = func() {
		once.Do(func() {
			cancel()
			require.NoError(t, <-done)
		})
	}
	t.Cleanup(func() {
		f.client.CloseIdleConnections()
		f.stop()
	})
	return f
}

// apiClient is the client that the commands use.
func (f *face) apiClient() *api.Client {
	c := api.NewClient(f.Addr().String(), "")
	f.t.Cleanup(c.Close)
	return c
}

func (f *face) url(path string) string { return "http://" + f.Addr().String() + path }

// answer is what came back, body read.
type answer struct {
	*http.Response
	body []byte
}

func (f *face) do(method, path string, body io.Reader, header ...string) answer {
	f.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, f.url(path), body)
	require.NoError(f.t, err)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := f.client.Do(req)
	require.NoError(f.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(f.t, err)
	return answer{resp, b}
}

func (f *face) get(path string, header ...string) answer {
	f.t.Helper()
	return f.do(http.MethodGet, path, nil, header...)
}

func (f *face) post(path, contentType string, body []byte, header ...string) answer {
	f.t.Helper()
	return f.do(http.MethodPost, path, bytes.NewReader(body), append([]string{"Content-Type", contentType}, header...)...)
}

// requireError checks status and code of an error document, and that its message says what it should.
func (a answer) requireError(t testing.TB, status int, code, says string) {
	t.Helper()
	require.Equal(t, status, a.StatusCode, "%s", a.body)
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	require.Contains(t, string(a.body), `"code":"`+code+`"`)
	require.Contains(t, string(a.body), says)
}

// requireMetric waits for a metric to have that value: an answer may be there a moment before the request that it is for has ended.
func (f *face) requireMetric(want float64, name string, labels ...string) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return f.metric(name, labels...) == want }, 10*time.Second, time.Millisecond, name)
}

// metric returns the value of the gauge or counter with these labels' values, in the order of the labels' names; 0 when there is none.
func (f *face) metric(name string, labels ...string) float64 {
	f.t.Helper()
	families, err := f.registry.Gather()
	require.NoError(f.t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			values := make([]string, len(m.GetLabel()))
			for i, l := range m.GetLabel() {
				values[i] = l.GetValue()
			}
			if family.GetName() == name && slices.Equal(values, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}
