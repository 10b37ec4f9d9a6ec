package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/npy"
)

func npyFile(t testing.TB, shape []int, data []float32) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, npy.Write(&b, shape, data))
	return b.Bytes()
}

func TestCall_ClientGetsBackWhatItSent(t *testing.T) {
	f := newFace(t)
	c := f.apiClient()
	for _, shape := range [][]int{{4}, {2, 4}, {2, 3, 4}, {3000, 1024}} {
		n := tensor.Shape(shape).TotalSize()
		data := make([]float32, n)
		for i := range data {
			data[i] = float32(i) / 3
		}
		req := api.CallRequest{
			Name: "mixtral/0/3", Input: tensor.New(tensor.WithShape(shape...), tensor.WithBacking(data)),
			Timeout: 1500 * time.Millisecond, Digest: strings.Repeat("ab", 32), Codec: "bf16", Numerics: "exact",
		}
		result, y, err := c.Call(context.Background(), req)
		require.NoError(t, err)
		require.Equal(t, data, y.Data())
		require.Equal(t, tensor.Shape(shape), y.Shape())
		require.Equal(t, shape, result.Shape)
		require.Equal(t, "größer 🙂", result.Attempts[0].Detail)
		got := f.inference.asked()
		require.Equal(t, data, got.Input.Data())
		got.Input, req.Input = nil, nil
		require.Equal(t, req, got)
	}
	_, _, err := c.Call(context.Background(), api.CallRequest{Name: "7", Rows: 3, Seed: math.MaxUint64})
	require.NoError(t, err)
	require.Equal(t, api.CallRequest{Name: "7", Rows: 3, Seed: math.MaxUint64}, f.inference.asked())
}

func TestCall_JSONGoesInAndComesBack(t *testing.T) {
	f := newFace(t)
	a := f.post("/api/v1/call/expert-7", "application/json; charset=utf-8", []byte(` {"input": [[1, -2.5, 3e2, 0.1], [5,6,7,8]]} `))
	require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
	require.Equal(t, tensor.Shape{2, 4}, f.inference.asked().Input.Shape())
	var doc struct {
		api.CallResult
		Output [][]float32 `json:"output"`
	}
	require.NoError(t, json.Unmarshal(a.body, &doc))
	require.Equal(t, [][]float32{{1, -2.5, 300, 0.1}, {5, 6, 7, 8}}, doc.Output)
	require.Equal(t, api.WhereLocal, doc.AnsweredBy.Where)
}

func TestCall_LargeJSONArrivesWhole(t *testing.T) {
	f := newFace(t)
	rows := make([][]float32, 300)
	for i := range rows {
		rows[i] = make([]float32, 700)
		for j := range rows[i] {
			rows[i][j] = float32(i) * 1.1e-7 * float32(math.Exp(float64(j%80)))
		}
	}
	in, err := json.Marshal(map[string]any{"input": rows})
	require.NoError(t, err)
	var doc struct {
		Output [][]float32 `json:"output"`
	}
	require.NoError(t, json.Unmarshal(f.post("/api/v1/call/1", mimeJSON, in).body, &doc))
	require.Equal(t, rows, doc.Output)
}

func TestCall_AnswersInTheFormThatIsAskedFor(t *testing.T) {
	f := newFace(t)
	array := npyFile(t, []int{1, 4}, []float32{1, 2, 3, 4})
	rows := []byte(`{"input":[[1,2,3,4]]}`)
	for name, c := range map[string]struct {
		contentType string
		body        []byte
		accept      string
		wantsNpy    bool
		hasOutput   bool
	}{
		"npy, npy":         {api.MIMENpy, array, api.MIMENpy, true, false},
		"npy, anything":    {api.MIMENpy, array, "*/*", true, false},
		"npy, octets":      {"application/octet-stream", array, "application/octet-stream", true, false},
		"npy, JSON":        {api.MIMENpy, array, mimeJSON, false, false},
		"curl's type, npy": {"application/x-www-form-urlencoded", array, "*/*", true, false},
		"curl's type, JSON": {
			"application/x-www-form-urlencoded", rows, "*/*", false, true,
		},
		"JSON, JSON":      {mimeJSON, rows, "", false, true},
		"JSON, npy":       {mimeJSON, rows, api.MIMENpy, true, false},
		"nothing, npy":    {"", nil, api.MIMENpy, true, false},
		"nothing, JSON":   {"", nil, "", false, false},
		"JSON before npy": {api.MIMENpy, array, "application/json, application/x-npy", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := f.post("/api/v1/call/expert-7", c.contentType, c.body, "Accept", c.accept)
			require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
			if c.wantsNpy {
				require.Equal(t, api.MIMENpy, a.Header.Get("Content-Type"))
				shape, _, err := npy.ReadSized(bytes.NewReader(a.body), a.ContentLength, 1<<20)
				require.NoError(t, err)
				require.Equal(t, []int{1, 4}, shape)
				require.True(t, json.Valid([]byte(a.Header.Get(api.ResultHeader))))
				return
			}
			require.Equal(t, c.hasOutput, bytes.Contains(a.body, []byte(`"output":[[`)), "%s", a.body)
		})
	}
}

