package gateway

import (
	"context"
	"fmt"

	"github.com/kwaai/kwaaid/internal/wire"
	inferencepb "github.com/kwaai/kwaaid/proto/inference"
)

// inferenceServer is the Open Inference Protocol over gRPC. Deadlines and cancellation come with the contexts.
type inferenceServer struct {
	inferencepb.UnimplementedGRPCInferenceServiceServer
	g *Gateway
}

// ServerLive tells whether the node's loops beat.
func (s *inferenceServer) ServerLive(context.Context, *inferencepb.ServerLiveRequest) (*inferencepb.ServerLiveResponse, error) {
	return &inferencepb.ServerLiveResponse{Live: s.g.node.Alive() == nil}, nil
}

// ServerReady tells whether the node is ready.
func (s *inferenceServer) ServerReady(ctx context.Context, _ *inferencepb.ServerReadyRequest) (*inferencepb.ServerReadyResponse, error) {
	doc, err := s.g.node.Ready(ctx)
	if err != nil {
		return nil, err
	}
	return &inferencepb.ServerReadyResponse{Ready: doc.Ready}, nil
}

// ServerMetadata describes the server.
func (s *inferenceServer) ServerMetadata(ctx context.Context, _ *inferencepb.ServerMetadataRequest) (*inferencepb.ServerMetadataResponse, error) {
	doc, err := s.g.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &inferencepb.ServerMetadataResponse{Name: serverName, Version: doc.Version, Extensions: serverExtensions}, nil
}

func (s *inferenceServer) model(name, version string) (modelName, model, error) {
	n, err := parseModelName(name, version)
	if err != nil {
		return n, nil, err
	}
	return n, s.g.model(n), nil
}

// ModelReady tells whether somebody could answer for the model now. A model that nobody has is not ready, as with Triton.
func (s *inferenceServer) ModelReady(ctx context.Context, req *inferencepb.ModelReadyRequest) (*inferencepb.ModelReadyResponse, error) {
	_, m, err := s.model(req.GetName(), req.GetVersion())
	ready := false
	if err == nil {
		ready, err = m.ready(ctx)
	}
	if err != nil && document(err).Body.Code != wire.NotFound.String() {
		return nil, err
	}
	return &inferencepb.ModelReadyResponse{Ready: ready}, nil
}

