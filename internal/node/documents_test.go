package node

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/registry"
)

func TestResting_SaysTheReasonThatKeepsAPeerOutLongest(t *testing.T) {
	for name, c := range map[string]struct {
		view registry.PeerView
		why  string
		s    float64
	}{
		"well":        {registry.PeerView{Verdict: registry.Alive}, "", 0},
		"full":        {registry.PeerView{Resting: 500 * time.Millisecond}, "full", 0.5},
		"gone":        {registry.PeerView{Verdict: registry.Dead, Resting: time.Second}, "unreachable", 0},
		"stopping":    {registry.PeerView{Draining: true}, "draining", 0},
		"misbehaving": {registry.PeerView{ShutOut: time.Minute, Draining: true, Verdict: registry.Dead}, "misbehaved", 60},
	} {
		t.Run(name, func(t *testing.T) {
			why, s := resting(c.view)
			require.Equal(t, c.why, why)
			require.InDelta(t, c.s, s, 0)
		})
	}
}

func TestBalance_IsTheBusiestOverTheMean(t *testing.T) {
	require.InDelta(t, 1, balance([]int{3, 3, 3}), 0)
	require.InDelta(t, 3, balance([]int{0, 6, 0}), 0)
	require.Zero(t, balance([]int{0, 0}))
}
