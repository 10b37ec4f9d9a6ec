package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/wire"
)

// The inputs and outputs of a layer. hidden_states is both; experts and weights are what the gate chose, or as inputs what a caller
// chose who routes himself.
const (
	layerStates  = "hidden_states"
	layerExperts = "experts"
	layerWeights = "weights"
	layerLogits  = "router_logits"
)

// layerOutputs are a layer's outputs, in the order in which they are sent.
var layerOutputs = []string{layerStates, layerExperts, layerWeights, layerLogits}

// layerModel is a MoE layer.
type layerModel struct {
	g    *Gateway
	name modelName
}

// find returns the layer if this node routes it.
func (m layerModel) find(ctx context.Context) (api.Layer, error) {
	list, err := m.g.node.Layers(ctx)
	if err != nil {
		return api.Layer{}, err
	}
	name := m.name.ref.String()
	i := slices.IndexFunc(list, func(l api.Layer) bool { return l.Layer == name })
	if i < 0 {
		return api.Layer{}, refuse(wire.NotFound, "this node has no router of layer "+name+": host experts of its checkpoint, or name the checkpoint under `layers`")
	}
	return list[i], nil
}

func (m layerModel) metadata(ctx context.Context) (modelMetadata, error) {
	l, err := m.find(ctx)
	if err != nil {
		return modelMetadata{}, err
	}
	if l.Error != "" {
		return modelMetadata{}, api.NewError(l.Code, fmt.Sprintf("layer %s: %s", l.Layer, l.Error), nil)
	}
	states := tensorMetadata{layerStates, "FP32", []int64{-1, int64(l.Hidden)}}
	experts := tensorMetadata{layerExperts, "INT64", []int64{-1, int64(l.TopK)}}
	weights := tensorMetadata{layerWeights, "FP32", []int64{-1, int64(l.TopK)}}
	logits := tensorMetadata{layerLogits, "FP32", []int64{-1, int64(l.Experts)}}
	return modelMetadata{
		Name: m.name.name, Versions: m.name.versions(), Platform: serverPlatform,
		Inputs:  []tensorMetadata{states, experts, weights},
		Outputs: []tensorMetadata{states, experts, weights, logits},
	}, nil
}

// ready tells whether this node can route the layer; its experts are looked for when they are called.
func (m layerModel) ready(ctx context.Context) (bool, error) {
	l, err := m.find(ctx)
	return err == nil && l.Error == "", err
}

func (m layerModel) infer(ctx context.Context, req inferRequest) (inferReply, error) {
	call, datatype, err := m.request(&req)
	if err != nil {
		return inferReply{}, err
	}
	call.Timeout = req.timeout(ctx)
	result, output, err := m.g.inference.CallLayer(ctx, call)
	if err != nil {
		return inferReply{}, err
	}
	y, err := floats(output.HiddenStates)
	if err != nil {
		return inferReply{}, err
	}
	chosen, all := []int{output.Rows, output.K}, []int{output.Rows, 0}
	if output.Rows > 0 {
		all[1] = len(output.RouterLogits) / output.Rows
	}
	var reply inferReply
	for _, t := range []inferTensor{
		{name: layerStates, datatype: datatype, shape: output.HiddenStates.Shape(), data: y},
		{name: layerExperts, datatype: "INT64", shape: chosen, ints: output.Experts},
		{name: layerWeights, datatype: "FP32", shape: chosen, data: output.Weights},
		{name: layerLogits, datatype: "FP32", shape: all, data: output.RouterLogits},
	} {
		if req.wants(t.name) {
			reply.outputs = append(reply.outputs, t)
		}
	}
	reply.add("answered_by", peersOf(result.AnsweredBy))
	reply.add("digest", result.Digest)
	reply.add("numerics", result.Numerics)
	missing := make([]string, len(result.MissingExperts))
	for i, id := range result.MissingExperts {
		missing[i] = id.String()
	}
	// Said even when it is nothing: that nobody is missing is what a caller with policy skip wants to know.
	reply.params = append(reply.params, inferParam{"missing_experts", strings.Join(missing, ",")})
	return reply, nil
}

// request reads inputs and parameters; datatype is that of the hidden states.
func (m layerModel) request(req *inferRequest) (call api.LayerRequest, datatype string, err error) {
	call = api.LayerRequest{
		Name: m.name.ref.String(), Codec: req.params.codec, Numerics: req.params.numerics, Policy: req.params.policy, Combine: req.params.combine,
		NoShared: req.params.noShared,
	}
	if req.params.digest != "" {
		return call, "", refuse(wire.InvalidArgument, "parameter \"digest\" pins the weights of one expert: "+call.Name+" is a layer")
	}
	for _, name := range req.outputs {
		if !slices.Contains(layerOutputs, name) {
			return call, "", refuse(wire.InvalidArgument, fmt.Sprintf("output %s: a layer has %s", quoted(name), strings.Join(layerOutputs, ", ")))
		}
	}
	var states, experts, weights *inferTensor
	for i := range req.inputs {
		t := &req.inputs[i]
		to, ok := map[string]**inferTensor{layerStates: &states, layerExperts: &experts, layerWeights: &weights}[t.name]
		if !ok {
			return call, "", refuse(wire.InvalidArgument, fmt.Sprintf("input %s: a layer has %s, and for callers who route themselves %s and %s",
				quoted(t.name), layerStates, layerExperts, layerWeights))
		}
		if *to != nil {
			return call, "", refuse(wire.InvalidArgument, "input "+quoted(t.name)+" stands here twice")
		}
		*to = t
	}
	if states == nil {
		return call, "", refuse(wire.InvalidArgument, "input \""+layerStates+"\" is missing")
	}
	if call.Input, err = states.rows(); err != nil {
		return call, "", err
	}
	if (experts == nil) != (weights == nil) {
		return call, "", refuse(wire.InvalidArgument, fmt.Sprintf("a caller who routes himself gives %s and %s, or neither", layerExperts, layerWeights))
	}
	if experts != nil {
		rows := states.count() / states.shape[len(states.shape)-1]
		if err := checkChoice(experts, weights, rows); err != nil {
			return call, "", err
		}
		call.Experts, call.Weights = experts.ints, weights.data
	}
	return call, states.datatype, nil
}

// checkChoice wants experts and weights [rows, k].
func checkChoice(experts, weights *inferTensor, rows int) error {
	if d, _ := datatypeOf(experts.datatype); !d.ints {
		return refuse(wire.InvalidArgument, fmt.Sprintf("input %q has datatype %s: expected INT64", layerExperts, experts.datatype))
	}
	if d, _ := datatypeOf(weights.datatype); d.ints {
		return refuse(wire.InvalidArgument, fmt.Sprintf("input %q has datatype %s: expected FP32", layerWeights, weights.datatype))
	}
	for _, t := range []*inferTensor{experts, weights} {
		if len(t.shape) != 2 || t.shape[0] != rows || t.shape[1] == 0 {
			return refuse(wire.InvalidArgument, fmt.Sprintf("input %q has shape %v: expected [%d, k]", t.name, t.shape, rows))
		}
	}
	if experts.shape[1] != weights.shape[1] {
		return refuse(wire.InvalidArgument, fmt.Sprintf("%s has shape %v and %s %v: expected the same", layerExperts, experts.shape, layerWeights, weights.shape))
	}
	return nil
}

// peersOf lists who answered for a layer's experts, each once.
func peersOf(answers []api.LayerAnswer) string {
	var peers []string
	for _, a := range answers {
		if !slices.Contains(peers, a.Peer) {
			peers = append(peers, a.Peer)
		}
	}
	return strings.Join(peers, ",")
}
