package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// The one input and the one output of a single expert.
const (
	expertInput  = "x"
	expertOutput = "y"
)

// expertModel is a single expert.
type expertModel struct {
	g    *Gateway
	name modelName
}

// find returns what is known of the expert here; Hidden is 0 where that is not known.
func (m expertModel) find(ctx context.Context) (api.Expert, error) {
	name := m.name.ref.String()
	e, err := m.g.node.Expert(ctx, name)
	if !errors.Is(err, expert.ErrNotFound) {
		return e, err
	}
	found, err := m.g.node.Resolve(ctx, name) // which also makes it known
	if err != nil {
		return api.Expert{}, err
	}
	if len(found.Providers) == 0 {
		return api.Expert{}, refuse(wire.NotFound, name+": nobody hosts it")
	}
	if e, err = m.g.node.Expert(ctx, name); !errors.Is(err, expert.ErrNotFound) {
		return e, err
	}
	return api.Expert{Expert: m.name.ref.ID, State: expert.StateReady, Providers: len(found.Providers)}, nil
}

func (m expertModel) metadata(ctx context.Context) (modelMetadata, error) {
	e, err := m.find(ctx)
	if err != nil {
		return modelMetadata{}, err
	}
	hidden := int64(e.Hidden)
	if hidden == 0 {
		hidden = -1
	}
	shape := []int64{-1, hidden}
	return modelMetadata{
		Name: m.name.name, Versions: m.name.versions(), Platform: serverPlatform,
		Inputs:  []tensorMetadata{{expertInput, "FP32", shape}},
		Outputs: []tensorMetadata{{expertOutput, "FP32", shape}},
	}, nil
}

func (m expertModel) ready(ctx context.Context) (bool, error) {
	if _, err := m.find(ctx); err != nil {
		return false, err
	}
	return m.g.node.Answerable(m.name.ref.String())
}

func (m expertModel) infer(ctx context.Context, req inferRequest) (inferReply, error) {
	if len(req.inputs) != 1 || req.inputs[0].name != expertInput {
		names := make([]string, len(req.inputs))
		for i, t := range req.inputs {
			names[i] = quoted(t.name)
		}
		return inferReply{}, refuse(wire.InvalidArgument, fmt.Sprintf("inputs [%s]: an expert has one, %q", strings.Join(names, " "), expertInput))
	}
	for _, name := range req.outputs {
		if name != expertOutput {
			return inferReply{}, refuse(wire.InvalidArgument, fmt.Sprintf("output %s: an expert has one, %q", quoted(name), expertOutput))
		}
	}
	x, err := req.inputs[0].rows()
	if err != nil {
		return inferReply{}, err
	}
	result, output, err := m.g.inference.Call(ctx, api.CallRequest{
		Name: m.name.ref.String(), Input: x,
		Timeout: req.timeout(ctx), Digest: req.params.digest, Codec: req.params.codec, Numerics: req.params.numerics,
	})
	if err != nil {
		return inferReply{}, err
	}
	y, err := floats(output)
	if err != nil {
		return inferReply{}, err
	}
	reply := inferReply{
		outputs: []inferTensor{{name: expertOutput, datatype: req.inputs[0].datatype, shape: output.Shape(), data: y}},
	}
	reply.add("answered_by", result.AnsweredBy.Peer)
	reply.add("where", string(result.AnsweredBy.Where))
	reply.add("digest", result.Digest)
	reply.add("numerics", result.Numerics)
	if result.AnsweredBy.Expert != result.Expert {
		reply.add("answered_expert", result.AnsweredBy.Expert.String())
	}
	return reply, nil
}
