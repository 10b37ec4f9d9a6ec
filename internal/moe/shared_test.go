package moe_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/moe"
)

// echoExperts answers with the rows that it is sent.
type echoExperts struct{ hidden int }

func (e echoExperts) Dispatch(_ context.Context, x *tensor.Dense, pairs []expert.Pair, _ func(int, bool)) ([]moe.Answer, error) {
	answers := make([]moe.Answer, len(pairs))
	for i, p := range pairs {
		var rows []float32
		for _, r := range p.Rows {
			rows = append(rows, x.Float32s()[int(r)*e.hidden:(int(r)+1)*e.hidden]...)
		}
		answers[i] = moe.Answer{Output: expert.NewRows(rows, e.hidden), Expert: p.Expert}
	}
	return answers, nil
}

func TestForward_LeavesTheSharedExpertToACallerWhoHasIt(t *testing.T) {
	eachLayer(t, func(t *testing.T, l layer) {
		if l.shared == nil {
			t.Skip("no shared expert")
		}
		hidden := l.gate.Hidden()
		x := l.floats(t, "rows17.input")
		name, err := expert.NewLayerName("m", "main", "0")
		require.NoError(t, err)
		part := &moe.Layer{Name: name, Gate: l.gate, Shared: l.shared}
		whole, err := part.Forward(t.Context(), echoExperts{hidden}, moe.Call{X: expert.NewRows(x, hidden)})
		require.NoError(t, err)
		without, err := part.Forward(t.Context(), echoExperts{hidden}, moe.Call{X: expert.NewRows(x, hidden), NoShared: true})
		require.NoError(t, err)
		require.NotEqual(t, whole.Y.Data(), without.Y.Data())

		shared := make([]float32, len(x))
		require.NoError(t, l.shared.ForwardRows(t.Context(), shared, x))
		y := without.Y.Float32s()
		moe.AddShared(y, shared, hidden, l.gate.SharedScale(x))
		require.Equal(t, whole.Y.Float32s(), y)
	})
}
