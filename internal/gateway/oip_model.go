package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gorgonia.org/tensor"

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

// model is what the Open Inference Protocol calls one, behind both of its faces: a single expert, or a MoE layer.
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
func (g *Gateway) model(name modelName) model {
	if name.ref.Layer != nil {
		return layerModel{g: g, name: name}
	}
	return expertModel{g: g, name: name}
}

// versions lists the one version that a model's name leads to.
func (m modelName) versions() []string {
	if m.version == "" {
		return nil
	}
	return []string{m.version}
}

// timeout is how long a forward pass may take: as its parameters say, or what is left to the caller, which may be longer than the
// node's calls.timeout; 0: that.
func (req *inferRequest) timeout(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok && req.params.timeout == 0 {
		return time.Until(deadline)
	}
	return req.params.timeout
}

// wants tells whether an output is to be sent.
func (req *inferRequest) wants(output string) bool {
	return len(req.outputs) == 0 || slices.Contains(req.outputs, output)
}

// rows returns an input of one to three dimensions as a tensor.
func (t *inferTensor) rows() (*tensor.Dense, error) {
	if d, _ := datatypeOf(t.datatype); d.ints {
		return nil, refuse(wire.InvalidArgument, fmt.Sprintf("input %q has datatype %s: expected FP32, FP16 or BF16", t.name, t.datatype))
	}
	if len(t.shape) == 0 || len(t.shape) > 3 || len(t.data) == 0 {
		return nil, refuse(wire.InvalidArgument, fmt.Sprintf("input %q has shape %v: expected [rows, hidden], none of them 0 (or [hidden], or [a, b, hidden])", t.name, t.shape))
	}
	return tensor.New(tensor.WithShape(t.shape...), tensor.WithBacking(t.data)), nil
}

// floats returns the elements of an output.
func floats(output *tensor.Dense) ([]float32, error) {
	data, ok := output.Data().([]float32)
	if !ok || output.RequiresIterator() {
		return nil, fmt.Errorf("the output is %v %v: expected float32, row-major", output.Dtype(), output.Shape())
	}
	return data, nil
}
