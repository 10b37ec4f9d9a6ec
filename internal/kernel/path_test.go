package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// vectorPaths are the paths that are compared with the portable one.
func vectorPaths() []Path { return Paths()[1:] }

func TestPaths_GiveTheSameBits(t *testing.T) {
	portable := newTestPoolOf(t, 1, PathPortable)
	pools := map[Path]*Pool{}
	for _, path := range vectorPaths() {
		pools[path] = newTestPoolOf(t, 2, path)
	}
	for i, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(12, uint64(i)))
			p := newModel(rnd, s).pack(t)
			compare(t, rnd, p, portable, pools, []int{1, 2, 3, 5, 8, 11, 12, 13, 25})
		})
	}
}

// compare runs batches of several sizes, the largest last, on all paths and in all numerics.
func compare(t *testing.T, rnd *rand.Rand, p *PackedFFN, portable *Pool, pools map[Path]*Pool, sizes []int) {
	t.Helper()
	most := sizes[len(sizes)-1]
	x := randomRows(rnd, most*p.hidden)
	for range most { // some numbers that are subnormal or large
		x[rnd.IntN(len(x))] = math.Float32frombits(rnd.Uint32() & 0x80ffffff)
		x[rnd.IntN(len(x))] *= 1e4
	}
	want, got := make([]float32, len(x)), make([]float32, len(x))
	for n := range Numerics(numerics) {
		if p.Numerics(n) != n {
			continue
		}
		p.Forward(portable, want, x, most, n)
		for path, pool := range pools {
			for _, rows := range sizes {
				p.Forward(pool, got, x, rows, n)
				if used := rows * p.hidden; !slices.Equal(bitsOf(want[:used]), bitsOf(got[:used])) {
					require.Equal(t, bitsOf(want[:used]), bitsOf(got[:used]), "%v, %v, %d rows", path, n, rows)
				}
			}
		}
	}
}

func TestPaths_GiveTheSameBitsForAllBatchSizes(t *testing.T) {
	const most = 70
	for _, s := range []shape{
		{hidden: 77, inner: 131, dtype: BF16, gated: true},
		{hidden: 64, inner: 33, dtype: F16, gated: true, activation: GELU},
		{hidden: 65, inner: 64, dtype: F32, activation: GELUTanh, bias: true},
		{hidden: 160, inner: 77, dtype: F8E4M3, gated: true, blockOut: 16, blockIn: 32},
		{hidden: 96, inner: 64, dtype: MXFP4, gated: true, activation: SwiGLUClamped, bias: true},
	} {
		t.Run(s.String(), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(13, 13))
			p := newModel(rnd, s).pack(t)
			x := randomRows(rnd, most*s.hidden)
			want, got := make([]float32, len(x)), make([]float32, len(x))
			portable := newTestPoolOf(t, 1, PathPortable)
			for n := range Numerics(numerics) {
				if p.Numerics(n) != n {
					continue
				}
				p.Forward(portable, want, x, most, n)
				for _, path := range vectorPaths() {
					pool := newTestPoolOf(t, 2, path)
					for rows := 1; rows <= most; rows++ {
						p.Forward(pool, got, x, rows, n)
						require.Equal(t, bitsOf(want[:rows*s.hidden]), bitsOf(got[:rows*s.hidden]), "%v, %v, %d rows", path, n, rows)
					}
				}
			}
		})
	}
}

// Weights that are infinite, NaN or subnormal, and sums that overflow, are where instructions would differ first.
func TestPaths_GiveTheSameBitsForAnyBitsOfWeights(t *testing.T) {
	portable := newTestPoolOf(t, 1, PathPortable)
	pools := map[Path]*Pool{}
	for _, path := range vectorPaths() {
		pools[path] = newTestPoolOf(t, 1, path)
	}
	for d := range DType(dtypes) {
		for seed := range uint64(8) {
			rnd := rand.New(rand.NewPCG(14, seed))
			m := newModel(rnd, shape{hidden: 64, inner: 96, dtype: d, gated: seed%2 == 0, blockOut: 32, blockIn: 32})
			for _, w := range []*Weights{&m.ffn.Gate, &m.ffn.Up, &m.ffn.Down} {
				for range len(w.Data) / 60 {
					at := rnd.IntN(len(w.Data))
					if w.Data[at] = byte(rnd.Uint32()); d == F8E4M3 && w.Data[at]&0x7f == 0x7f {
						w.Data[at] = 0x7e
					}
				}
				for i := range w.Exponents {
					if rnd.IntN(4) == 0 {
						w.Exponents[i] = byte(rnd.Uint32())
					}
				}
			}
			compare(t, rnd, m.pack(t), portable, pools, []int{1, 7})
		}
	}
}

