package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	inferencepb "github.com/kwaai/kwaaid/proto/inference"
)

// oipReply is a reply of the HTTP face.
type oipReply struct {
	ModelName    string         `json:"model_name"`
	ModelVersion string         `json:"model_version"`
	ID           string         `json:"id"`
	Parameters   map[string]any `json:"parameters"`
	Outputs      []struct {
		Name, Datatype string
		Shape          []int
		Parameters     struct {
			Size *int `json:"binary_data_size"`
		}
		Data []float32
	}
}

// infer posts JSON with binary behind it, and splits the answer likewise.
func (f *face) infer(path, text string, behind []byte) (answer, oipReply, []byte) {
	f.t.Helper()
	var header []string
	if behind != nil {
		header = []string{headerLength, strconv.Itoa(len(text))}
	}
	a := f.post("/v2/models/"+path, "application/octet-stream", append([]byte(text), behind...), header...)
	var reply oipReply
	doc, rest := a.body, []byte(nil)
	if n, err := strconv.Atoi(a.Header.Get(headerLength)); err == nil {
		doc, rest = a.body[:n], a.body[n:]
	}
	require.NoError(f.t, json.Unmarshal(doc, &reply), "%s", doc)
	return a, reply, rest
}

func sizeOf(d codec.DType) int {
	if d == codec.F32 {
		return 4
	}
	return 2
}

func raw32(values ...float32) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func TestOIP_OptionalValuesMayBeNull(t *testing.T) {
	f := newFace(t)
	for _, text := range []string{
		`{"id":null,"parameters":null,"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":null,"data":[1,2]}],"outputs":null}`,
		`{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}],"outputs":[{"name":"y","parameters": null }]}`,
	} {
		a, reply, rest := f.infer("42/infer", text, nil)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.Empty(t, rest)
		require.Empty(t, reply.ID)
		require.Equal(t, []float32{1, 2}, reply.Outputs[0].Data)
	}
	a, reply, rest := f.infer("42/infer", `{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":null,"parameters":{"binary_data_size":8}}],
		"outputs":[{"name":"y","parameters":{"binary_data":null}}],"parameters":{"binary_data_output":true}}`, raw32(1, 2))
	require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
	require.Empty(t, reply.Outputs[0].Data)
	require.Equal(t, raw32(1, 2), rest)

	// What is not optional is still missed, and a parameter of no value is none.
	for text, says := range map[string]string{
		`{"inputs":null}`: "an expert has one",
		`{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":null}]}`:                                   "neither data",
		`{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,null]}]}`:                               "a number was expected",
		`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}],"parameters":{"digest":null}}`:       "a bool, a string or a number",
		`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}],"parameters":nul}`:                   "a value was expected",
		`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}],"parameters":[]}`:                    "an object was expected",
		`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]},null]}`:                               "an object was expected",
		`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}],"outputs":[{"name":"y"},null]}`:      "an object was expected",
		`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"content_type":null}}]}`: "unknown parameter",
	} {
		f.post("/v2/models/42/infer", mimeJSON, []byte(text)).requireError(t, http.StatusBadRequest, "INVALID_ARGUMENT", says)
	}
}

func TestOIP_JSONInJSONOut(t *testing.T) {
	f := newFace(t)
	for _, text := range []string{
		`{"id":"a\"1","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2.5,-3,4e-1]}]}`,
		`{"id":"a\"1","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[-3,0.4]]}],"outputs":[{"name":"y"}]}`,
		`{"inputs":[{"data":[[1,2.5],[-3,0.4]],"datatype":"FP32","shape":[2,2],"name":"x"}],"id":"a\"1"}`,
		`{"inputs":[{"datatype":"FP32","data":[[1,2.5],[-3,0.4]],"shape":[2,2],"name":"x"}],"id":"a\"1","parameters":{"priority":1}}`,
	} {
		a, reply, rest := f.infer("mixtral@v2/0/3/infer", text, nil)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.Equal(t, "application/json", a.Header.Get("Content-Type"))
		require.Empty(t, rest)
		require.Equal(t, []float32{1, 2.5, -3, 0.4}, reply.Outputs[0].Data)
		require.Equal(t, []int{2, 2}, reply.Outputs[0].Shape)
		require.Equal(t, "FP32", reply.Outputs[0].Datatype)
		require.Equal(t, "y", reply.Outputs[0].Name)
		require.Equal(t, `a"1`, reply.ID)
		require.Equal(t, "mixtral@v2/0/3", reply.ModelName)
		require.Equal(t, "v2", reply.ModelVersion)
		require.Equal(t, map[string]any{"answered_by": "peer-a", "where": "local", "digest": strings.Repeat("ab", 32), "numerics": "exact-1"}, reply.Parameters)
	}
}

