package serving

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpan(t *testing.T) {
	first, ok := span([]int32{5, 6, 7})
	require.True(t, ok)
	require.Equal(t, 5, first)
	_, ok = span([]int32{5, 7})
	require.False(t, ok)
	_, ok = span([]int32{5, 5})
	require.False(t, ok)
}

func TestGather(t *testing.T) {
	x := []float32{0, 1, 10, 11, 20, 21}
	y := make([]float32, 6)
	gather(y, x, []int32{2, 0, 2}, 2)
	require.Equal(t, []float32{20, 21, 0, 1, 20, 21}, y)
	gather(y, x, nil, 2)
	require.Equal(t, x, y)
}

func TestBufferPool_GivesWhatIsAskedFor(t *testing.T) {
	var p bufferPool
	for _, n := range []int{1, 2, 3, 4, 5, 1023, 1024, 1025} {
		b := p.get(n)
		require.Len(t, b, n)
		p.put(b)
		again := p.get(n)
		require.Len(t, again, n)
	}
}

func TestSameMemory(t *testing.T) {
	x := make([]float32, 10)
	require.True(t, sameMemory(x, x))
	require.True(t, sameMemory(x[:5], x[4:]))
	require.False(t, sameMemory(x[:5], x[5:]))
	require.False(t, sameMemory(x, nil))
	require.False(t, sameMemory(x, make([]float32, 10)))
}
