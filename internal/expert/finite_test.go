package expert

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestFinite_AgreesWithThePlainTest(t *testing.T) {
	special := []float32{
		0, float32(math.Copysign(0, -1)), 1, -1, math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32,
		float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.Float32frombits(0xffffffff), math.Float32frombits(0x7f800001),
	}
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.OneOf(rapid.Float32(), rapid.SampledFrom(special[:7])), 0, 70).Draw(t, "values")
		if len(values) > 0 && rapid.Bool().Draw(t, "spoil") {
			values[rapid.IntRange(0, len(values)-1).Draw(t, "at")] = rapid.SampledFrom(special).Draw(t, "with")
		}
		plain := func(v []float32) bool {
			return !slices.ContainsFunc(v, func(x float32) bool { return math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) })
		}
		for skip := range min(3, len(values)+1) { // also where the first value is not aligned
			require.Equal(t, plain(values[skip:]), Finite(values[skip:]))
		}
	})
}

func TestFinite_FindsWhatIsNotWhereverItStands(t *testing.T) {
	bad := []float32{float32(math.NaN()), -float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.Float32frombits(0x7f800001)}
	good := []float32{0, math.Float32frombits(1 << 31), math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, 1}
	for n := range 40 {
		for offset := range 2 {
			x := make([]float32, n+offset)[offset:]
			for i := range x {
				x[i] = good[i%len(good)]
			}
			require.True(t, Finite(x))
			for i := range x {
				for _, v := range bad {
					was := x[i]
					x[i] = v
					require.False(t, Finite(x), "%v at %d of %d", v, i, n)
					x[i] = was
				}
			}
		}
	}
}

func FuzzFinite(f *testing.F) {
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
		require.Equal(t, want, Finite(x[min(int(from), len(x)):]))
	})
}

func BenchmarkFinite(b *testing.B) {
	for _, n := range []int{1024, 2 << 20} {
		values := make([]float32, n)
		b.Run(map[int]string{1024: "4KiB", 2 << 20: "8MiB"}[n], func(b *testing.B) {
			b.SetBytes(int64(4 * n))
			for b.Loop() {
				if !Finite(values) {
					b.Fatal()
				}
			}
		})
	}
}
