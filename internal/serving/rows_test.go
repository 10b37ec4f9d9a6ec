package serving

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAllFinite_FindsWhatIsNotWhereverItStands(t *testing.T) {
	bad := []float32{float32(math.NaN()), -float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.Float32frombits(0x7f800001)}
	good := []float32{0, math.Float32frombits(1 << 31), math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, 1}
	for n := range 40 {
		for offset := range 2 {
			x := make([]float32, n+offset)[offset:]
			for i := range x {
				x[i] = good[i%len(good)]
			}
			require.True(t, allFinite(x))
			for i := range x {
				for _, v := range bad {
					was := x[i]
					x[i] = v
					require.False(t, allFinite(x), "%v at %d of %d", v, i, n)
					x[i] = was
				}
			}
		}
	}
}

func FuzzAllFinite(f *testing.F) {
	f.Add([]byte{0, 0, 0x80, 0x7f}, uint8(0))
	f.Add(make([]byte, 64), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, from uint8) {
		x := make([]float32, len(data)/4)
		want := true
		for i := range x {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
			if i >= int(from) && (math.IsNaN(float64(x[i])) || math.IsInf(float64(x[i]), 0)) {
				want = false
			}
		}
		require.Equal(t, want, allFinite(x[min(int(from), len(x)):]))
	})
}

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
