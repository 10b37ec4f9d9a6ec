package gateway

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	inferencepb "github.com/kwaai/kwaaid/proto/inference"
)

func raw64(values ...int64) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

const (
	statesJSON  = `{"name":"hidden_states","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}`
	expertsJSON = `{"name":"experts","shape":[1,2],"datatype":"INT64","data":[[2,-1]]}`
	weightsJSON = `{"name":"weights","shape":[1,2],"datatype":"FP32","data":[0.5,0]}`
)

func TestOIPLayer_AllOutputsOrThoseAskedFor(t *testing.T) {
	f := newFace(t)
	a, reply, rest := f.infer("mixtral/0/infer", `{"inputs":[`+statesJSON+`]}`, nil)
	require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
	require.Empty(t, rest)
	names := make([]string, 0, 4)
	for _, o := range reply.Outputs {
		names = append(names, fmt.Sprint(o.Name, " ", o.Datatype, " ", o.Shape, " ", o.Data))
	}
	require.Equal(t, []string{
		"hidden_states FP32 [1 4] [1 2 3 4]", "experts INT64 [1 2] [2 0]", "weights FP32 [1 2] [0.75 0.25]", "router_logits FP32 [1 3] [1 -1 2]",
	}, names)
	require.Equal(t, map[string]any{
		"answered_by": "peer-a,peer-b", "digest": strings.Repeat("ab", 32), "numerics": "exact-1", "missing_experts": "",
	}, reply.Parameters)
	require.Equal(t, "main", reply.ModelVersion)

	_, reply, _ = f.infer("mixtral/0/infer", `{"inputs":[`+statesJSON+`],"outputs":[{"name":"router_logits"},{"name":"experts"}]}`, nil)
	require.Len(t, reply.Outputs, 2)
	require.Equal(t, "experts", reply.Outputs[0].Name)
	require.Equal(t, "router_logits", reply.Outputs[1].Name)
}

func TestOIPLayer_BinaryInAndOutInTheInputsDatatype(t *testing.T) {
	f := newFace(t)
	values := []float32{1, -2.5, 0.5, 3, 4, 5, 6, 7}
	for datatype, d := range map[string]codec.DType{"FP32": codec.F32, "FP16": codec.F16, "BF16": codec.BF16} {
		states := make([]byte, len(values)*sizeOf(d))
		codec.Encode(states, d, values)
		behind := append(append(append([]byte{}, states...), raw64(2, -1, 0, 1)...), raw32(0.5, 0, 0.25, 0.75)...)
		text := fmt.Sprintf(`{"inputs":[{"name":"hidden_states","shape":[1,2,4],"datatype":%q,"parameters":{"binary_data_size":%d}},
			{"name":"experts","shape":[2,2],"datatype":"INT64","parameters":{"binary_data_size":32}},
			{"name":"weights","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],
			"parameters":{"binary_data_output":true,"timeout_ms":1500,"policy":"skip","combine":"caller","codec":"bf16"}}`, datatype, len(states))
		a, reply, rest := f.infer("mixtral/0/infer", text, behind)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.Equal(t, datatype, reply.Outputs[0].Datatype)
		require.Equal(t, []int{1, 2, 4}, reply.Outputs[0].Shape)
		want := append(append([]byte{}, states...), raw64(2, 0, 2, 0)...)
		want = append(append(want, raw32(0.75, 0.25, 0.75, 0.25)...), raw32(1, -1, 2, 1, -1, 2)...)
		require.Equal(t, want, rest)

		got := f.inference.askedLayer()
		require.Equal(t, values, got.Input.Data())
		got.Input = nil
		require.Equal(t, api.LayerRequest{
			Name: "mixtral/0", Experts: []int64{2, -1, 0, 1}, Weights: []float32{0.5, 0, 0.25, 0.75},
			Timeout: 1500 * time.Millisecond, Policy: "skip", Combine: "caller", Codec: "bf16",
		}, got)
	}
}

