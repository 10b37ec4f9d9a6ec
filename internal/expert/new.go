package expert

import (
	"crypto/sha256"
	"fmt"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// New makes an expert that needs no file: the identity, or one with drawn weights. Errors say which key is wrong.
func New(p Params, e Engine) (Expert, error) {
	tensors, err := Draw(p)
	if err != nil {
		return nil, err
	}
	if p.Kind == KindIdentity {
		return NewIdentity(p.Hidden)
	}
	m := Manifest{Function: p.Function()}
	for _, t := range tensors {
		m.Slices = append(m.Slices, Slice{Part: t.part, DType: t.DType, Axes: t.axes, Sum: sha256.Sum256(t.Data)})
	}
	return NewFFN(m, drawnWeights(m.Function, tensors), e)
}

// Tensor is one drawn tensor of a single expert's file.
type Tensor struct {
	Name  string // as the file has it
	DType string // as Function.DType
	Shape []int
	Data  []byte // little-endian

	part, axes string // of its Slice
	dtype      codec.DType
}

// Draw returns the tensors that New computes with, as a file would hold them; the identity has none.
func Draw(p Params) ([]Tensor, error) {
	if err := p.Validate(); err != nil || p.Kind == KindIdentity {
		return nil, err
	}
	f := p.Function()
	dtype, err := codec.ParseDType(f.DType)
	if err != nil {
		return nil, fmt.Errorf("dtype: %w", err)
	}
	var tensors []Tensor
	add := func(part, name, axes string, data []byte, shape ...int) {
		tensors = append(tensors, Tensor{Name: name, DType: f.DType, Shape: shape, Data: data, part: part, axes: axes, dtype: dtype})
	}
	size := map[string]int{"hidden": f.Hidden, "inner": f.Inner}
	// matrix draws [out, in], and its bias.
	matrix := func(part, weight, bias, outAxis, inAxis string) {
		out, in := size[outAxis], size[inAxis]
		add(part, weight, outAxis+","+inAxis, draw(p.Init.Seed, weight, out*in, in, dtype), out, in)
		if p.HasBias() {
			add(part+".bias", bias, outAxis, draw(p.Init.Seed, bias, out, in, dtype), out)
		}
	}
	if f.Kind == KindMLP {
		matrix("up", "w1", "b1", "inner", "hidden")
		matrix("down", "w2", "b2", "hidden", "inner")
	} else {
		matrix("gate", "gate_proj.weight", "gate_proj.bias", "inner", "hidden")
		matrix("up", "up_proj.weight", "up_proj.bias", "inner", "hidden")
		matrix("down", "down_proj.weight", "down_proj.bias", "hidden", "inner")
	}
	if f.Norm {
		add("norm.weight", "norm.weight", "hidden", constant(1, f.Hidden, dtype), f.Hidden)
		add("norm.bias", "norm.bias", "hidden", constant(0, f.Hidden, dtype), f.Hidden)
	}
	return tensors, nil
}

// drawnWeights hands tensors of Draw to the kernel.
func drawnWeights(f Function, tensors []Tensor) Weights {
	matrix := func(data []byte, out, in int) kernel.Weights {
		return kernel.Weights{DType: kernelDTypes[f.DType], Out: out, In: in, Data: data, StrideOut: in, StrideIn: 1}
	}
	var w Weights
	for _, t := range tensors {
		switch t.part {
		case "gate":
			w.Gate = matrix(t.Data, f.Inner, f.Hidden)
		case "up":
			w.Up = matrix(t.Data, f.Inner, f.Hidden)
		case "down":
			w.Down = matrix(t.Data, f.Hidden, f.Inner)
		default:
			values := make([]float32, t.Shape[0])
			codec.Decode(values, t.dtype, t.Data)
			switch t.part {
			case "gate.bias":
				w.GateBias = values
			case "up.bias":
				w.UpBias = values
			case "down.bias":
				w.DownBias = values
			case "norm.weight":
				w.NormWeight = values
			case "norm.bias":
				w.NormBias = values
			}
		}
	}
	return w
}

// DrawnBytes is what the tensors that Draw returns take. It counts parameters that Validate lets pass without overflow.
func (p Params) DrawnBytes() int64 {
	f := p.Function()
	if f.Kind == KindIdentity {
		return 0
	}
	dtype, err := codec.ParseDType(f.DType)
	if err != nil {
		return 0
	}
	hidden, inner := int64(f.Hidden), int64(f.Inner)
	matrices, biases := 2*hidden*inner, inner+hidden
	if f.Kind == KindGLU {
		matrices, biases = 3*hidden*inner, 2*inner+hidden
	}
	count := matrices
	if p.HasBias() {
		count += biases
	}
	if f.Norm {
		count += 2 * hidden
	}
	return count * int64(dtype.Size(1))
}