func TestOIP_BinaryInBinaryOut(t *testing.T) {
	f := newFace(t)
	values := []float32{1, -2.5, 0.1, 65504, 1e-5, 3}
	for datatype, d := range map[string]codec.DType{"FP32": codec.F32, "FP16": codec.F16, "BF16": codec.BF16} {
		raw := make([]byte, len(values)*sizeOf(d))
		codec.Encode(raw, d, values)
		rounded := make([]float32, len(values))
		codec.Decode(rounded, d, raw)
		input := fmt.Sprintf(`"inputs":[{"name":"x","shape":[2,3],"datatype":%q,"parameters":{"binary_data_size":%d}}]`, datatype, len(raw))

		a, reply, rest := f.infer("42/infer", `{`+input+`,"parameters":{"binary_data_output":true}}`, raw)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.Equal(t, raw, rest)
		require.Equal(t, len(raw), *reply.Outputs[0].Parameters.Size)
		require.Equal(t, datatype, reply.Outputs[0].Datatype)
		require.Equal(t, rounded, f.inference.asked().Input.Data())
		require.Empty(t, reply.ModelVersion)

		_, reply, rest = f.infer("42/infer", `{`+input+`,"outputs":[{"name":"y","parameters":{"binary_data":false}}],"parameters":{"binary_data_output":true}}`, raw)
		require.Empty(t, rest)
		require.Equal(t, rounded, reply.Outputs[0].Data)

		_, _, rest = f.infer("42/infer", `{`+input+`,"outputs":[{"name":"y","parameters":{"binary_data":true}}]}`, raw)
		require.Equal(t, raw, rest)
	}
}

func TestOIP_LargeAndChunkedBodiesArriveWhole(t *testing.T) {
	f := newFace(t)
	values := make([]float32, 700*1024)
	for i := range values {
		values[i] = float32(i)
	}
	raw := raw32(values...)
	text := fmt.Sprintf(`{"inputs":[{"name":"x","shape":[700,1024],"datatype":"FP32","parameters":{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}`, len(raw))
	_, _, rest := f.infer("42/infer", text, raw)
	require.True(t, bytes.Equal(raw, rest))
	chunked := struct{ io.Reader }{io.MultiReader(strings.NewReader(text), bytes.NewReader(raw))}
	a := f.do(http.MethodPost, "/v2/models/42/infer", chunked, headerLength, strconv.Itoa(len(text)))
	require.Equal(t, http.StatusOK, a.StatusCode)
	require.True(t, bytes.HasSuffix(a.body, raw))
	f.requireMetric(0, "kwaai_gateway_body_bytes")
}

func TestOIP_ATimeBelowANanosecondIsNotNone(t *testing.T) {
	f := newFace(t)
	f.infer("42/infer", `{"parameters":{"timeout_ms":1e-9},"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}`, nil)
	require.Equal(t, time.Nanosecond, f.inference.asked().Timeout, "0 would be the node's own")
}

func TestOIP_ParametersReachTheCall(t *testing.T) {
	f := newFace(t)
	digest := strings.Repeat("cd", 32)
	f.infer("42/infer", `{"parameters":{"timeout_ms":1500,"digest":"`+digest+`","codec":"bf16","numerics":"dot","policy":"skip","combine":"caller"},
		"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}`, nil)
	got := f.inference.asked()
	got.Input = nil
	require.Equal(t, api.CallRequest{Name: "expert-42", Timeout: 1500 * time.Millisecond, Digest: digest, Codec: "bf16", Numerics: "dot"}, got)
}