// ModelMetadata describes a model.
func (s *inferenceServer) ModelMetadata(ctx context.Context, req *inferencepb.ModelMetadataRequest) (*inferencepb.ModelMetadataResponse, error) {
	_, m, err := s.model(req.GetName(), req.GetVersion())
	if err != nil {
		return nil, err
	}
	doc, err := m.metadata(ctx)
	if err != nil {
		return nil, err
	}
	tensors := func(list []tensorMetadata) []*inferencepb.ModelMetadataResponse_TensorMetadata {
		out := make([]*inferencepb.ModelMetadataResponse_TensorMetadata, len(list))
		for i, t := range list {
			out[i] = &inferencepb.ModelMetadataResponse_TensorMetadata{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
		}
		return out
	}
	return &inferencepb.ModelMetadataResponse{
		Name: doc.Name, Versions: doc.Versions, Platform: doc.Platform, Inputs: tensors(doc.Inputs), Outputs: tensors(doc.Outputs),
	}, nil
}

// ModelInfer makes one forward pass. The outputs are raw when the inputs were.
func (s *inferenceServer) ModelInfer(ctx context.Context, req *inferencepb.ModelInferRequest) (*inferencepb.ModelInferResponse, error) {
	name, m, err := s.model(req.GetModelName(), req.GetModelVersion())
	if err != nil {
		return nil, err
	}
	var size int64 // the message is in memory already; what is reserved keeps the passes that run on such messages few
	for _, raw := range req.GetRawInputContents() {
		size += int64(len(raw))
	}
	if err := s.g.bodies.take(size); err != nil {
		return nil, err
	}
	defer s.g.bodies.give(size)
	in, err := s.request(req)
	if err != nil {
		return nil, err
	}
	reply, err := m.infer(ctx, in)
	if err != nil {
		return nil, err
	}
	return respond(name, req, reply), nil
}

// request reads tensors and parameters.
func (s *inferenceServer) request(req *inferencepb.ModelInferRequest) (inferRequest, error) {
	var in inferRequest
	for key, p := range req.GetParameters() {
		if err := in.params.set(key, valueOf(p)); err != nil {
			return in, err
		}
	}
	raw := req.GetRawInputContents()
	if len(raw) > 0 && len(raw) != len(req.GetInputs()) {
		return in, refuse(wire.InvalidArgument, fmt.Sprintf("%d raw contents for %d inputs", len(raw), len(req.GetInputs())))
	}
	for i, t := range req.GetInputs() {
		for key := range t.GetParameters() {
			return in, refuseTensorParam(t.GetName(), key)
		}
		d, n, err := elements(t.GetName(), t.GetDatatype(), t.GetShape(), s.g.cfg.MaxFrame)
		if err != nil {
			return in, err
		}
		tensor := inferTensor{name: t.GetName(), datatype: t.GetDatatype(), shape: toInts(t.GetShape())}
		switch {
		case len(raw) > 0 && t.GetContents() != nil:
			return in, refuse(wire.InvalidArgument, fmt.Sprintf("input %s has both contents and raw contents", quoted(t.GetName())))
		case len(raw) > 0:
			err = tensor.decodeRaw(d, n, raw[i])
		case !d.plain():
			err = refuse(wire.InvalidArgument, fmt.Sprintf("input %s: %s travels as raw contents", quoted(t.GetName()), t.GetDatatype()))
		default:
			err = tensor.takeContents(d, n, t.GetContents())
		}
		if err != nil {
			return in, err
		}
		in.inputs = append(in.inputs, tensor)
	}
	for _, o := range req.GetOutputs() {
		for key := range o.GetParameters() {
			return in, refuseTensorParam(o.GetName(), key)
		}
		in.outputs = append(in.outputs, o.GetName())
	}
	return in, nil
}

// takeContents fills in a tensor's n elements from typed contents.
func (t *inferTensor) takeContents(d datatype, n int, c *inferencepb.InferTensorContents) error {
	field := "fp32_contents"
	if d.ints {
		field, t.ints = "int64_contents", c.GetInt64Contents()
	} else {
		t.data = c.GetFp32Contents()
	}
	if found := t.count(); found != n {
		return refuse(wire.InvalidArgument, fmt.Sprintf("input %s has %d %s: its shape takes %d", quoted(t.name), found, field, n))
	}
	return nil
}

// contents returns a tensor as typed contents. Those have no form for 16-bit floats, which an input can only be as raw contents.
func (t *inferTensor) contents() *inferencepb.InferTensorContents {
	return &inferencepb.InferTensorContents{Fp32Contents: t.data, Int64Contents: t.ints}
}

// respond writes tensors and parameters.
func respond(name modelName, req *inferencepb.ModelInferRequest, reply inferReply) *inferencepb.ModelInferResponse {
	out := &inferencepb.ModelInferResponse{
		ModelName: name.name, ModelVersion: name.version, Id: req.GetId(),
		Parameters: make(map[string]*inferencepb.InferParameter, len(reply.params)),
	}
	for _, p := range reply.params {
		out.Parameters[p.key] = &inferencepb.InferParameter{ParameterChoice: &inferencepb.InferParameter_StringParam{StringParam: p.value}}
	}
	raw := len(req.GetRawInputContents()) > 0
	for _, t := range reply.outputs {
		o := &inferencepb.ModelInferResponse_InferOutputTensor{Name: t.name, Datatype: t.datatype, Shape: toInt64s(t.shape)}
		if raw {
			out.RawOutputContents = append(out.RawOutputContents, t.encodeRaw())
		} else {
			o.Contents = t.contents()
		}
		out.Outputs = append(out.Outputs, o)
	}
	return out
}

// valueOf returns the bool, string or number that a parameter holds.
func valueOf(p *inferencepb.InferParameter) any {
	switch v := p.GetParameterChoice().(type) {
	case *inferencepb.InferParameter_BoolParam:
		return v.BoolParam
	case *inferencepb.InferParameter_Int64Param:
		return v.Int64Param
	case *inferencepb.InferParameter_StringParam:
		return v.StringParam
	case *inferencepb.InferParameter_DoubleParam:
		return v.DoubleParam
	case *inferencepb.InferParameter_Uint64Param:
		return v.Uint64Param
	default:
		return nil
	}
}
