package kernel

import (
	_ "embed" // of the self-test's vectors
	"encoding/binary"
	"math"
	"time"
	"unsafe"

	"github.com/klauspost/cpuid/v2"
)

//go:generate go run ./internal/gen -dir .

// Paths returns the paths that this machine can take, in ascending order of speed as far as their names tell.
func Paths() []Path {
	paths := []Path{PathPortable}
	if !cpuid.CPU.Supports(cpuid.AVX2, cpuid.FMA3, cpuid.F16C) {
		return paths
	}
	paths = append(paths, PathAVX2)
	if !cpuid.CPU.Supports(cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512DQ, cpuid.AVX512VL) {
		return paths
	}
	paths = append(paths, PathAVX512)
	if cpuid.CPU.Supports(cpuid.AVX512BF16) && selfTestDot(avx512DotNative()[0]) {
		paths = append(paths, PathBF16)
	}
	return paths
}

// bestPath returns the quickest of the paths. VDPBF16PS is twice as fast as fused multiply-adds on one maker's CPUs and half as fast on the other's,
// so the two are timed.
func bestPath(paths []Path) Path {
	best := paths[len(paths)-1]
	if best == PathBF16 && timeProduct(avx512DotNative(), 2) > timeProduct(avx512Dot(), 4) {
		return PathAVX512
	}
	return best
}

// vectorKernels returns the functions of a path with vectors.
func vectorKernels(path Path) *kernels {
	k := &kernels{path: path}
	if path == PathAVX2 {
		k.finish, k.round = avx2Finish, avx2Round
		for d, f := range [dtypes][]productFunc{avx2ExactF32(), avx2ExactBF16(), avx2ExactF16(), avx2ExactF8E4M3(), avx2ExactMXFP4()} {
			k.products[Exact][d] = tableOf(f, false)
		}
		k.products[Dot][BF16], k.products[Tile][BF16] = tableOf(avx2Dot(), false), tableOf(avx2Tile(), false)
		copy(k.gated[:], avx2Gated())
		copy(k.plain[:], avx2Plain())
		return k
	}
	k.finish, k.round, k.pack = avx512Finish, avx512Round, avx512Pack
	for d, f := range [dtypes][]productFunc{avx512ExactF32(), avx512ExactBF16(), avx512ExactF16(), avx512ExactF8E4M3(), avx512ExactMXFP4()} {
		k.products[Exact][d] = tableOf(f, false)
	}
	k.products[Dot][BF16], k.products[Tile][BF16] = tableOf(avx512Dot(), false), tableOf(avx512Tile(), false)
	if path == PathBF16 {
		k.products[Dot][BF16] = tableOf(avx512DotNative(), true)
	}
	copy(k.gated[:], avx512Gated())
	copy(k.plain[:], avx512Plain())
	return k
}

func tableOf(f []productFunc, pairs bool) products {
	return productTable(len(f), pairs, func(rows int) productFunc { return f[rows-1] })
}

// selfTestVectors are 64 cases of testdata/dot.safetensors: a, b [32] bf16, c, d [16] float32 each.
//
//go:embed selftest_amd64.bin
var selfTestVectors []byte

// selfTestDot tells whether VDPBF16PS of this CPU gives the bits that the definition of Dot demands, on vectors of all sizes of numbers.
func selfTestDot(product productFunc) bool {
	const columns, pairBytes, caseBytes = 16, 4, 2*64 + 2*64
	for rest := selfTestVectors; len(rest) >= caseBytes; rest = rest[caseBytes:] {
		a, b, c, want := rest[:64], rest[64:128], rest[128:192], rest[192:256]
		for n := range columns {
			// The product takes one row of activations for all columns, but here each column has a pair of its own: one call for each.
			var x [step / 2]uint32
			var w [step / 2][panel]uint32
			var totals [panel]float32
			x[0] = flushPair(binary.LittleEndian.Uint32(a[pairBytes*n:]))
			w[0][n] = binary.LittleEndian.Uint32(b[pairBytes*n:])
			totals[n] = flush(math.Float32frombits(binary.LittleEndian.Uint32(c[4*n:])))
			product(unsafe.Pointer(&totals), unsafe.Pointer(&x), unsafe.Pointer(&w), nil, nil, nil, int(unsafe.Sizeof(x)), 1, 1)
			expected := math.Float32frombits(binary.LittleEndian.Uint32(want[4*n:]))
			if got := totals[n]; got != expected && (got == got || expected == expected) {
				return false
			}
		}
	}
	return true
}

// flushPair makes subnormal numbers of a pair of bf16 zero, as the rounding of activations does.
func flushPair(pair uint32) uint32 {
	low, high := flush(math.Float32frombits(pair<<16)), flush(math.Float32frombits(pair&0xffff0000))
	return math.Float32bits(low)>>16 | math.Float32bits(high)
}

// timeProduct returns the least time that a product with as many rows as can be took, on operands that stay in the nearest cache.
func timeProduct(f []productFunc, elemSize int) time.Duration {
	const inputs, tries = 64, 20
	var c [maxRows * panel]float32
	var x [maxRows * inputs]uint32
	var w [inputs / 2 * panel]uint32
	best := time.Hour
	for range tries {
		begun := time.Now()
		for range 8 {
			f[len(f)-1](unsafe.Pointer(&c), unsafe.Pointer(&x), unsafe.Pointer(&w), nil, nil, nil, inputs*elemSize, 1, inputs/step)
		}
		best = min(best, time.Since(begun))
	}
	return best
}

// limitLoops returns the loops that measure the limits of the path.
func (k *kernels) limitLoops() limitLoops {
	const times = 4096
	l := portableLimits()
	l.cache = max(cpuid.CPU.Cache.L3, 0)
	switch k.path {
	case PathPortable:
	case PathAVX2:
		l.read = func(chunk []byte) { avx2Read(unsafe.Pointer(&chunk[0]), len(chunk)/512) }
		l.fma = func() float64 { avx2FMA(times); return 2 * 8 * 12 * times }
	default:
		l.read = func(chunk []byte) { avx512Read(unsafe.Pointer(&chunk[0]), len(chunk)/512) }
		l.fma = func() float64 { avx512FMA(times); return 2 * 16 * 24 * times }
	}
	if k.path == PathBF16 {
		l.bf16 = func() float64 { avx512BF16(times); return 4 * 16 * 24 * times }
	}
	return l
}