func TestOIP_NamesAreReadFromTheRight(t *testing.T) {
	for path, want := range map[string]string{ // NAME, version, verb
		"mixtral/0/3/infer":                        "mixtral/0/3 main infer",
		"mixtral@v2/0/3/infer":                     "mixtral@v2/0/3 v2 infer",
		"mixtral/0/3/versions/v2/infer":            "mixtral@v2/0/3 v2 infer",
		"mixtral@v2/0/3/versions/v2":               "mixtral@v2/0/3 v2 ",
		"mixtral/0":                                "mixtral/0 main ",
		"mixtral/0/ready":                          "mixtral/0 main ready",
		"mixtral/0/versions/main":                  "mixtral/0 main ",
		"mixtral/versions/3/infer":                 "mixtral/versions/3 main infer", // a layer called versions
		"mixtral/versions/3/versions/v2/infer":     "mixtral@v2/versions/3 v2 infer",
		"mixtral/ready":                            "mixtral/ready main ", // a layer called ready
		"mixtral/infer/infer":                      "mixtral/infer main infer",
		"t5/encoder.block.1.layer.1.mlp/31/ready":  "t5/encoder.block.1.layer.1.mlp/31 main ready",
		"expert-42/infer":                          "expert-42  infer",
		"42":                                       "expert-42  ",
		"versions/versions/versions/versions/main": "", // too many slashes whichever way
		"mixtral@v2/0/3/versions/v3/infer":         "",
		"42/versions/1/infer":                      "",
		"nobody/infer":                             "",
		"":                                         "",
		"/infer":                                   "",
		"mixtral/0/3/":                             "",
	} {
		verbs := []string{"ready", ""}
		if strings.HasSuffix(path, "infer") {
			verbs = []string{"infer"}
		}
		name, verb, err := modelPath(path, verbs...)
		if want == "" {
			require.Error(t, err, path)
			continue
		}
		require.NoError(t, err, path)
		require.Equal(t, want, name.ref.String()+" "+name.version+" "+verb, path)
		if n := name.ref.Name; n != nil {
			require.Equal(t, n.ID(), name.ref.ID, path)
		}
	}
	f := newFace(t)
	for _, path := range []string{"mixtral%2F0%2F3/infer", "mixtral%40main/0/3/infer", "mixtral/0/3/versions/main/infer"} {
		a, reply, _ := f.infer(path, `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}`, nil)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.Equal(t, "main", reply.ModelVersion)
		require.Equal(t, "mixtral/0/3", f.inference.asked().Name)
	}
}

func TestOIP_DescribesServerAndModels(t *testing.T) {
	f := newFace(t)
	f.node.status = api.Status{Version: "v1.2.3"}
	mixtral, err := expert.ParseRef("mixtral/0/3")
	require.NoError(t, err)
	f.node.experts = []api.Expert{{Expert: mixtral.ID, Hidden: 4096, State: expert.StateReady}, {Expert: 7, Hidden: 8, State: expert.StateLoading}}
	f.node.resolve = func(name string) (api.Resolved, error) {
		if name == "expert-9" {
			return api.Resolved{Expert: 9, Providers: []api.Provider{{Peer: "peer-b"}}}, nil
		}
		return api.Resolved{}, nil
	}
	for path, want := range map[string]string{
		"/v2":                          `{"name":"kwaaid","version":"v1.2.3","extensions":["binary_tensor_data"]}`,
		"/v2/health/live":              `{"live":true}`,
		"/v2/health/ready":             `{"ready":true}`,
		"/v2/models/mixtral/0/3":       `{"name":"mixtral/0/3","versions":["main"],"platform":"kwaai_swarm","inputs":[{"name":"x","datatype":"FP32","shape":[-1,4096]}],"outputs":[{"name":"y","datatype":"FP32","shape":[-1,4096]}]}`,
		"/v2/models/7":                 `{"name":"7","platform":"kwaai_swarm","inputs":[{"name":"x","datatype":"FP32","shape":[-1,8]}],"outputs":[{"name":"y","datatype":"FP32","shape":[-1,8]}]}`,
		"/v2/models/9":                 `{"name":"9","platform":"kwaai_swarm","inputs":[{"name":"x","datatype":"FP32","shape":[-1,-1]}],"outputs":[{"name":"y","datatype":"FP32","shape":[-1,-1]}]}`,
		"/v2/models/mixtral/0/3/ready": `{"name":"mixtral/0/3","ready":true}`,
	} {
		a := f.get(path)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.JSONEq(t, want, string(a.body), path)
	}
	a := f.get("/v2/models/7/ready")
	require.Equal(t, http.StatusServiceUnavailable, a.StatusCode)
	require.JSONEq(t, `{"name":"7","ready":false}`, string(a.body))
	a = f.get("/v2/models/8/ready")
	require.Equal(t, http.StatusNotFound, a.StatusCode)
	require.JSONEq(t, `{"error":"expert-8: nobody hosts it","code":"NOT_FOUND"}`, string(a.body))
	f.node.set(api.Readiness{}, io.EOF)
	require.Equal(t, http.StatusServiceUnavailable, f.get("/v2/health/live").StatusCode)
	require.Equal(t, http.StatusServiceUnavailable, f.get("/v2/health/ready").StatusCode)
}

