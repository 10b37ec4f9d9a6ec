package kernel

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// exactFMA is a*b + c by arbitrary precision, rounded once; for finite numbers whose result is no zero.
func exactFMA(a, b, c float32) float32 {
	p := new(big.Float).SetPrec(2000).Mul(big.NewFloat(float64(a)), big.NewFloat(float64(b)))
	v, _ := p.Add(p, big.NewFloat(float64(c))).Float32()
	return v
}

// anyFinite draws bits of a finite float32; two of three times with an exponent around that of 1, so that operands meet.
func anyFinite(rnd *rand.Rand) float32 {
	for {
		b := rnd.Uint32()
		switch rnd.IntN(3) {
		case 0:
			b = b&^(0xff<<23) | uint32(rnd.IntN(60)+98)<<23
		case 1: // few bits: ties are frequent
			b = b&(1<<31|0x3f<<17) | uint32(rnd.IntN(60)+98)<<23
		}
		if v := math.Float32frombits(b); v-v == 0 {
			return v
		}
	}
}

func TestFMA_RoundsOnce(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	tries := 300_000
	if underRace {
		tries /= 10
	}
	for range tries {
		a, b, c := anyFinite(rnd), anyFinite(rnd), anyFinite(rnd)
		if rnd.IntN(2) == 0 { // near a middle of two float32, by a little more or less
			c = float32(math.Ldexp(float64(a*b), 24+rnd.IntN(3)))
		}
		if c-c != 0 {
			continue
		}
		want, got := exactFMA(a, b, c), fma(a, b, c)
		if want == 0 && got == 0 { // big.Float's sign of a zero that was rounded to
			continue
		}
		require.Equal(t, math.Float32bits(want), math.Float32bits(got), "fma(%x, %x, %x)", a, b, c)
	}
}

func TestFMA_KnowsSpecialValues(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	negZero := float32(math.Copysign(0, -1))
	same := func(want, got float32) {
		t.Helper()
		require.True(t, math.Float32bits(want) == math.Float32bits(got) || (want != want && got != got), "%v, want %v", got, want)
	}
	same(nan, fma(inf, 0, 1))
	same(nan, fma(inf, 1, -inf))
	same(inf, fma(math.MaxFloat32, 2, 1))
	same(-inf, fma(math.MaxFloat32, -2, 1))
	same(nan, fma(1, 1, nan))
	same(0, fma(1, 1, -1))
	same(negZero, fma(0, negZero, negZero))
	same(0, fma(0, 0, negZero))
	same(0x1p-149, fma(0x1p-75, 0x1.8p-75, 0))
	same(negZero, fma(-0x1p-100, 0x1p-100, 0))
	same(0, fmaFlushed(0x1p-64, 0x1p-63, 0))
	same(negZero, fmaFlushed(-0x1p-64, 0x1p-63, 0))
	same(0x1p-126, fmaFlushed(0x1p-63, 0x1p-63, 0))
	same(0x1p-126, fmaFlushed(0x1.fffffep-64, 0x1.000002p-63, 0))
}

func TestRoundBF16_FlushesThenRoundsToNearestEven(t *testing.T) {
	for in, want := range map[uint32]uint32{
		0x3f808000: 0x3f800000, 0x3f818000: 0x3f820000, 0x3f808001: 0x3f810000, 0x3f807fff: 0x3f800000,
		0x007fffff: 0, 0x807fffff: 0x80000000, 0x00800000: 0x00800000,
		0x7f7fffff: 0x7f800000, 0xff800000: 0xff800000, 0x7f800001: canonicalNaN, 0xffc12345: canonicalNaN,
	} {
		require.Equal(t, want, math.Float32bits(roundBF16(math.Float32frombits(in))), "%#x", in)
	}
}
