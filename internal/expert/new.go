package expert

import (
	"crypto/sha256"
	"fmt"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// New makes an expert that needs no file: the identity, or one with drawn weights. Errors say which key is wrong.
func New(p Params, e Engine) (Expert, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Kind == KindIdentity {
		return NewIdentity(p.Hidden)
	}
	d, err := newDrawing(p)
	if err != nil {
		return nil, err
	}
	return NewFFN(d.manifest, d.weights(), e)
}

// Tensor is one tensor of a single expert's file.
type Tensor struct {
	Name  string // as the file has it
	DType string // as Function.DType
	Shape []int
	Data  []byte // little-endian
}

// Draw returns the tensors that New computes with, as a file would hold them: for fresh training, and to check New.
func Draw(p Params) ([]Tensor, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Kind == KindIdentity {
		return nil, nil
	}
	d, err := newDrawing(p)
	if err != nil {
		return nil, err
	}
	return d.tensors, nil
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

// drawing is an expert's drawn weights. Invariant: tensors and manifest.Slices go in step.
type drawing struct {
	manifest Manifest
	dtype    codec.DType
	seed     uint64
	tensors  []Tensor
}

func newDrawing(p Params) (*drawing, error) {
	f := p.Function()
	dtype, err := codec.ParseDType(f.DType)
	if err != nil {
		return nil, fmt.Errorf("dtype: %w", err)
	}
	d := &drawing{manifest: Manifest{Function: f}, dtype: dtype, seed: p.Init.Seed}
	if f.Kind == KindMLP {
		d.layer("up", "w1", "b1", f.Inner, f.Hidden, "inner,hidden", p.HasBias())
		d.layer("down", "w2", "b2", f.Hidden, f.Inner, "hidden,inner", p.HasBias())
	} else {
		d.layer("gate", "gate_proj.weight", "gate_proj.bias", f.Inner, f.Hidden, "inner,hidden", p.HasBias())
		d.layer("up", "up_proj.weight", "up_proj.bias", f.Inner, f.Hidden, "inner,hidden", p.HasBias())
		d.layer("down", "down_proj.weight", "down_proj.bias", f.Hidden, f.Inner, "hidden,inner", p.HasBias())
	}
	if f.Norm {
		d.add("norm.weight", "norm.weight", "hidden", constant(1, f.Hidden, dtype), f.Hidden)
		d.add("norm.bias", "norm.bias", "hidden", constant(0, f.Hidden, dtype), f.Hidden)
	}
	return d, nil
}

// layer draws a matrix [out, in] and its bias.
func (d *drawing) layer(part, weight, bias string, out, in int, axes string, hasBias bool) {
	d.add(part, weight, axes, draw(d.seed, weight, out*in, in, d.dtype), out, in)
	if hasBias {
		outAxis := "inner"
		if part == "down" {
			outAxis = "hidden"
		}
		d.add(part+".bias", bias, outAxis, draw(d.seed, bias, out, in, d.dtype), out)
	}
}

func (d *drawing) add(part, name, axes string, data []byte, shape ...int) {
	dtype := d.manifest.DType
	d.tensors = append(d.tensors, Tensor{Name: name, DType: dtype, Shape: shape, Data: data})
	d.manifest.Slices = append(d.manifest.Slices, Slice{Part: part, DType: dtype, Axes: axes, Sum: sha256.Sum256(data)})
}

// weights hands the tensors to the kernel.
func (d *drawing) weights() Weights {
	f := d.manifest.Function
	matrix := func(data []byte, out, in int) kernel.Weights {
		return kernel.Weights{DType: kernelDTypes[f.DType], Out: out, In: in, Data: data, StrideOut: in, StrideIn: 1}
	}
	var w Weights
	for i, s := range d.manifest.Slices {
		data := d.tensors[i].Data
		switch s.Part {
		case "gate":
			w.Gate = matrix(data, f.Inner, f.Hidden)
		case "up":
			w.Up = matrix(data, f.Inner, f.Hidden)
		case "down":
			w.Down = matrix(data, f.Hidden, f.Inner)
		default:
			values := make([]float32, d.tensors[i].Shape[0])
			codec.Decode(values, d.dtype, data)
			switch s.Part {
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