func TestOIP_HTTPRefusesWithTheReason(t *testing.T) {
	f := newFace(t, func(c *Config) { c.MaxFrame = 1 << 20 })
	good := `{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}`
	sized := `{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}`
	for name, c := range map[string]struct {
		path, text string
		behind     []byte
		header     []string
		status     int
		says       string
	}{
		"no JSON":         {text: `hello`, status: 400, says: "object"},
		"unknown key":     {text: `{"input":[]}`, status: 400, says: "unknown key"},
		"no inputs":       {text: `{}`, status: 400, says: "inputs []"},
		"two inputs":      {text: `{"inputs":[` + good + `,` + good + `]}`, status: 400, says: `an expert has one, "x"`},
		"other input":     {text: `{"inputs":[{"name":"z","shape":[2],"datatype":"FP32","data":[1,2]}]}`, status: 400, says: `"z"`},
		"other output":    {text: `{"inputs":[` + good + `],"outputs":[{"name":"z"}]}`, status: 400, says: `output "z"`},
		"datatype":        {text: `{"inputs":[{"name":"x","shape":[2],"datatype":"INT64","data":[1,2]}]}`, status: 400, says: "INT64"},
		"JSON halves":     {text: `{"inputs":[{"name":"x","shape":[2],"datatype":"FP16","data":[1,2]}]}`, status: 400, says: "binary"},
		"fewer elements":  {text: `{"inputs":[{"name":"x","shape":[3],"datatype":"FP32","data":[1,2]}]}`, status: 400, says: "has shape [3], its data [2]"},
		"other nesting":   {text: `{"inputs":[{"name":"x","shape":[4,1],"datatype":"FP32","data":[[1,2],[3,4]]}]}`, status: 400, says: "its data [2 2]"},
		"negative":        {text: `{"inputs":[{"name":"x","shape":[-1,2],"datatype":"FP32","data":[1,2]}]}`, status: 400, says: "negative"},
		"no shape":        {text: `{"inputs":[{"name":"x","datatype":"FP32","data":[1,2]}]}`, status: 400, says: "0 dimensions"},
		"empty batch":     {text: `{"inputs":[{"name":"x","shape":[0,2],"datatype":"FP32","data":[]}]}`, status: 400, says: "none of them 0"},
		"no data":         {text: `{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32"}]}`, status: 400, says: "neither"},
		"both":            {text: `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}}]}`, status: 400, says: "both"},
		"overflow":        {text: `{"inputs":[{"name":"x","shape":[4294967296,4294967296],"datatype":"FP32","data":[1]}]}`, status: 413, says: "max_frame"},
		"large shape":     {text: `{"inputs":[{"name":"x","shape":[513,512],"datatype":"FP32","data":[1]}]}`, status: 413, says: "max_frame"},
		"shared memory":   {text: `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"a"}}]}`, status: 501, says: "shared_memory_region"},
		"classification":  {text: `{"inputs":[` + good + `],"outputs":[{"name":"y","parameters":{"classification":3}}]}`, status: 501, says: "classification"},
		"parameter":       {text: `{"inputs":[` + good + `],"parameters":{"digets":"a"}}`, status: 400, says: "expected timeout_ms"},
		"policy":          {text: `{"inputs":[` + good + `],"parameters":{"policy":"perhaps"}}`, status: 400, says: "fail or skip"},
		"timeout":         {text: `{"inputs":[` + good + `],"parameters":{"timeout_ms":-1}}`, status: 400, says: "no time"},
		"time as text":    {text: `{"inputs":[` + good + `],"parameters":{"timeout_ms":"500"}}`, status: 400, says: `"500" is no number`},
		"flag as text":    {text: `{"inputs":[` + good + `],"parameters":{"binary_data_output":"false"}}`, status: 400, says: `"false" is neither`},
		"negative size":   {text: `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":-1}}]}`, status: 400, says: "-1 is no number of bytes"},
		"nested":          {text: `{"inputs":[` + good + `],"parameters":{"digest":{}}}`, status: 400, says: "a bool, a string or a number"},
		"layer's input":   {text: `{"inputs":[{"name":"hidden_states","shape":[2],"datatype":"FP32","data":[1,2]}]}`, status: 400, says: `an expert has one, "x"`},
		"name":            {path: "nobody", text: `{"inputs":[` + good + `]}`, status: 400, says: "nobody"},
		"version":         {path: "42/versions/3", text: `{"inputs":[` + good + `]}`, status: 404, says: "no versions"},
		"compressed":      {text: `{"inputs":[` + good + `]}`, header: []string{"Content-Encoding", "gzip"}, status: 501, says: "gzip"},
		"binary too few":  {text: sized, behind: raw32(1), status: 400, says: "the body has"},
		"binary too many": {text: sized, behind: raw32(1, 2, 3), status: 400, says: "the body has"},
		"binary size":     {text: strings.Replace(sized, "8", "4", 1), behind: raw32(1), status: 400, says: "its shape takes 8"},
		"header too long": {text: sized, header: []string{headerLength, "100000"}, status: 400, says: "is said to have"},
		"header no size":  {text: sized, header: []string{headerLength, "-1"}, status: 400, says: "no number of bytes"},
		"body too large":  {text: strings.Repeat(" ", 1<<20+1), status: 413, says: "max_frame"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.path == "" {
				c.path = "expert-7"
			}
			if c.behind != nil {
				c.header = append(c.header, headerLength, strconv.Itoa(len(c.text)))
			}
			a := f.post("/v2/models/"+c.path+"/infer", mimeJSON, append([]byte(c.text), c.behind...), c.header...)
			require.Equal(t, c.status, a.StatusCode, "%s", a.body)
			var doc v2Error
			require.NoError(t, json.Unmarshal(a.body, &doc), "%s", a.body)
			require.Contains(t, doc.Error, c.says)
		})
	}
	f.requireMetric(0, "kwaai_gateway_body_bytes")
	f.get("/v2/models/a/b/c/d")
	require.Equal(t, http.StatusMethodNotAllowed, f.do(http.MethodPut, "/v2/models/7/infer", nil).StatusCode)
}

