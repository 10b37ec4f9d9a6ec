package discovery

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSchedule_FullRoundsEveryTenMinutes(t *testing.T) {
	p := schedule{pause: retryAfter}
	require.True(t, p.full(start, 5), "the first one at once")
	p.ran(start, true, false, 0)
	require.False(t, p.full(start.Add(9*time.Minute-1), 5))
	require.True(t, p.full(start.Add(9*time.Minute), 5), "dice at their lowest")
	p.ran(start, true, false, 0.999999)
	require.False(t, p.full(start.Add(10*time.Minute+59*time.Second), 5))
	require.True(t, p.full(start.Add(11*time.Minute), 5))
}

func TestSchedule_AgainWhenTheSwarmHasDoubled(t *testing.T) {
	p := schedule{pause: retryAfter}
	require.True(t, p.full(start, 0))
	p.ran(start, true, false, 0.5)
	var at []int
	for size := range 1000 {
		if p.full(start, size) {
			at = append(at, size)
		}
	}
	require.Equal(t, []int{1, 3, 7, 15, 31, 63, 127, 255, 511}, at)
	require.False(t, p.full(start, 3), "it shrank")
	require.True(t, p.full(start, 7), "and has doubled since then")
}

func TestSchedule_RetriesWhatFailedWithGrowingPauses(t *testing.T) {
	p := schedule{pause: retryAfter}
	now := start
	require.True(t, p.full(now, 1))
	p.ran(now, true, true, 0.5)
	for _, pause := range []time.Duration{5, 10, 20, 40, 80, 160, 320, 600, 600} {
		pause *= time.Second
		require.False(t, p.retryDue(now.Add(pause-1)))
		now = now.Add(pause)
		require.True(t, p.retryDue(now))
		p.ran(now, false, true, 0.5)
	}
	p.ran(now, false, false, 0.5)
	require.False(t, p.retryDue(now.Add(time.Hour)), "all went well")
}
