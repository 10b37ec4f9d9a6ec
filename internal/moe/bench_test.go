package moe

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// The gate of the layer that is measured between hosts: 64 experts, hidden 2048.
func BenchmarkLogits(b *testing.B) {
	const experts, hidden = 64, 2048
	for _, rows := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			g, x := drawnGate(b, experts, hidden), drawn(rows*hidden, 2)
			for b.Loop() {
				g.Logits(x)
			}
		})
	}
}

func drawn(n int, seed uint64) []float32 {
	dice := rand.New(rand.NewPCG(seed, 0))
	values := make([]float32, n)
	for i := range values {
		values[i] = 2*dice.Float32() - 1
	}
	return values
}

func drawnGate(tb testing.TB, experts, hidden int) *Gate {
	tb.Helper()
	g, err := NewGate(Rule{Score: ScoreSoftmax, TopK: 1, Scale: 1}, Tensors{Weight: drawn(experts*hidden, 1)}, hidden)
	require.NoError(tb, err)
	return g
}

func TestLogits_AreTheSameChainsHoweverManyRowsAndExperts(t *testing.T) {
	const hidden = 1031
	for _, experts := range []int{1, 3, 4, 7, 8, 13, 64} {
		g := drawnGate(t, experts, hidden)
		for _, rows := range []int{1, 2, 3, 17, 64} {
			x := drawn(rows*hidden, 3)
			got := g.Logits(x)
			for r := range rows {
				for e := range experts {
					var sum float64
					for k := range hidden {
						sum += float64(x[r*hidden+k]) * float64(g.weight[e*hidden+k])
					}
					require.Equal(t, float32(sum), got[r*experts+e], "row %d of %d, expert %d of %d", r, rows, e, experts)
				}
			}
		}
	}
}