func TestCall_RefusesWithTheReason(t *testing.T) {
	f := newFace(t, func(c *Config) { c.MaxFrame = 1 << 20 })
	array := npyFile(t, []int{1, 4}, []float32{1, 2, 3, 4})
	for name, c := range map[string]struct {
		query, contentType string
		body               []byte
		status             int
		code, says         string
	}{
		"timeout":         {"?timeout=5", "", nil, 400, "INVALID_ARGUMENT", "missing unit"},
		"no time":         {"?timeout=0s", "", nil, 400, "INVALID_ARGUMENT", "no time"},
		"digest":          {"?digest=abc", "", nil, 400, "INVALID_ARGUMENT", "64 hexadecimal"},
		"rows":            {"?rows=0", "", nil, 400, "INVALID_ARGUMENT", "at least one"},
		"many rows":       {"?rows=1e9", "", nil, 400, "INVALID_ARGUMENT", "rows"},
		"seed":            {"?seed=-1", "", nil, 400, "INVALID_ARGUMENT", "seed"},
		"typo":            {"?time=5s", "", nil, 400, "INVALID_ARGUMENT", "expected timeout"},
		"query":           {"?a;b", "", nil, 400, "INVALID_ARGUMENT", "query"},
		"body and rows":   {"?rows=3", api.MIMENpy, array, 400, "INVALID_ARGUMENT", "without a body"},
		"not npy":         {"", api.MIMENpy, []byte("hello"), 400, "INVALID_ARGUMENT", "magic"},
		"empty npy":       {"", api.MIMENpy, npyFile(t, []int{0, 4}, nil), 400, "INVALID_ARGUMENT", "empty batch"},
		"cut npy":         {"", api.MIMENpy, array[:len(array)-1], 400, "INVALID_ARGUMENT", "claims 144"},
		"long npy":        {"", api.MIMENpy, append(slices.Clip(array), 0), 400, "INVALID_ARGUMENT", "claims 144"},
		"huge":            {"", api.MIMENpy, make([]byte, 1<<20+1), 413, "RESOURCE_EXHAUSTED", "max_frame"},
		"no JSON":         {"", mimeJSON, []byte("hello"), 400, "INVALID_ARGUMENT", "object"},
		"other key":       {"", mimeJSON, []byte(`{"inputs":[[1]]}`), 400, "INVALID_ARGUMENT", "unknown key"},
		"no rows":         {"", mimeJSON, []byte(`{}`), 400, "INVALID_ARGUMENT", "0 dimensions"},
		"empty JSON rows": {"", mimeJSON, []byte(`{"input":[[],[]]}`), 400, "INVALID_ARGUMENT", "empty batch"},
		"ragged":          {"", mimeJSON, []byte(`{"input":[[1,2],[3]]}`), 400, "INVALID_ARGUMENT", "a row of 1 elements among rows of 2"},
		"NaN":             {"", mimeJSON, []byte(`{"input":[[NaN]]}`), 400, "INVALID_ARGUMENT", "number was expected"},
		"too large":       {"", mimeJSON, []byte(`{"input":[[1e39]]}`), 400, "INVALID_ARGUMENT", "float32"},
		"deep":            {"", mimeJSON, []byte(`{"input":[[[[1]]]]}`), 400, "INVALID_ARGUMENT", "4 dimensions"},
		"text behind":     {"", mimeJSON, []byte(`{"input":[[1]]} x`), 400, "INVALID_ARGUMENT", "follows"},
	} {
		t.Run(name, func(t *testing.T) {
			f.post("/api/v1/call/expert-7"+c.query, c.contentType, c.body).requireError(t, c.status, c.code, c.says)
		})
	}
	f.post("/api/v1/call/nobody", api.MIMENpy, array).requireError(t, 400, "INVALID_ARGUMENT", "no expert ID")
	require.Equal(t, http.StatusOK, f.post("/api/v1/call/expert-7", api.MIMENpy, array).StatusCode)
	f.requireMetric(0, "kwaai_gateway_body_bytes")
}

func TestCall_NaNIsNotForJSON(t *testing.T) {
	f := newFace(t)
	f.inference.call = func(_ context.Context, req api.CallRequest) (api.CallResult, *tensor.Dense, error) {
		req.Input = tensor.New(tensor.WithShape(1, 2), tensor.WithBacking([]float32{1, float32(math.NaN())}))
		return echo(req)
	}
	f.post("/api/v1/call/7", mimeJSON, []byte(`{"input":[[1,2]]}`)).requireError(t, 501, "UNIMPLEMENTED", "application/x-npy")
	require.Equal(t, 200, f.post("/api/v1/call/7", mimeJSON, []byte(`{"input":[[1,2]]}`), "Accept", api.MIMENpy).StatusCode)
}

