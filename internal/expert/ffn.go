package expert

import (
	"context"
	"errors"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/kernel"
)

// rowsAtOnce is how many rows are computed between two looks at ctx: arithmetic has its full speed from some 128 rows on, and
// that many take the largest experts under two seconds.
const rowsAtOnce = 512

// Engine is what experts compute with.
type Engine struct {
	Pool     *kernel.Pool    // the process's workers
	Numerics kernel.Numerics // the order of operations, Fast too; experts whose dtype it is not for stay exact
}

// Weights are the tensors of an mlp or a glu. Their bytes are copied; the caller may use them again.
type Weights struct {
	kernel.FFN // but for Activation and Limit, which the manifest says
	NormWeight []float32
	NormBias   []float32
}

// FFN is an expert of kind mlp or glu.
type FFN struct {
	function Function
	spec     Spec
	packed   *kernel.PackedFFN
	pool     *kernel.Pool
	numerics kernel.Numerics
	weight   []float32 // of the LayerNorm; nil without
	bias     []float32
}

// kernelDTypes maps the names of dtypes to the kernel's.
var kernelDTypes = map[string]kernel.DType{
	DTypeF32: kernel.F32, DTypeBF16: kernel.BF16, DTypeF16: kernel.F16, DTypeF8E4M3: kernel.F8E4M3, DTypeMXFP4: kernel.MXFP4,
}

// NewFFN packs the weights that the manifest describes. The error says what does not fit.
func NewFFN(m Manifest, w Weights, e Engine) (*FFN, error) {
	f := m.Function
	if err := f.Validate(); err != nil {
		return nil, err
	}
	if e.Pool == nil {
		return nil, errors.New("an expert needs a worker pool")
	}
	if err := w.fit(f); err != nil {
		return nil, err
	}
	activation, err := kernel.ParseActivation(f.Activation)
	if err != nil {
		return nil, err
	}
	w.Activation, w.Limit = activation, f.Limit
	packed, err := kernel.Pack(w.FFN)
	if err != nil {
		return nil, err
	}
	x := &FFN{function: f, packed: packed, pool: e.Pool, numerics: packed.Numerics(e.Pool.Resolve(e.Numerics))}
	if f.Norm {
		x.weight, x.bias = w.NormWeight, w.NormBias
	}
	x.spec = Spec{
		Kind: f.Kind, Hidden: f.Hidden, Inner: f.Inner, DType: f.DType, Digest: m.Digest(), Numerics: x.numerics.Version(),
		Bytes: packed.Bytes() + 4*int64(len(x.weight)+len(x.bias)),
	}
	return x, nil
}

// fit compares the tensors with the function; the kernel compares them among themselves.
func (w *Weights) fit(f Function) error {
	if w.Up.Out != f.Inner || w.Up.In != f.Hidden {
		return fmt.Errorf("expected up (w1) [%d, %d], found [%d, %d]", f.Inner, f.Hidden, w.Up.Out, w.Up.In)
	}
	if gated := w.Gate.Out != 0; gated != (f.Kind == KindGLU) {
		return fmt.Errorf("kind %s, found a gate: %v", f.Kind, gated)
	}
	if dtype := kernelDTypes[f.DType]; w.Up.DType != dtype || w.Down.DType != dtype {
		return fmt.Errorf("expected weights of %v, found %v and %v", dtype, w.Up.DType, w.Down.DType)
	}
	if f.Norm && (len(w.NormWeight) != f.Hidden || len(w.NormBias) != f.Hidden) {
		return fmt.Errorf("expected norm.weight and norm.bias of %d elements, found %d and %d", f.Hidden, len(w.NormWeight), len(w.NormBias))
	}
	if !f.Norm && (w.NormWeight != nil || w.NormBias != nil) {
		return errors.New("there are tensors of a LayerNorm, but norm is off")
	}
	return nil
}

// Spec says what the function is.
func (e *FFN) Spec() Spec { return e.spec }

// Function returns all parameters of the function.
func (e *FFN) Function() Function { return e.function }

// WithNumerics returns the same expert, with the same weights in memory, that computes in another order.
func (e *FFN) WithNumerics(n kernel.Numerics) *FFN {
	other := *e
	other.numerics = e.packed.Numerics(e.pool.Resolve(n))
	other.spec.Numerics = other.numerics.Version()
	return &other
}

// Variants returns the expert in each other order of operations that its weights are for: a caller may name the one that it wants, so
// that any host's answer can be checked on any other.
func (e *FFN) Variants() []Expert {
	var all []Expert
	for _, n := range []kernel.Numerics{kernel.Exact, kernel.Dot, kernel.Tile} {
		if e.packed.Numerics(n) == n && n != e.numerics {
			all = append(all, e.WithNumerics(n))
		}
	}
	return all
}

// Forward computes the network on the rows of x. Large batches stop with ctx's cause between blocks of rows.
func (e *FFN) Forward(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	values, err := Rows(x, e.spec.Hidden)
	if err != nil {
		return nil, err
	}
	y := make([]float32, len(values))
	if err := e.ForwardRows(ctx, y, values); err != nil {
		return nil, err
	}
	return NewRows(y, e.spec.Hidden), nil
}

// ForwardRows is Forward without tensors: x and y hold whole rows, are of one length, and share no memory. It allocates
// nothing.
func (e *FFN) ForwardRows(ctx context.Context, y, x []float32) error {
	hidden := e.spec.Hidden
	for len(x) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(len(x), rowsAtOnce*hidden)
		e.packed.Forward(e.pool, y[:n], x[:n], n/hidden, e.numerics)
		if e.function.Residual {
			add(y[:n], x[:n])
		}
		if e.function.Norm {
			layerNorm(y[:n], e.weight, e.bias, e.function.Eps)
		}
		y, x = y[n:], x[n:]
	}
	return nil
}

// canonicalNaN is what every NaN becomes: which one an operation returns depends on the machine.
var canonicalNaN = math.Float32frombits(0x7fc00000)

// add adds x to y, element by element.
func add(y, x []float32) {
	for k, v := range x {
		s := y[k] + v
		if s != s {
			s = canonicalNaN
		}
		y[k] = s
	}
}