func TestOIPLayer_GRPCRawAndTypedContents(t *testing.T) {
	f := newFace(t)
	client := inferencepb.NewGRPCInferenceServiceClient(f.dial())
	inputs := func() []*inferencepb.ModelInferRequest_InferInputTensor {
		return []*inferencepb.ModelInferRequest_InferInputTensor{
			{Name: "weights", Datatype: "FP32", Shape: []int64{1, 2}},
			{Name: "experts", Datatype: "INT64", Shape: []int64{1, 2}},
			{Name: "hidden_states", Datatype: "FP32", Shape: []int64{4}},
		}
	}
	raw := &inferencepb.ModelInferRequest{
		ModelName: "mixtral/0", ModelVersion: "v2", Inputs: inputs(), RawInputContents: [][]byte{raw32(0.5, 0.5), raw64(1, 0), raw32(1, 2, 3, 4)},
	}
	reply, err := client.ModelInfer(soon(t), raw)
	require.NoError(t, err)
	require.Equal(t, [][]byte{raw32(1, 2, 3, 4), raw64(2, 0), raw32(0.75, 0.25), raw32(1, -1, 2)}, reply.GetRawOutputContents())
	require.Equal(t, []int64{4}, reply.GetOutputs()[0].GetShape())
	require.Equal(t, "mixtral@v2/0", f.inference.askedLayer().Name)
	require.Equal(t, []int64{1, 0}, f.inference.askedLayer().Experts)
	require.Empty(t, reply.GetParameters()["missing_experts"].GetStringParam())

	typed := &inferencepb.ModelInferRequest{
		ModelName: "mixtral/0", Inputs: inputs(), Outputs: []*inferencepb.ModelInferRequest_InferRequestedOutputTensor{{Name: "experts"}},
	}
	typed.Inputs[0].Contents = &inferencepb.InferTensorContents{Fp32Contents: []float32{0.5, 0.5}}
	typed.Inputs[1].Contents = &inferencepb.InferTensorContents{Int64Contents: []int64{1, 0}}
	typed.Inputs[2].Contents = &inferencepb.InferTensorContents{Fp32Contents: []float32{1, 2, 3, 4}}
	reply, err = client.ModelInfer(soon(t), typed)
	require.NoError(t, err)
	require.Empty(t, reply.GetRawOutputContents())
	require.Len(t, reply.GetOutputs(), 1)
	require.Equal(t, []int64{2, 0}, reply.GetOutputs()[0].GetContents().GetInt64Contents())

	typed.Inputs[1].Contents = &inferencepb.InferTensorContents{Int64Contents: []int64{1}}
	_, err = client.ModelInfer(soon(t), typed)
	require.Equal(t, codes.InvalidArgument, grpcstatus.Code(err))
	require.Contains(t, err.Error(), "int64_contents")
}

func TestOIPLayer_SaysWhoIsMissing(t *testing.T) {
	f := newFace(t)
	f.inference.layer = func(_ context.Context, req api.LayerRequest) (api.LayerResult, api.LayerOutput, error) {
		res, out, err := echoLayer(req)
		res.MissingExperts = []expert.ID{42, 7}
		return res, out, err
	}
	_, reply, _ := f.infer("mixtral/0/infer", `{"inputs":[`+statesJSON+`],"parameters":{"policy":"skip"}}`, nil)
	require.Equal(t, "expert-42,expert-7", reply.Parameters["missing_experts"])
}

func TestOIPLayer_DescribesItself(t *testing.T) {
	f := newFace(t)
	f.node.layers = []api.Layer{{Layer: "mixtral/0", Hidden: 64, Experts: 8, TopK: 2}, {Layer: "strange/0", Error: "unknown rule", Code: "UNIMPLEMENTED"}}
	want := `{"name":"mixtral/0","versions":["main"],"platform":"kwaai_swarm",
		"inputs":[{"name":"hidden_states","datatype":"FP32","shape":[-1,64]},{"name":"experts","datatype":"INT64","shape":[-1,2]},
			{"name":"weights","datatype":"FP32","shape":[-1,2]}],
		"outputs":[{"name":"hidden_states","datatype":"FP32","shape":[-1,64]},{"name":"experts","datatype":"INT64","shape":[-1,2]},
			{"name":"weights","datatype":"FP32","shape":[-1,2]},{"name":"router_logits","datatype":"FP32","shape":[-1,8]}]}`
	require.JSONEq(t, want, string(f.get("/v2/models/mixtral/0").body))
	require.JSONEq(t, `{"name":"mixtral/0","ready":true}`, string(f.get("/v2/models/mixtral/0/ready").body))
	require.JSONEq(t, `{"name":"strange/0","ready":false}`, string(f.get("/v2/models/strange/0/ready").body))
	f.get("/v2/models/strange/0").requireError(t, http.StatusNotImplemented, "UNIMPLEMENTED", "layer strange/0: unknown rule") // as a call of it
	a := f.get("/v2/models/other/0")
	require.Equal(t, http.StatusNotFound, a.StatusCode)
	require.Contains(t, string(a.body), "no router of layer other/0")
	var list []api.Layer
	require.NoError(t, json.Unmarshal(f.get("/api/v1/layers").body, &list))
	require.Equal(t, f.node.layers, list)
}

