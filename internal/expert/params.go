package expert

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Params are the keys with which an operator describes a single expert (kwaaid.yaml, `--expert`, `load`). With a file the
// sizes and the dtype come from its tensors; those that are given must agree.
type Params struct {
	Kind       string
	Hidden     int
	Inner      int
	Activation string // default: silu for glu, gelu for mlp
	Bias       *bool  // default: true for mlp, false for glu; with a file: as it has
	Residual   bool
	Norm       bool
	Eps        float64 // default with norm: 1e-5
	Limit      float64 // needed by swiglu_clamped
	DType      string  // of drawn weights; default: f32
	Init       *Init
}

// Init asks for drawn weights instead of a file. Equal seeds, kinds, sizes and dtypes draw equal bytes on every machine.
type Init struct {
	Seed uint64
}

// HasBias tells whether the products of an expert without a file get a bias.
func (p Params) HasBias() bool {
	if p.Bias != nil {
		return *p.Bias
	}
	return p.Kind == KindMLP
}

// Function fills in the defaults. It checks nothing: see Validate.
func (p Params) Function() Function {
	f := Function{
		Kind: p.Kind, Hidden: p.Hidden, Inner: p.Inner, DType: p.DType, Activation: p.Activation,
		Limit: float32(p.Limit), Residual: p.Residual, Norm: p.Norm, Eps: float32(p.Eps),
	}
	if f.DType == "" {
		f.DType = DTypeF32
	}
	if f.Activation == "" {
		switch f.Kind {
		case KindMLP:
			f.Activation = ActivationGELU
		case KindGLU:
			f.Activation = ActivationSiLU
		}
	}
	if f.Norm && f.Eps == 0 {
		f.Eps = DefaultEps
	}
	return f
}

// Validate checks the keys of an expert without a file, and reports everything that is wrong.
func (p Params) Validate() error {
	errs := []error{p.Function().Validate()}
	if p.Kind == KindIdentity {
		if p.Init != nil || p.Bias != nil {
			errs = append(errs, errors.New("init and bias have no meaning for kind identity"))
		}
		return errors.Join(errs...)
	}
	if slices.Contains(allKinds, p.Kind) && p.Init == nil {
		errs = append(errs, fmt.Errorf("kind %s needs weights: give file, or init with a seed", p.Kind))
	}
	if p.DType != "" && p.Init != nil && !slices.Contains(drawnDTypes, p.DType) {
		errs = append(errs, fmt.Errorf("dtype: weights can be drawn as %s, not as %q", strings.Join(drawnDTypes, ", "), p.DType))
	}
	return errors.Join(errs...)
}

// ValidateWithFile checks the keys of an expert whose weights lie in a file, as far as they can be checked without it.
func (p Params) ValidateWithFile() error {
	if p.Kind == KindIdentity {
		return errors.New("kind identity has no weights: leave file out and give hidden")
	}
	var errs []error
	if p.Init != nil {
		errs = append(errs, errors.New("file and init exclude each other"))
	}
	// What the file will say stands in with values that pass.
	f := p.Function()
	if f.Hidden == 0 {
		f.Hidden = 1
	}
	if f.Inner == 0 {
		f.Inner = 1
	}
	return errors.Join(append(errs, f.Validate())...)
}