// Every activation, on numbers of all sizes, without the products around it.
func TestPaths_ActivateAlike(t *testing.T) {
	portable := portableKernels()
	var numbers []float32
	sweep(func(v float32) { numbers = append(numbers, v) })
	rand.New(rand.NewPCG(15, 15)).Shuffle(len(numbers), func(i, j int) { numbers[i], numbers[j] = numbers[j], numbers[i] })
	numbers = append(numbers, float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.Copysign(0, -1)), 0)
	numbers = append(numbers, make([]float32, panel-len(numbers)%panel)...)
	rows := len(numbers) / panel
	bias := make([]float32, panel)
	bias[3], bias[20] = 1, -2
	run := func(f rowsFunc) []float32 {
		y := make([]float32, len(numbers))
		f(unsafe.Pointer(&y[0]), unsafe.Pointer(&numbers[0]), unsafe.Pointer(&bias[0]), panel*4, rows, 7)
		return y
	}
	for _, path := range vectorPaths() {
		k := kernelsFor(path)
		for a := range Activation(activations) {
			requireSameBits(t, run(portable.gated[a]), run(k.gated[a]), "%v, %v of gate", path, a)
			if a != SwiGLUClamped {
				requireSameBits(t, run(portable.plain[a]), run(k.plain[a]), "%v, %v", path, a)
			}
		}
		require.Equal(t, bitsOf(run(portable.finish)), bitsOf(run(k.finish)), "%v", path)
		want, got := make([]float32, len(numbers)), make([]float32, len(numbers))
		portable.round(unsafe.Pointer(&want[0]), unsafe.Pointer(&numbers[0]), 0, 0, len(numbers)/16, 1)
		k.round(unsafe.Pointer(&got[0]), unsafe.Pointer(&numbers[0]), 0, 0, len(numbers)/16, 1)
		require.Equal(t, bitsOf(want), bitsOf(got), "%v", path)
		if k.pack != nil {
			packed := make([]uint16, len(numbers))
			k.pack(unsafe.Pointer(&packed[0]), unsafe.Pointer(&numbers[0]), 0, 0, len(numbers)/16, 1)
			for i, h := range packed {
				require.Equal(t, math.Float32bits(want[i]), uint32(h)<<16)
			}
		}
	}
}

func FuzzPaths(f *testing.F) {
	f.Add(uint64(1), uint16(64), uint16(64), byte(BF16), byte(0), byte(3))
	f.Add(uint64(2), uint16(77), uint16(131), byte(F8E4M3), byte(9), byte(13))
	portable := newTestPoolOf(f, 1, PathPortable)
	pools := map[Path]*Pool{}
	for _, path := range vectorPaths() {
		pools[path] = newTestPoolOf(f, 2, path)
	}
	f.Fuzz(func(t *testing.T, seed uint64, hidden, inner uint16, dtype, kind, rows byte) {
		s := shape{hidden: int(hidden)%300 + 1, inner: int(inner)%300 + 1, dtype: DType(int(dtype) % dtypes)}
		s.activation = Activation(int(kind) % activations)
		s.gated = s.activation == SwiGLUClamped || kind&64 != 0
		s.bias, s.transposed = kind&32 != 0, kind&16 != 0 && s.dtype != MXFP4
		s.blockOut, s.blockIn = int(seed%50)+1, []int{32, 64, 7, 128}[seed%4]
		if s.dtype == MXFP4 {
			s.hidden, s.inner = roundUp(s.hidden, 32), roundUp(s.inner, 32)
		}
		rnd := rand.New(rand.NewPCG(seed, 16))
		compare(t, rnd, newModel(rnd, s).pack(t), portable, pools, []int{1, int(rows)%40 + 1})
	})
}

func TestProductsCoverAllFormats(t *testing.T) {
	for _, path := range Paths() {
		k := kernelsFor(path)
		require.Equal(t, path, k.path)
		for n := range numerics {
			for d := range dtypes {
				p := &k.products[n][d]
				if n != int(Exact) && d != int(BF16) {
					require.Zero(t, p.most)
					continue
				}
				require.Positive(t, p.most, "%v %v %v", path, Numerics(n), DType(d))
			}
		}
	}
}