func TestOIP_ErrorsOfTheCallKeepTheirStatus(t *testing.T) {
	f := newFace(t)
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	for _, c := range []struct {
		err  error
		http int
		grpc codes.Code
	}{
		{expert.ErrNotFound, 404, codes.NotFound},
		{expert.ErrDeadlineExceeded, 504, codes.DeadlineExceeded},
		{expert.ErrNotReady, 503, codes.Unavailable},
		{expert.ErrDigestMismatch, 409, codes.FailedPrecondition},
		{&expert.OverloadedError{RetryAfter: time.Second}, 429, codes.ResourceExhausted},
		{expert.ErrUnimplemented, 501, codes.Unimplemented},
		{expert.ErrInternal, 500, codes.Internal},
	} {
		f.inference.call = func(context.Context, api.CallRequest) (api.CallResult, *tensor.Dense, error) {
			return api.CallResult{}, nil, fmt.Errorf("wrapped: %w", c.err)
		}
		a := f.post("/v2/models/7/infer", mimeJSON, []byte(`{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}`))
		require.Equal(t, c.http, a.StatusCode)
		require.Contains(t, string(a.body), `{"error":"wrapped: `)
		_, err := client.ModelInfer(soon(t), inferRequestOf("7", "FP32", raw32(1), 1))
		require.Equal(t, c.grpc, grpcstatus.Code(err))
		require.Contains(t, grpcstatus.Convert(err).Message(), "wrapped: ")
	}
}

func TestOIP_ABodyThatBreaksOffIsTheClientsFault(t *testing.T) {
	f := newFace(t)
	for _, path := range []string{"/v2/models/7/infer", "/api/v1/call/7", "/api/v1/bench"} {
		for name, body := range map[string]string{
			"shorter than it says": "Content-Length: 100\r\n\r\n{",
			"chunk that is none":   "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
			"chunk that ends":      "Transfer-Encoding: chunked\r\n\r\n10\r\n{",
		} {
			conn, err := net.Dial("tcp", f.Addr().String())
			require.NoError(t, err)
			_, err = io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+body)
			require.NoError(t, err)
			require.NoError(t, conn.(*net.TCPConn).CloseWrite())
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err)
			require.Equal(t, http.StatusBadRequest, resp.StatusCode, "%s: %s", path, name)
			require.NoError(t, errors.Join(resp.Body.Close(), conn.Close()))
		}
	}
}

