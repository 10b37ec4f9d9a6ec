package expert_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// BenchmarkForward shows what a call costs beside the arithmetic: the smallest of networks, and the identity.
func BenchmarkForward(b *testing.B) {
	identity, err := expert.NewIdentity(1024)
	require.NoError(b, err)
	small, err := expert.New(expert.Params{Kind: expert.KindGLU, Hidden: 16, Inner: 16, Init: &expert.Init{}}, engine(b))
	require.NoError(b, err)
	normed, err := expert.New(expert.Params{
		Kind: expert.KindMLP, Hidden: 1024, Inner: 16, Residual: true, Norm: true, Init: &expert.Init{},
	}, engine(b))
	require.NoError(b, err)
	for _, c := range []struct {
		name string
		e    expert.Expert
	}{{"identity-1024", identity}, {"glu-16x16", small}, {"mlp-1024x16-norm", normed}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			x := rows(1, 1, c.e.Spec().Hidden)
			for b.Loop() {
				_, _ = c.e.Forward(b.Context(), x)
			}
		})
	}
}
