package gateway

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// What the server says of itself to the Open Inference Protocol.
const (
	serverName     = "kwaaid"
	serverPlatform = "kwaai_swarm"
)

// serverExtensions are the extensions of the protocol that are spoken.
var serverExtensions = []string{"binary_tensor_data"}

// model is what the Open Inference Protocol calls one, behind both of its faces. An expert is one; a MoE layer can be.
type model interface {
	// metadata describes inputs and outputs. The error matches expert.ErrNotFound where nobody hosts the model.
	metadata(ctx context.Context) (modelMetadata, error)
	// ready tells whether somebody could answer now.
	ready(ctx context.Context) (bool, error)
	// infer makes one forward pass. It keeps no reference to the inputs.
	infer(ctx context.Context, req inferRequest) (inferReply, error)
}

// modelMetadata describes a model.
type modelMetadata struct {
	Name     string           `json:"name"`
	Versions []string         `json:"versions,omitempty"`
	Platform string           `json:"platform"`
	Inputs   []tensorMetadata `json:"inputs"`
	Outputs  []tensorMetadata `json:"outputs"`
}

// tensorMetadata describes an input or output; -1 in its shape stands for any size.
type tensorMetadata struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
}

// inferRequest is a forward pass as either face of the protocol asks for it.
type inferRequest struct {
	inputs  []inferTensor
	outputs []string // those that are wanted; none: all
	params  inferParams
}

// inferReply is what comes back.
type inferReply struct {
	outputs []inferTensor
	params  []inferParam // in this order
}

// inferParam is a parameter of a reply.
type inferParam struct{ key, value string }

// add adds a parameter that has something to say.
func (r *inferReply) add(key, value string) {
	if value != "" {
		r.params = append(r.params, inferParam{key, value})
	}
}

// modelName is a model as a client names it.
type modelName struct {
	name    string // as it was written
	version string // the revision; empty for an ID, which has none
	ref     expert.Ref
}

// parseModelName reads a name and the version beside it, which is the revision and may be empty.
func parseModelName(name, version string) (modelName, error) {
	ref, err := expert.ParseRef(name)
	if err != nil {
		return modelName{}, err
	}
	m := modelName{name: name, ref: ref}
	layer := ref.Layer
	if ref.Name != nil {
		layer = &ref.Name.LayerName
	}
	if layer == nil {
		if version != "" {
			return modelName{}, refuse(wire.NotFound, fmt.Sprintf("%s has no versions, %s was asked for", ref, quoted(version)))
		}
		return m, nil
	}
	if version != "" && version != layer.Revision {
		if strings.Contains(name, "@") {
			return modelName{}, refuse(wire.NotFound, fmt.Sprintf("%s names another revision than version %s", quoted(name), quoted(version)))
		}
		if *layer, err = expert.NewLayerName(layer.Model, version, layer.Layer); err != nil {
			return modelName{}, err
		}
		if ref.Name != nil {
			m.ref.ID = ref.Name.ID()
		}
	}
	m.version = layer.Revision
	return m, nil
}

// model returns what a name stands for.
func (g *Gateway) model(name modelName) (model, error) {
	if name.ref.Layer != nil {
		return nil, refuse(wire.Unimplemented, name.ref.String()+" names a layer; this node answers for single experts, MODEL/LAYER/INDEX or expert-N")
	}
	return expertModel{g: g, name: name}, nil
}

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
	known := func() (api.Expert, bool, error) {
		list, err := m.g.node.Experts(ctx)
		for _, e := range list {
			if e.Expert == m.name.ref.ID {
				return e, true, nil
			}
		}
		return api.Expert{}, false, err
	}
	if e, ok, err := known(); ok || err != nil {
		return e, err
	}
	found, err := m.g.node.Resolve(ctx, m.name.ref.String()) // which also makes it known, with what its hosts say of it
	if err != nil {
		return api.Expert{}, err
	}
	if len(found.Providers) == 0 {
		return api.Expert{}, refuse(wire.NotFound, m.name.ref.String()+": nobody hosts it")
	}
	if e, ok, err := known(); ok || err != nil {
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
	doc := modelMetadata{
		Name: m.name.name, Platform: serverPlatform,
		Inputs:  []tensorMetadata{{expertInput, "FP32", shape}},
		Outputs: []tensorMetadata{{expertOutput, "FP32", shape}},
	}
	if m.name.version != "" {
		doc.Versions = []string{m.name.version}
	}
	return doc, nil
}

func (m expertModel) ready(ctx context.Context) (bool, error) {
	e, err := m.find(ctx)
	return err == nil && e.State == expert.StateReady, err
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
	x := req.inputs[0]
	if len(x.shape) == 0 || len(x.shape) > 3 || len(x.data) == 0 {
		return inferReply{}, refuse(wire.InvalidArgument, fmt.Sprintf("input %q has shape %v: expected [rows, hidden], none of them 0 (or [hidden], or [a, b, hidden])", expertInput, x.shape))
	}
	timeout := req.params.timeout
	if deadline, ok := ctx.Deadline(); ok && timeout == 0 {
		timeout = time.Until(deadline) // the caller's own, which may be longer than calls.timeout
	}
	result, output, err := m.g.inference.Call(ctx, api.CallRequest{
		Name: m.name.ref.String(), Input: tensor.New(tensor.WithShape(x.shape...), tensor.WithBacking(x.data)),
		Timeout: timeout, Digest: req.params.digest, Codec: req.params.codec, Numerics: req.params.numerics,
	})
	if err != nil {
		return inferReply{}, err
	}
	y, err := floats(output)
	if err != nil {
		return inferReply{}, err
	}
	reply := inferReply{
		outputs: []inferTensor{{name: expertOutput, datatype: x.datatype, shape: output.Shape(), data: y}},
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

// floats returns the elements of an output.
func floats(output *tensor.Dense) ([]float32, error) {
	data, ok := output.Data().([]float32)
	if !ok || output.RequiresIterator() {
		return nil, fmt.Errorf("the output is %v %v: expected float32, row-major", output.Dtype(), output.Shape())
	}
	return data, nil
}