func TestOIP_GRPCFailuresFitTheHeadersThatClientsTake(t *testing.T) {
	f := newFace(t)
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	f.inference.call = func(context.Context, api.CallRequest) (api.CallResult, *tensor.Dense, error) {
		return api.CallResult{}, nil, fmt.Errorf("%w: %s", expert.ErrNotReady, strings.Repeat("größer\n", 5000))
	}
	_, err := client.ModelInfer(soon(t), inferRequestOf("7", "FP32", raw32(1), 1))
	require.Equal(t, codes.Unavailable, grpcstatus.Code(err))
	message := grpcstatus.Convert(err).Message()
	require.Contains(t, message, "expert not ready: größer")
	require.True(t, utf8.ValidString(message))
	require.True(t, strings.HasSuffix(message, "…"))
	require.Less(t, len(url.PathEscape(message)), 8<<10, "as it travels; gRPC's C core refuses more, and says INTERNAL")
}

func TestOIP_JSONHasNoFormForWhatOverflowsTheDatatype(t *testing.T) {
	f := newFace(t)
	for datatype, large := range map[string]float32{"FP16": 65520, "BF16": math.MaxFloat32} {
		f.inference.call = func(context.Context, api.CallRequest) (api.CallResult, *tensor.Dense, error) {
			return api.CallResult{}, tensor.New(tensor.WithShape(1), tensor.WithBacking([]float32{large})), nil
		}
		input := fmt.Sprintf(`"inputs":[{"name":"x","shape":[1],"datatype":%q,"parameters":{"binary_data_size":2}}]`, datatype)
		a, _, _ := f.infer("42/infer", `{`+input+`}`, []byte{0, 0x3c})
		require.Equal(t, http.StatusNotImplemented, a.StatusCode, "%s", a.body)
		require.Contains(t, string(a.body), "as binary")
		a, _, rest := f.infer("42/infer", `{`+input+`,"parameters":{"binary_data_output":true}}`, []byte{0, 0x3c})
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.Len(t, rest, 2)
	}
}

func inferRequestOf(name, datatype string, raw []byte, shape ...int64) *inferencepb.ModelInferRequest {
	return &inferencepb.ModelInferRequest{
		ModelName:        name,
		Inputs:           []*inferencepb.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: datatype, Shape: shape}},
		RawInputContents: [][]byte{raw},
	}
}

func TestOIP_GRPCRawAndTypedContents(t *testing.T) {
	f := newFace(t)
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	values := []float32{1, -2.5, 0.1, 7}
	for datatype, d := range map[string]codec.DType{"FP32": codec.F32, "FP16": codec.F16, "BF16": codec.BF16} {
		raw := make([]byte, len(values)*sizeOf(d))
		codec.Encode(raw, d, values)
		req := inferRequestOf("mixtral/0/3", datatype, raw, 2, 2)
		req.Id = "a"
		req.Parameters = map[string]*inferencepb.InferParameter{
			"timeout_ms": {ParameterChoice: &inferencepb.InferParameter_Int64Param{Int64Param: 2500}},
			"codec":      {ParameterChoice: &inferencepb.InferParameter_StringParam{StringParam: "f16"}},
		}
		reply, err := client.ModelInfer(soon(t), req)
		require.NoError(t, err)
		require.Equal(t, [][]byte{raw}, reply.GetRawOutputContents())
		require.Equal(t, "y", reply.GetOutputs()[0].GetName())
		require.Equal(t, datatype, reply.GetOutputs()[0].GetDatatype())
		require.Equal(t, []int64{2, 2}, reply.GetOutputs()[0].GetShape())
		require.Equal(t, "main", reply.GetModelVersion())
		require.Equal(t, "a", reply.GetId())
		require.Equal(t, "peer-a", reply.GetParameters()["answered_by"].GetStringParam())
		require.Equal(t, 2500*time.Millisecond, f.inference.asked().Timeout)
		require.Equal(t, "f16", f.inference.asked().Codec)
	}
	req := inferRequestOf("7", "FP32", nil, 4)
	req.RawInputContents = nil
	req.Inputs[0].Contents = &inferencepb.InferTensorContents{Fp32Contents: values}
	reply, err := client.ModelInfer(soon(t), req)
	require.NoError(t, err)
	require.Empty(t, reply.GetRawOutputContents())
	require.Equal(t, values, reply.GetOutputs()[0].GetContents().GetFp32Contents())
}

