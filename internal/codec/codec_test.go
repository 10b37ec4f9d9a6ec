package codec

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/x448/float16"
)

// patterns calls f with bits of float32 numbers: every sign, exponent and upper fraction with the lower parts at which rounding changes.
func patterns(f func(bits uint32)) {
	for upper := range uint32(1 << 16) {
		for _, lower := range []uint32{0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xf000, 0xffff} {
			f(upper<<16 | lower)
		}
	}
}

func TestF16_AgreesWithOracleOnAllBits(t *testing.T) {
	patterns(func(bits uint32) {
		v := math.Float32frombits(bits)
		want := float16.Fromfloat32(v).Bits()
		if v != v {
			want = nanF16
		}
		if got := ToF16(v); got != want {
			t.Fatalf("F16(%#x): %#x, want %#x", bits, got, want)
		}
	})
	for h := range 1 << 16 {
		want := math.Float32bits(float16.Frombits(uint16(h)).Float32())
		if h&0x7fff > infF16 {
			want = nanF32
		}
		if got := math.Float32bits(FromF16(uint16(h))); got != want {
			t.Fatalf("FromF16(%#x): %#x, want %#x", h, got, want)
		}
	}
}

// nearest returns which of the numbers is nearest to v, the one with an even index on a tie; from must ascend.
func nearest(v float64, from []float64) int {
	best := 0
	for i, f := range from {
		d, b := math.Abs(v-f), math.Abs(v-from[best])
		if d < b || (d == b && i%2 == 0) {
			best = i
		}
	}
	return best
}

func TestBF16_RoundsToNearestEven(t *testing.T) {
	patterns(func(bits uint32) {
		v := math.Float32frombits(bits)
		got := ToBF16(v)
		if v != v {
			if got != nanBF16 {
				t.Fatalf("BF16(%#x): %#x, want the canonical NaN", bits, got)
			}
			return
		}
		// The two neighbours as float64; the one above the largest finite number stands where it would if the exponents went on.
		down := bits >> 16
		lo := math.Abs(float64(math.Float32frombits(down << 16)))
		hi := math.Abs(float64(math.Float32frombits((down + 1) << 16)))
		if math.IsInf(hi, 0) && !math.IsInf(lo, 0) {
			hi = 0x1p128
		}
		a := math.Abs(float64(v))
		want := down
		if !math.IsInf(lo, 0) && (a-lo > hi-a || (a-lo == hi-a && down&1 == 1)) {
			want++
		}
		if uint32(got) != want {
			t.Fatalf("BF16(%#x): %#x, want %#x", bits, got, want)
		}
	})
}

func TestF8E4M3_IsNearestOfAllItsNumbers(t *testing.T) {
	numbers := make([]float64, maxF8+1)
	for q := range numbers {
		numbers[q] = float64(FromF8E4M3(byte(q)))
	}
	require.Equal(t, 448.0, numbers[maxF8])
	require.Equal(t, 0x1p-9, numbers[1])
	require.Equal(t, 1.0, numbers[0x38])
	require.IsIncreasing(t, numbers)
	for q := range 256 {
		v := FromF8E4M3(byte(q))
		if q&nanF8 == nanF8 {
			require.Equal(t, uint32(nanF32), math.Float32bits(v))
			continue
		}
		require.Equal(t, byte(q), ToF8E4M3(v))
	}
	for upper := range uint32(1 << 12) {
		for _, lower := range []uint32{0, 1, 0x7ffff, 0x80000, 0x80001, 0xfffff} {
			v := math.Float32frombits(upper<<20 | lower)
			if v != v {
				require.Equal(t, byte(nanF8), ToF8E4M3(v))
				continue
			}
			want := byte(nearest(math.Abs(float64(v)), numbers))
			if math.IsInf(float64(v), 0) {
				want = maxF8
			}
			if math.Signbit(float64(v)) {
				want |= 0x80
			}
			if got := ToF8E4M3(v); got != want {
				t.Fatalf("F8E4M3(%v): %#x, want %#x", v, got, want)
			}
		}
	}
}

func TestEncodeDecode_AgreeWithScalarsAtEveryLength(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for n := range 40 {
		src := make([]float32, n)
		for i := range src {
			src[i] = math.Float32frombits(rnd.Uint32())
		}
		for _, d := range []DType{F32, BF16, F16, F8E4M3} {
			buf := make([]byte, d.Size(n)+3)
			Encode(buf[1:], d, src)
			require.Zero(t, buf[0])
			require.Equal(t, []byte{0, 0}, buf[d.Size(n)+1:])
			back := make([]float32, n)
			Decode(back, d, buf[1:])
			for i, v := range src {
				var want uint32
				switch d {
				case F32:
					want = math.Float32bits(v)
					require.Equal(t, want, binary.LittleEndian.Uint32(buf[1+4*i:]))
				case BF16:
					want = math.Float32bits(FromBF16(ToBF16(v)))
				case F16:
					want = math.Float32bits(FromF16(ToF16(v)))
				default:
					want = math.Float32bits(FromF8E4M3(ToF8E4M3(v)))
				}
				require.Equal(t, want, math.Float32bits(back[i]), "%v %d of %d", d, i, n)
			}
		}
	}
}

func TestViews_ShareMemory(t *testing.T) {
	x := []float32{1, 2, 3}
	b, ok := ViewBytes(x)
	require.Equal(t, littleEndian(), ok)
	if !ok {
		return
	}
	require.Len(t, b, 12)
	binary.LittleEndian.PutUint32(b[4:], math.Float32bits(7))
	require.Equal(t, float32(7), x[1])
	y, ok := ViewFloats(b)
	require.True(t, ok)
	y[2] = 9
	require.Equal(t, float32(9), x[2])
	_, ok = ViewFloats(b[1:9])
	require.False(t, ok, "not aligned")
	_, ok = ViewFloats(b[:11])
	require.False(t, ok, "not whole")
	b, ok = ViewBytes(nil)
	require.True(t, ok)
	require.Empty(t, b)
}

func TestDType_NamesComeBack(t *testing.T) {
	for d := range DType(len(names)) {
		got, err := ParseDType(d.String())
		require.NoError(t, err)
		require.Equal(t, d, got)
	}
	_, err := ParseDType("f64")
	require.ErrorIs(t, err, ErrUnknownDType)
	require.Equal(t, 3, MXFP4.Size(5))
}

func BenchmarkCodec(b *testing.B) {
	src := make([]float32, 1<<16)
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range src {
		src[i] = float32(rnd.NormFloat64())
	}
	buf := make([]byte, 4*len(src))
	for _, d := range []DType{F32, BF16, F16, F8E4M3} {
		b.Run("encode/"+d.String(), func(b *testing.B) {
			b.SetBytes(int64(4 * len(src)))
			for b.Loop() {
				Encode(buf, d, src)
			}
		})
		b.Run("decode/"+d.String(), func(b *testing.B) {
			b.SetBytes(int64(4 * len(src)))
			for b.Loop() {
				Decode(src, d, buf)
			}
		})
	}
}
