package checkpoint_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/expert"
)

// drawn writes the file that Params with an init stand for.
func drawn(t testing.TB, p expert.Params, rename map[string]string) string {
	tensors, err := expert.Draw(p)
	require.NoError(t, err)
	var stored []checkpointtest.Tensor
	for _, w := range tensors {
		if name := rename[w.Name]; name != "" {
			w.Name = name
		}
		stored = append(stored, checkpointtest.Tensor{Name: w.Name, DType: strings.ToUpper(w.DType), Shape: w.Shape, Data: w.Data})
	}
	path := filepath.Join(t.TempDir(), "expert.safetensors")
	checkpointtest.WriteFile(t, path, stored)
	return path
}

func TestLoadFile_IsTheExpertThatWasWritten(t *testing.T) {
	e, yes, seed := engine(t), true, &expert.Init{Seed: 3}
	for _, c := range []struct {
		params expert.Params
		rename map[string]string
	}{
		{expert.Params{Kind: "glu", Hidden: 12, Inner: 20}, nil},
		{expert.Params{Kind: "glu", Hidden: 12, Inner: 20, DType: "bf16", Bias: &yes}, nil},
		{expert.Params{Kind: "glu", Hidden: 12, Inner: 20}, map[string]string{"gate_proj.weight": "w1", "up_proj.weight": "w3", "down_proj.weight": "w2"}},
		{expert.Params{Kind: "glu", Hidden: 12, Inner: 20, DType: "f16"}, map[string]string{
			"gate_proj.weight": "w1.weight", "up_proj.weight": "w3.weight", "down_proj.weight": "w2.weight",
		}},
		{expert.Params{Kind: "glu", Hidden: 12, Inner: 20, Activation: "swiglu_clamped", Limit: 7}, nil},
		{expert.Params{Kind: "mlp", Hidden: 12, Inner: 20}, nil},
		{expert.Params{Kind: "mlp", Hidden: 12, Inner: 20, DType: "bf16", Residual: true, Norm: true, Eps: 1e-6, Activation: "relu"}, nil},
	} {
		p := c.params
		p.Init = seed
		path := drawn(t, p, c.rename)
		want, err := expert.New(p, e)
		require.NoError(t, err)

		p.Init, p.Hidden, p.Inner, p.DType, p.Bias = nil, 0, 0, "", nil // the file knows
		got, err := checkpoint.LoadFile(t.Context(), path, p, e, nil)
		require.NoError(t, err)
		require.Equal(t, want.Spec(), got.Spec(), "the digest too")

		x := expert.NewRows([]float32{1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6}, 12)
		a, err := want.Forward(t.Context(), x)
		require.NoError(t, err)
		b, err := got.Forward(t.Context(), x)
		require.NoError(t, err)
		require.Equal(t, a.Float32s(), b.Float32s())
	}
}

func TestLoadFile_SaysWhatIsWrong(t *testing.T) {
	no, yes, seed := false, true, &expert.Init{}
	glu := drawn(t, expert.Params{Kind: "glu", Hidden: 12, Inner: 20, Init: seed}, nil)
	mlp := drawn(t, expert.Params{Kind: "mlp", Hidden: 12, Inner: 20, Norm: true, Init: seed}, nil)
	plain := drawn(t, expert.Params{Kind: "mlp", Hidden: 12, Inner: 20, Init: seed}, nil)
	for _, c := range []struct {
		path   string
		params expert.Params
		says   string
	}{
		{glu, expert.Params{Kind: "identity", Hidden: 4}, "kind identity has no weights"},
		{glu, expert.Params{Kind: "gru"}, `kind: "gru"`},
		{glu, expert.Params{Kind: "mlp"}, "kind mlp: expected tensors w1, b1, w2, b2; found down_proj.weight"},
		{mlp, expert.Params{Kind: "glu"}, `tensor "b1": it has no part in kind glu`},
		{glu, expert.Params{Kind: "glu", Hidden: 16}, "expected [inner 16] (inner, hidden), found [20 12]"},
		{glu, expert.Params{Kind: "glu", Inner: 12}, "expected [12 hidden] (inner, hidden), found [20 12]"},
		{glu, expert.Params{Kind: "glu", DType: "bf16"}, "expected bf16 as the other matrices"},
		{glu, expert.Params{Kind: "glu", Bias: &yes}, `no tensor "gate_proj.bias"`},
		{glu, expert.Params{Kind: "glu", Activation: "swiglu_clamped"}, "limit"},
		{plain, expert.Params{Kind: "mlp", Norm: true}, `no tensor "norm.weight"`},
		{plain, expert.Params{Kind: "mlp", Bias: &no}, `tensor "b1": expected none with bias: false`},
		{mlp, expert.Params{Kind: "mlp"}, "norm is off"},
		{glu + "x", expert.Params{Kind: "glu"}, "no such file"},
	} {
		_, err := checkpoint.LoadFile(t.Context(), c.path, c.params, engine(t), nil)
		require.ErrorContains(t, err, c.says)
		require.ErrorContains(t, err, c.path)
		require.NotContains(t, err.Error(), ": :", "of a single expert there is no block to name")
	}
}