func TestOIP_GRPCRefusesWithTheReason(t *testing.T) {
	f := newFace(t, func(c *Config) { c.MaxFrame = 1 << 20 })
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	for name, c := range map[string]struct {
		change func(*inferencepb.ModelInferRequest)
		code   codes.Code
		says   string
	}{
		"layer":         {func(r *inferencepb.ModelInferRequest) { r.ModelName = "mixtral/0" }, codes.InvalidArgument, "a layer has hidden_states"},
		"name":          {func(r *inferencepb.ModelInferRequest) { r.ModelName = "" }, codes.InvalidArgument, "expert ID"},
		"version":       {func(r *inferencepb.ModelInferRequest) { r.ModelVersion = "1" }, codes.NotFound, "no versions"},
		"raw too short": {func(r *inferencepb.ModelInferRequest) { r.RawInputContents[0] = raw32(1) }, codes.InvalidArgument, "has 4 bytes: its shape takes 8"},
		"raw too many":  {func(r *inferencepb.ModelInferRequest) { r.RawInputContents = append(r.RawInputContents, nil) }, codes.InvalidArgument, "2 raw contents for 1 inputs"},
		"both": {func(r *inferencepb.ModelInferRequest) {
			r.Inputs[0].Contents = &inferencepb.InferTensorContents{Fp32Contents: []float32{1, 2}}
		}, codes.InvalidArgument, "both"},
		"neither":  {func(r *inferencepb.ModelInferRequest) { r.RawInputContents = nil }, codes.InvalidArgument, "has 0 fp32_contents"},
		"halves":   {func(r *inferencepb.ModelInferRequest) { r.RawInputContents, r.Inputs[0].Datatype = nil, "BF16" }, codes.InvalidArgument, "raw contents"},
		"no input": {func(r *inferencepb.ModelInferRequest) { r.Inputs, r.RawInputContents = nil, nil }, codes.InvalidArgument, "an expert has one"},
		"large":    {func(r *inferencepb.ModelInferRequest) { r.Inputs[0].Shape = []int64{1 << 40} }, codes.ResourceExhausted, "max_frame"},
		"huge":     {func(r *inferencepb.ModelInferRequest) { r.RawInputContents[0] = make([]byte, 2<<20) }, codes.ResourceExhausted, ""},
		"parameter": {func(r *inferencepb.ModelInferRequest) {
			r.Parameters = map[string]*inferencepb.InferParameter{"a": nil}
		}, codes.InvalidArgument, "unknown"},
		"no value": {func(r *inferencepb.ModelInferRequest) {
			r.Parameters = map[string]*inferencepb.InferParameter{"digest": {}}
		}, codes.InvalidArgument, "no string"},
		"bad output": {func(r *inferencepb.ModelInferRequest) {
			r.Outputs = []*inferencepb.ModelInferRequest_InferRequestedOutputTensor{{Name: "z"}}
		}, codes.InvalidArgument, `"z"`},
		"shared memory": {func(r *inferencepb.ModelInferRequest) {
			r.Inputs[0].Parameters = map[string]*inferencepb.InferParameter{"shared_memory_region": {}}
		}, codes.Unimplemented, "shared_memory"},
	} {
		t.Run(name, func(t *testing.T) {
			req := inferRequestOf("7", "FP32", raw32(1, 2), 2)
			c.change(req)
			_, err := client.ModelInfer(soon(t), req)
			require.Equal(t, c.code, grpcstatus.Code(err), "%v", err)
			require.Contains(t, err.Error(), c.says)
		})
	}
	_, err := client.ModelInfer(soon(t), inferRequestOf("7", "FP32", raw32(1, 2), 2))
	require.NoError(t, err)
}