func TestOIPLayer_RefusesWithTheReason(t *testing.T) {
	f := newFace(t)
	for name, c := range map[string]struct{ inputs, more, says string }{
		"nothing":       {``, ``, `"hidden_states\" is missing`},
		"other input":   {`{"name":"x","shape":[1],"datatype":"FP32","data":[1]}`, ``, "a layer has hidden_states"},
		"twice":         {statesJSON + `,` + statesJSON, ``, "twice"},
		"only experts":  {statesJSON + `,` + expertsJSON, ``, "or neither"},
		"only weights":  {statesJSON + `,` + weightsJSON, ``, "or neither"},
		"other rows":    {statesJSON + `,` + weightsJSON + `,{"name":"experts","shape":[2,1],"datatype":"INT64","data":[1,2]}`, ``, "expected [1, k]"},
		"no k":          {statesJSON + `,` + weightsJSON + `,{"name":"experts","shape":[1,0],"datatype":"INT64","data":[]}`, ``, "expected [1, k]"},
		"other k":       {statesJSON + `,` + weightsJSON + `,{"name":"experts","shape":[1,3],"datatype":"INT64","data":[1,2,0]}`, ``, "expected the same"},
		"float experts": {statesJSON + `,` + weightsJSON + `,{"name":"experts","shape":[1,2],"datatype":"FP32","data":[1,2]}`, ``, "expected INT64"},
		"int weights":   {statesJSON + `,` + expertsJSON + `,{"name":"weights","shape":[1,2],"datatype":"INT64","data":[1,2]}`, ``, "expected FP32"},
		"int states":    {`{"name":"hidden_states","shape":[1,4],"datatype":"INT64","data":[1,2,3,4]}`, ``, "expected FP32, FP16 or BF16"},
		"half an int":   {`{"name":"experts","shape":[1,1],"datatype":"INT64","data":[1.5]}`, ``, "no int64"},
		"four axes":     {`{"name":"hidden_states","shape":[1,1,1,4],"datatype":"FP32","data":[1,2,3,4]}`, ``, "expected [rows, hidden]"},
		"no such":       {statesJSON, `,"outputs":[{"name":"y"}]`, "a layer has hidden_states, experts, weights, router_logits"},
		"digest":        {statesJSON, `,"parameters":{"digest":"` + strings.Repeat("ab", 32) + `"}`, "is a layer"},
	} {
		t.Run(name, func(t *testing.T) {
			a := f.post("/v2/models/mixtral/0/infer", mimeJSON, []byte(`{"inputs":[`+c.inputs+`]`+c.more+`}`))
			require.Equal(t, http.StatusBadRequest, a.StatusCode, "%s", a.body)
			require.Contains(t, string(a.body), c.says)
		})
	}
}

func TestCallLayer_RowsInRowsOut(t *testing.T) {
	f := newFace(t)
	client := f.apiClient()
	x := tensor.New(tensor.WithShape(2, 4), tensor.WithBacking([]float32{1, 2, 3, 4, 5, 6, 7, 8}))
	res, out, err := client.CallLayer(t.Context(), api.LayerRequest{
		Name: "mixtral/0", Input: x, TopK: 3, Combine: "caller", Policy: "skip", Codec: "f16", Numerics: "exact", Timeout: time.Second,
	})
	require.NoError(t, err)
	require.Equal(t, "mixtral/0", res.Layer)
	require.Len(t, res.AnsweredBy, 3)
	require.Equal(t, x.Data(), out.HiddenStates.Data())
	got := f.inference.askedLayer()
	require.Equal(t, x.Data(), got.Input.Data())
	got.Input = nil
	require.Equal(t, api.LayerRequest{
		Name: "mixtral/0", TopK: 3, Combine: "caller", Policy: "skip", Codec: "f16", Numerics: "exact", Timeout: time.Second,
	}, got)

	a := f.post("/api/v1/call/mixtral/0", mimeJSON, []byte(`{"input":[[1,2,3,4]]}`))
	require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
	require.Contains(t, string(a.body), `"layer":"mixtral/0"`)
	require.Contains(t, string(a.body), `"output":[[1,2,3,4]]`)
	a = f.post("/api/v1/call/mixtral/0?rows=3&seed=1", "", nil)
	require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
	require.Equal(t, 3, f.inference.askedLayer().Rows)
}

func TestCallLayer_QueryIsOfLayersOrOfExperts(t *testing.T) {
	f := newFace(t)
	for query, says := range map[string]string{
		"mixtral/0?digest=" + strings.Repeat("ab", 32): "this is a layer",
		"mixtral/0?policy=maybe":                       "fail or skip",
		"mixtral/0?combine=here":                       "caller or peer",
		"mixtral/0?top_k=0":                            "at least one",
		"mixtral/0?top_k=x":                            "top_k",
		"mixtral/0/3?policy=skip":                      "for layers",
		"mixtral/0/3?combine=caller":                   "for layers",
		"7?top_k=1":                                    "for layers",
		"7?other=1":                                    "for a layer combine, policy or top_k",
	} {
		f.post("/api/v1/call/"+query, "", nil).requireError(t, http.StatusBadRequest, "INVALID_ARGUMENT", says)
	}
}

func TestOIPLayer_LeavesTheSharedExpertToACallerWhoHasIt(t *testing.T) {
	f := newFace(t)
	for param, want := range map[string]bool{``: false, `,"parameters":{"shared":true}`: false, `,"parameters":{"shared":false}`: true} {
		text := `{"inputs":[{"name":"hidden_states","shape":[4],"datatype":"FP32","data":[1,2,3,4]}]` + param + `}`
		a, _, _ := f.infer("mixtral/0/infer", text, nil)
		require.Equal(t, http.StatusOK, a.StatusCode, "%s", a.body)
		require.Equal(t, want, f.inference.askedLayer().NoShared, param)
	}
	a, _, _ := f.infer("mixtral/0/infer", `{"inputs":[],"parameters":{"shared":"no"}}`, nil)
	require.Equal(t, http.StatusBadRequest, a.StatusCode)
}
