package expert_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestParams_FillInDefaults(t *testing.T) {
	f := expert.Params{Kind: expert.KindMLP, Hidden: 8, Inner: 16, Norm: true}.Function()
	require.Equal(t, expert.Function{
		Kind: "mlp", Hidden: 8, Inner: 16, DType: "f32", Activation: "gelu", Norm: true, Eps: 1e-5,
	}, f)
	require.True(t, expert.Params{Kind: expert.KindMLP}.HasBias())
	require.False(t, expert.Params{Kind: expert.KindGLU}.HasBias())
	require.Equal(t, "silu", expert.Params{Kind: expert.KindGLU}.Function().Activation)
}

func TestParams_SayWhatIsWrong(t *testing.T) {
	yes, seed := true, &expert.Init{}
	for _, c := range []struct {
		params expert.Params
		says   []string
	}{
		{expert.Params{}, []string{`kind: ""`, "identity, mlp, glu"}},
		{expert.Params{Kind: "identity"}, []string{"hidden: 0 is not between 1 and"}},
		{expert.Params{Kind: "identity", Hidden: 8, Inner: 2, Bias: &yes}, []string{"inner", "bias"}},
		{expert.Params{Kind: "identity", Hidden: 8, DType: "bf16"}, []string{"dtype"}},
		{expert.Params{Kind: "glu", Hidden: 8, Inner: 2}, []string{"kind glu needs weights: give file, or init"}},
		{expert.Params{Kind: "glu", Hidden: 1 << 30, Inner: -1, Init: seed}, []string{"hidden: 1073741824", "inner: -1"}},
		{expert.Params{Kind: "glu", Hidden: 8, Inner: 2, Init: seed, Activation: "mish"}, []string{"activation", "mish", "swiglu_clamped"}},
		{expert.Params{Kind: "glu", Hidden: 8, Inner: 2, Init: seed, Activation: "swiglu_clamped"}, []string{"limit"}},
		{expert.Params{Kind: "glu", Hidden: 8, Inner: 2, Init: seed, Limit: 7}, []string{"limit: only"}},
		{expert.Params{Kind: "glu", Hidden: 8, Inner: 2, Init: seed, Residual: true}, []string{"residual"}},
		{expert.Params{Kind: "glu", Hidden: 8, Inner: 2, Init: seed, DType: "mxfp4"}, []string{"drawn as f32, bf16, f16"}},
		{expert.Params{Kind: "mlp", Hidden: 8, Inner: 2, Init: seed, Activation: "swiglu_clamped", Limit: 7}, []string{"activation"}},
		{expert.Params{Kind: "mlp", Hidden: 8, Inner: 2, Init: seed, Eps: 1e-5}, []string{"eps"}},
		{expert.Params{Kind: "mlp", Hidden: 8, Inner: 2, Init: seed, Norm: true, Eps: -1}, []string{"eps"}},
		{expert.Params{Kind: "mlp", Hidden: 8, Inner: 2, Init: seed, Norm: true, Eps: math.NaN()}, []string{"eps"}},
	} {
		err := c.params.Validate()
		require.Error(t, err, "%+v", c.params)
		for _, part := range c.says {
			require.ErrorContains(t, err, part)
		}
		_, err = expert.New(c.params, expert.Engine{})
		require.Error(t, err)
	}
}

func TestParams_WithAFileNeedNoSizes(t *testing.T) {
	require.NoError(t, expert.Params{Kind: "glu"}.ValidateWithFile())
	require.NoError(t, expert.Params{Kind: "mlp", Hidden: 8, Norm: true}.ValidateWithFile())
	require.ErrorContains(t, expert.Params{Kind: "identity", Hidden: 8}.ValidateWithFile(), "leave file out")
	require.ErrorContains(t, expert.Params{Kind: "glu", Init: &expert.Init{}}.ValidateWithFile(), "exclude each other")
	require.ErrorContains(t, expert.Params{Kind: "glu", Hidden: -1}.ValidateWithFile(), "hidden")
}

func TestDrawnBytes_AreThoseOfTheTensors(t *testing.T) {
	yes, no := true, false
	for _, p := range []expert.Params{
		{Kind: "identity", Hidden: 12},
		{Kind: "mlp", Hidden: 12, Inner: 20, Init: &expert.Init{}},
		{Kind: "mlp", Hidden: 12, Inner: 20, Bias: &no, Norm: true, DType: "bf16", Init: &expert.Init{}},
		{Kind: "glu", Hidden: 12, Inner: 20, DType: "f16", Init: &expert.Init{}},
		{Kind: "glu", Hidden: 12, Inner: 20, Bias: &yes, Init: &expert.Init{}},
	} {
		tensors, err := expert.Draw(p)
		require.NoError(t, err)
		var want int64
		for _, w := range tensors {
			want += int64(len(w.Data))
		}
		require.Equal(t, want, p.DrawnBytes(), "%+v", p)
	}
	largest := expert.Params{Kind: "glu", Hidden: 1 << 20, Inner: 1 << 20, Init: &expert.Init{}}
	require.NoError(t, largest.Validate())
	require.Equal(t, int64(3<<42), largest.DrawnBytes())
}