func TestOIP_GRPCDeadlineAndCancelReachTheCall(t *testing.T) {
	f := newFace(t)
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	entered, ended := make(chan api.CallRequest, 1), make(chan error, 1)
	f.inference.call = func(ctx context.Context, req api.CallRequest) (api.CallResult, *tensor.Dense, error) {
		entered <- req
		<-ctx.Done()
		ended <- ctx.Err()
		return api.CallResult{}, nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	go func() {
		req := <-entered
		if req.Timeout < 30*time.Second || req.Timeout > time.Minute {
			t.Errorf("the call got %v of its minute", req.Timeout)
		}
		cancel()
	}()
	_, err := client.ModelInfer(ctx, inferRequestOf("7", "FP32", raw32(1), 1))
	require.Equal(t, codes.Canceled, grpcstatus.Code(err))
	require.ErrorIs(t, requireSoon(t, ended), context.Canceled)
	ctx, cancel = context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	_, err = client.ModelInfer(ctx, inferRequestOf("7", "FP32", raw32(1), 1))
	require.Equal(t, codes.DeadlineExceeded, grpcstatus.Code(err))
	require.Error(t, requireSoon(t, ended)) // the deadline, or the client's reset at its own, whichever is first
}

func TestOIP_GRPCDescribesServerAndModels(t *testing.T) {
	f := newFace(t)
	f.node.status = api.Status{Version: "v1.2.3"}
	f.node.experts = []api.Expert{{Expert: 7, Hidden: 8, State: expert.StateReady}}
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	live, err := client.ServerLive(soon(t), &inferencepb.ServerLiveRequest{})
	require.NoError(t, err)
	require.True(t, live.GetLive())
	ready, err := client.ServerReady(soon(t), &inferencepb.ServerReadyRequest{})
	require.NoError(t, err)
	require.True(t, ready.GetReady())
	server, err := client.ServerMetadata(soon(t), &inferencepb.ServerMetadataRequest{})
	require.NoError(t, err)
	require.Equal(t, "v1.2.3", server.GetVersion())
	doc, err := client.ModelMetadata(soon(t), &inferencepb.ModelMetadataRequest{Name: "expert-7"})
	require.NoError(t, err)
	require.Equal(t, []int64{-1, 8}, doc.GetInputs()[0].GetShape())
	model, err := client.ModelReady(soon(t), &inferencepb.ModelReadyRequest{Name: "7"})
	require.NoError(t, err)
	require.True(t, model.GetReady())
	f.node.resolve = func(string) (api.Resolved, error) { return api.Resolved{Expert: 8}, nil }
	// As Triton does: an error here is what its client raises, where a program asks for yes or no.
	model, err = client.ModelReady(soon(t), &inferencepb.ModelReadyRequest{Name: "8"})
	require.NoError(t, err)
	require.False(t, model.GetReady())
	_, err = client.ModelReady(soon(t), &inferencepb.ModelReadyRequest{Name: "expert-08"})
	require.Equal(t, codes.InvalidArgument, grpcstatus.Code(err))
}

func FuzzInferJSON(f *testing.F) {
	for _, text := range []string{
		`{"id":"1","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2.5,-3,4e-1]}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}`,
		`{"inputs":[{"data":[[1]],"datatype":"FP32","shape":[1,1],"name":"x"}],"parameters":{"timeout_ms":5,"policy":"skip"}}`,
		`{"inputs":[{"name":"x","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}}]}`,
		`{"inputs":[{"name":"experts","shape":[1,2],"datatype":"INT64","data":[[3,-1]]}],"outputs":[{"name":"router_logits"}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		const limit = 1 << 16
		_, inputs, err := parseInfer(text, limit)
		if err != nil {
			return
		}
		require.True(t, json.Valid(text))
		for _, in := range inputs {
			require.LessOrEqual(t, 4*in.elements, limit)
			if in.binarySize < 0 {
				require.Equal(t, in.elements, in.tensor.count())
			}
			require.Equal(t, in.elements, tensor.Shape(in.tensor.shape).TotalSize())
		}
	})
}

func BenchmarkInfer(b *testing.B) {
	values := make([]float32, 1024)
	for i := range values {
		values[i] = float32(i) / 7
	}
	numbers, err := json.Marshal(values)
	require.NoError(b, err)
	raw := raw32(values...)
	b.Run("grpc", func(b *testing.B) {
		f := newFace(b)
		client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
		req := inferRequestOf("7", "FP32", raw, 1, 1024)
		b.ReportAllocs()
		for b.Loop() {
			_, err := client.ModelInfer(context.Background(), req)
			require.NoError(b, err)
		}
	})
	for name, c := range map[string]struct {
		text   string
		behind []byte
	}{
		"json":   {`{"inputs":[{"name":"x","shape":[1,1024],"datatype":"FP32","data":` + string(numbers) + `}]}`, nil},
		"binary": {`{"inputs":[{"name":"x","shape":[1,1024],"datatype":"FP32","parameters":{"binary_data_size":4096}}],"parameters":{"binary_data_output":true}}`, raw},
	} {
		b.Run(name, func(b *testing.B) {
			f := newFace(b)
			header := []string(nil)
			if c.behind != nil {
				header = []string{headerLength, strconv.Itoa(len(c.text))}
			}
			b.ReportAllocs()
			for b.Loop() {
				f.post("/v2/models/7/infer", mimeJSON, append([]byte(c.text), c.behind...), header...)
			}
		})
	}
}
