package expert

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// The kinds of expert.
const (
	KindIdentity = "identity" // y = x
	KindMLP      = "mlp"      // W2·act(W1·x + b1) + b2, optionally + x, optionally LayerNorm after it
	KindGLU      = "glu"      // Wd·(act(Wg·x) ⊙ Wu·x), each product optionally with a bias
)

// The dtypes in which weights may be stored.
const (
	DTypeF32    = "f32"
	DTypeBF16   = "bf16"
	DTypeF16    = "f16"
	DTypeF8E4M3 = "f8_e4m3" // with a float32 scale per block
	DTypeMXFP4  = "mxfp4"   // with an exponent per 32 elements
)

// The activations. Those of Hugging Face that mean the same are mapped to these where a checkpoint is read.
const (
	ActivationSiLU          = "silu"
	ActivationGELU          = "gelu" // exact, by erf
	ActivationGELUTanh      = "gelu_tanh"
	ActivationReLU          = "relu"
	ActivationSwiGLUClamped = "swiglu_clamped" // gpt-oss: (clamp(u)+1)·min(g, limit)·sigmoid(1.702·min(g, limit)); glu only
)

// DefaultEps is LayerNorm's eps where none is given.
const DefaultEps = 1e-5

// maxWidth bounds hidden and inner: 16 times the widest network published so far, and its square fits an int64 many times.
const maxWidth = 1 << 20

var (
	allKinds       = []string{KindIdentity, KindMLP, KindGLU}
	allDTypes      = []string{DTypeF32, DTypeBF16, DTypeF16, DTypeF8E4M3, DTypeMXFP4}
	drawnDTypes    = []string{DTypeF32, DTypeBF16, DTypeF16}
	mlpActivations = []string{ActivationSiLU, ActivationGELU, ActivationGELUTanh, ActivationReLU}
	gluActivations = append(slices.Clone(mlpActivations), ActivationSwiGLUClamped)
)

// Function says what an expert computes, but for its weights: every parameter that changes the result. Fields that have
// no meaning for the kind are zero.
type Function struct {
	Kind       string
	Hidden     int     // width of a row
	Inner      int     // width of the inner layer; mlp and glu
	DType      string  // of the matrices as stored; f32 for identity
	Activation string  // mlp and glu
	Limit      float32 // of swiglu_clamped
	Residual   bool    // mlp: x is added to the output
	Norm       bool    // mlp: LayerNorm comes last
	Eps        float32 // of the LayerNorm
}

// Validate reports everything that is wrong, in the words of the keys that an operator writes.
func (f Function) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	oneOf := func(key, value string, known []string) {
		if !slices.Contains(known, value) {
			add("%s: %q is not known to kind %s: expected one of %s", key, value, f.Kind, strings.Join(known, ", "))
		}
	}
	width := func(key string, value int) {
		if value < 1 || value > maxWidth {
			add("%s: %d is not between 1 and %d", key, value, maxWidth)
		}
	}

	switch f.Kind {
	case KindIdentity, KindMLP, KindGLU:
	default:
		return fmt.Errorf("kind: %q is not known: expected one of %s", f.Kind, strings.Join(allKinds, ", "))
	}
	width("hidden", f.Hidden)
	switch f.Kind {
	case KindIdentity:
		oneOf("dtype", f.DType, []string{DTypeF32})
		if f.Inner != 0 || f.Activation != "" {
			add("inner and activation have no meaning for kind identity")
		}
	case KindMLP:
		width("inner", f.Inner)
		oneOf("dtype", f.DType, allDTypes)
		oneOf("activation", f.Activation, mlpActivations)
	case KindGLU:
		width("inner", f.Inner)
		oneOf("dtype", f.DType, allDTypes)
		oneOf("activation", f.Activation, gluActivations)
	}
	clamped := f.Kind == KindGLU && f.Activation == ActivationSwiGLUClamped
	if clamped && (!(f.Limit > 0) || math.IsInf(float64(f.Limit), 0)) {
		add("limit: swiglu_clamped needs a limit above 0 (gpt-oss has 7), not %v", f.Limit)
	}
	if !clamped && f.Limit != 0 {
		add("limit: only activation swiglu_clamped of kind glu has one")
	}
	if f.Kind != KindMLP && (f.Residual || f.Norm) {
		add("residual and norm: only kind mlp has them")
	}
	if f.Norm && (!(f.Eps > 0) || math.IsInf(float64(f.Eps), 0)) {
		add("eps: %v is not above 0: a row of equal values would be divided by zero", f.Eps)
	}
	if !f.Norm && f.Eps != 0 {
		add("eps: it belongs to norm, which is off")
	}
	return errors.Join(errs...)
}