// The body is announced, and nothing of it sent: the refusal must come nevertheless.
func TestCall_RefusesBySizeBeforeReading(t *testing.T) {
	f := newFace(t, func(c *Config) { c.MaxFrame = 1 << 20 })
	for i, length := range []int{1<<20 + 1, 1 << 40} {
		c, err := net.Dial("tcp", f.Addr().String())
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = fmt.Fprintf(c, "POST /api/v1/call/expert-%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", i, length)
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, c.Close())
	}
}

func TestCall_RefusesAChunkedBodyThatGoesOn(t *testing.T) {
	f := newFace(t, func(c *Config) { c.MaxFrame = 1 << 20 })
	endless := io.MultiReader(strings.NewReader(`{"input":[`), io.LimitReader(spaces{}, 1<<22))
	f.do(http.MethodPost, "/api/v1/call/7", struct{ io.Reader }{endless}, "Content-Type", mimeJSON).
		requireError(t, http.StatusRequestEntityTooLarge, "RESOURCE_EXHAUSTED", "on and on")
	chunked := struct{ io.Reader }{bytes.NewReader(npyFile(t, []int{1, 4}, []float32{1, 2, 3, 4}))}
	require.Equal(t, http.StatusOK, f.do(http.MethodPost, "/api/v1/call/7", chunked, "Content-Type", api.MIMENpy).StatusCode)
	f.requireMetric(0, "kwaai_gateway_body_bytes")
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestCall_BodiesTogetherStayWithinTheBudget(t *testing.T) {
	f := newFace(t, func(c *Config) { c.MaxFrame = 1 << 20 })
	var conns []net.Conn
	for range bodiesPerNode { // each announces a megabyte and sends little of it
		c, err := net.Dial("tcp", f.Addr().String())
		require.NoError(t, err)
		conns = append(conns, c)
		_, err = fmt.Fprintf(c, "POST /api/v1/call/expert-1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n{", 1<<20)
		require.NoError(t, err)
	}
	f.requireMetric(bodiesPerNode<<20, "kwaai_gateway_body_bytes")
	a := f.post("/api/v1/call/7", mimeJSON, []byte(`{"input":[[1]]}`))
	a.requireError(t, http.StatusTooManyRequests, "OVERLOADED", "memory")
	require.Equal(t, "1", a.Header.Get("Retry-After"))
	for _, c := range conns {
		require.NoError(t, c.Close())
	}
	f.requireMetric(0, "kwaai_gateway_body_bytes")
	require.Equal(t, http.StatusOK, f.post("/api/v1/call/7", mimeJSON, []byte(`{"input":[[1]]}`)).StatusCode)
}

func TestCall_EndsWhenTheClientGoes(t *testing.T) {
	f := newFace(t)
	entered, ended := make(chan struct{}, 1), make(chan error, 1)
	f.inference.call = func(ctx context.Context, _ api.CallRequest) (api.CallResult, *tensor.Dense, error) {
		entered <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return api.CallResult{}, nil, ctx.Err()
	}
	array := npyFile(t, []int{1, 4}, []float32{1, 2, 3, 4})
	for _, body := range [][]byte{nil, array, []byte(`{"input":[1]}`)} {
		ctx, cancel := context.WithCancel(context.Background())
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url("/api/v1/call/expert-1"), bytes.NewReader(body))
		require.NoError(t, err)
		go func() {
			<-entered
			cancel()
		}()
		_, err = f.client.Do(req) //nolint:bodyclose // there is none
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, requireSoon(t, ended), context.Canceled)
	}
	f.requireMetric(3, "kwaai_gateway_requests_total", "call", "499")
}

func TestCall_ErrorsNameExpertAndAttempts(t *testing.T) {
	f := newFace(t)
	f.inference.call = func(context.Context, api.CallRequest) (api.CallResult, *tensor.Dense, error) {
		return api.CallResult{}, nil, api.NewError("DEADLINE_EXCEEDED", "late", nil).WithCall(7, []api.Attempt{{Expert: 7, Peer: "peer-b", Status: "TIMEOUT"}})
	}
	a := f.post("/api/v1/call/7", "", nil)
	a.requireError(t, http.StatusGatewayTimeout, "DEADLINE_EXCEEDED", `"expert":"expert-7"`)
	require.Contains(t, string(a.body), `"peer":"peer-b"`)
}

func BenchmarkCall(b *testing.B) {
	for _, rows := range []int{1, 2048} {
		data := make([]float32, rows*1024)
		for i := range data {
			data[i] = float32(i%1000) / 7
		}
		text, err := json.Marshal(map[string]any{"input": data})
		require.NoError(b, err)
		for name, c := range map[string]struct {
			kind string
			body []byte
		}{"npy": {api.MIMENpy, npyFile(b, []int{rows, 1024}, data)}, "json": {mimeJSON, text}} {
			b.Run(fmt.Sprintf("%s/%dx1024", name, rows), func(b *testing.B) {
				f := newFace(b)
				b.ReportAllocs()
				b.SetBytes(int64(8 * len(data)))
				for b.Loop() {
					f.post("/api/v1/call/7", c.kind, c.body)
				}
			})
		}
	}
}
