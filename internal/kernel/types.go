package kernel

import (
	"errors"
	"fmt"
)

// DType is the number format in which weights are stored and packed.
type DType uint8

// The formats. The zero value is F32.
const (
	F32    DType = iota // IEEE 754 binary32
	BF16                // the upper half of binary32
	F16                 // IEEE 754 binary16
	F8E4M3              // OCP float8, with a float32 scale for each block of rows and columns
	MXFP4               // OCP numbers of 4 bits, with a power of two for each 32 of them along a row
)

// dtypes counts the formats.
const dtypes = int(MXFP4) + 1

// String returns the name, such as "bf16".
func (d DType) String() string {
	names := [dtypes]string{"f32", "bf16", "f16", "f8_e4m3", "mxfp4"}
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// Activation is the function between the two products of an FFN.
type Activation uint8

// The activations; see the package's documentation for their operations.
const (
	SiLU     Activation = iota // v / (1 + exp(-v))
	GELU                       // v times the normal distribution function of v
	GELUTanh                   // v / (1 + exp(-2 u)), u = sqrt(2/pi) (v + 0.044715 v^3)
	ReLU                       // max(v, 0)
	// SwiGLUClamped is gpt-oss's: gate above by the limit, up on both sides; (up + 1) gate / (1 + exp(-1.702 gate)). It needs a gate.
	SwiGLUClamped
)

// activations counts them.
const activations = int(SwiGLUClamped) + 1

// String returns the name, such as "gelu_tanh".
func (a Activation) String() string {
	names := [activations]string{"silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped"}
	if int(a) < len(names) {
		return names[a]
	}
	return fmt.Sprintf("activation(%d)", uint8(a))
}

// ErrUnknownName says that a name is neither one of an activation nor of a numerics.
var ErrUnknownName = errors.New("unknown name")

// ParseActivation reads what String writes. The error matches ErrUnknownName.
func ParseActivation(s string) (Activation, error) {
	for a := range Activation(activations) {
		if s == a.String() {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%w: activation %q: expected silu, gelu, gelu_tanh, relu or swiglu_clamped", ErrUnknownName, s)
}

// Numerics is the name of an order of operations; equal names give equal bits on every machine.
type Numerics uint8

// The numerics. The zero value is Exact.
const (
	Exact Numerics = iota // float32 throughout
	Dot                   // activations rounded to bf16, added as VDPBF16PS does
	Tile                  // activations rounded to bf16, added as TDPBF16PS does
	Fast                  // no order of its own: whichever of the three is the quickest on this machine; see Pool.Resolve
)

// numerics counts those that are an order of operations.
const numerics = int(Tile) + 1

// String returns the name without a version, such as "exact".
func (n Numerics) String() string {
	names := [numerics + 1]string{"exact", "dot", "tile", "fast"}
	if int(n) < len(names) {
		return names[n]
	}
	return fmt.Sprintf("numerics(%d)", uint8(n))
}

// Version returns the name with its version, such as "exact-1": what a reply says. The version changes whenever a bit of any result does.
func (n Numerics) Version() string { return n.String() + "-1" }

// ParseNumerics reads what String writes, and what Version does but for Fast. The error matches ErrUnknownName.
func ParseNumerics(s string) (Numerics, error) {
	for n := range Numerics(numerics + 1) {
		if s == n.String() || (n != Fast && s == n.Version()) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: numerics %q: expected exact, dot, tile or fast", ErrUnknownName, s)
}

// Weights is one matrix as stored: element (o, i), o < Out, i < In, has element index Offset + o*StrideOut + i*StrideIn in Data, little-endian.
// F8E4M3: times Scales[(o/BlockOut)*ScaleStride + i/BlockIn]. MXFP4: the index counts nibbles (low half first), StrideIn is 1, In a multiple
// of 32 as are Offset and StrideOut; times 2^(Exponents[index/32]-127).
type Weights struct {
	DType                          DType
	Out, In                        int
	Data                           []byte
	Offset, StrideOut, StrideIn    int // in elements
	Scales                         []float32
	BlockOut, BlockIn, ScaleStride int
	Exponents                      []byte
}

// FFN describes a glu (Gate, Up, Down), y = Down (act(Gate x) * Up x), or an mlp (Gate zero: Up is w1, Down is w2), y = Down act(Up x);
// with biases of float32, nil where there is none. Limit is that of SwiGLUClamped.
type FFN struct {
	Gate, Up, Down             Weights
	GateBias, UpBias, DownBias []float32
	Activation                 Activation
	Limit                      float32
}

// ErrWeights says that the weights of an FFN contradict each other or their own bytes.
var ErrWeights = errors.New("bad weights")

func (f *FFN) gated() bool { return f.Gate.Out != 0 || f.Gate.In != 0 || f.Gate.Data != nil }

func (f *FFN) check() error {
	inner, hidden := f.Up.Out, f.Up.In
	errs := []error{f.Up.check("up"), f.Down.check("down"), checkBias("up", f.UpBias, inner), checkBias("down", f.DownBias, hidden)}
	if f.gated() {
		errs = append(errs, f.Gate.check("gate"), checkBias("gate", f.GateBias, inner))
		if f.Gate.Out != inner || f.Gate.In != hidden {
			errs = append(errs, fmt.Errorf("%w: gate is [%d, %d], up is [%d, %d]: expected the same", ErrWeights, f.Gate.Out, f.Gate.In, inner, hidden))
		}
		if f.Gate.DType != f.Up.DType || (f.Gate.DType == F8E4M3 && f.Gate.BlockIn != f.Up.BlockIn) {
			errs = append(errs, fmt.Errorf("%w: gate is %v, up is %v: expected the same, with the same blocks", ErrWeights, f.Gate.DType, f.Up.DType))
		}
	} else {
		if f.GateBias != nil {
			errs = append(errs, fmt.Errorf("%w: a gate's bias without a gate", ErrWeights))
		}
		if f.Activation == SwiGLUClamped {
			errs = append(errs, fmt.Errorf("%w: %v needs a gate", ErrWeights, f.Activation))
		}
	}
	if f.Down.Out != hidden || f.Down.In != inner {
		errs = append(errs, fmt.Errorf("%w: down is [%d, %d], up is [%d, %d]: expected one to be the other transposed", ErrWeights, f.Down.Out, f.Down.In, inner, hidden))
	}
	if int(f.Activation) >= activations {
		errs = append(errs, fmt.Errorf("%w: %v", ErrWeights, f.Activation))
	}
	if f.Activation == SwiGLUClamped && !(f.Limit > 0) {
		errs = append(errs, fmt.Errorf("%w: %v with limit %v: expected one above 0", ErrWeights, f.Activation, f.Limit))
	}
	return errors.Join(errs...)
}

func checkBias(name string, bias []float32, n int) error {
	if bias != nil && len(bias) != n {
		return fmt.Errorf("%w: %s has a bias of %d elements: expected %d", ErrWeights, name, len(bias), n)
	}
	return nil
}

// maxDim bounds both dimensions, so that no product of sizes below overflows an int of 64 bits.
const maxDim = 1 << 24

func (w *Weights) check(name string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrWeights, name, fmt.Sprintf(format, args...))
	}
	switch {
	case int(w.DType) >= dtypes:
		return bad("%v", w.DType)
	case w.Out < 1 || w.In < 1 || w.Out > maxDim || w.In > maxDim:
		return bad("shape [%d, %d]: expected 1 to %d each", w.Out, w.In, maxDim)
	case w.Offset < 0 || w.StrideOut < 0 || w.StrideIn < 0 || w.Offset > 1<<48 || w.StrideOut > 1<<36 || w.StrideIn > 1<<36:
		return bad("offset %d, strides %d and %d: expected none below 0, nor beyond any file", w.Offset, w.StrideOut, w.StrideIn)
	}
	elements := w.Offset + (w.Out-1)*w.StrideOut + (w.In-1)*w.StrideIn + 1
	if need := w.DType.bytes(elements); len(w.Data) < need {
		return bad("[%d, %d] of %v takes %d bytes: there are %d", w.Out, w.In, w.DType, need, len(w.Data))
	}
	switch w.DType {
	case F8E4M3:
		if w.BlockOut < 1 || w.BlockIn < 1 || w.ScaleStride < 0 || w.ScaleStride > maxDim {
			return bad("blocks of [%d, %d], stride %d: expected blocks of 1 at least", w.BlockOut, w.BlockIn, w.ScaleStride)
		}
		if last := (w.Out-1)/w.BlockOut*w.ScaleStride + (w.In-1)/w.BlockIn; len(w.Scales) <= last {
			return bad("%d scales: expected %d", len(w.Scales), last+1)
		}
	case MXFP4:
		if w.StrideIn != 1 || w.In%mxBlock != 0 || w.Offset%mxBlock != 0 || w.StrideOut%mxBlock != 0 {
			return bad("mxfp4 with %d inputs, offset %d, strides %d and %d: expected multiples of %d and a stride of 1", w.In, w.Offset, w.StrideOut, w.StrideIn, mxBlock)
		}
		if last := (elements - 1) / mxBlock; len(w.Exponents) <= last {
			return bad("%d exponents: expected %d", len(w.Exponents), last+1)
		}
	default: // nothing beside the elements
	}
	return nil
}

// bytes returns what n elements take as stored, exponents apart.
func (d DType) bytes(n int) int {
	switch d {
	case F32:
		return 4 * n
	case BF16, F16:
		return 2 * n
	case F8E4M3:
		return n
	default:
		return (n + 1) / 2
	}
}
