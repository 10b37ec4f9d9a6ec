package expert

import (
	"context"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/kernel"
)

// Identity is the expert that returns its input: for tests, probes and measuring the way to it.
type Identity struct{ spec Spec }

// NewIdentity returns the identity on rows of the given width. The error says what is wrong with it.
func NewIdentity(hidden int) (*Identity, error) {
	f := Function{Kind: KindIdentity, Hidden: hidden, DType: DTypeF32}
	if err := f.Validate(); err != nil {
		return nil, err
	}
	return &Identity{spec: Spec{
		Kind: f.Kind, Hidden: hidden, DType: f.DType, Digest: Manifest{Function: f}.Digest(),
		Numerics: kernel.Exact.Version(), // nothing is computed, so nothing can differ
	}}, nil
}

// Spec says what the function is.
func (e *Identity) Spec() Spec { return e.spec }

// Forward returns x itself, once its shape is checked.
func (e *Identity) Forward(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if _, err := Rows(x, e.spec.Hidden); err != nil {
		return nil, err
	}
	return x, nil
}
