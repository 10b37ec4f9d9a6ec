package kernel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// beyondCaches is how much memory a benchmark's experts take together at least.
const beyondCaches = 256 << 20

// experts packs one expert as often as it takes to be beyond the caches.
func experts(b *testing.B, s shape) []*PackedFFN {
	m := benchModel(s)
	var all []*PackedFFN
	for size := int64(0); size < beyondCaches || len(all) < 2; size += all[0].Bytes() {
		all = append(all, m.pack(b))
	}
	return all
}

// benchModel draws weights quickly: their values do not matter to the speed, but that they are neither subnormal nor infinite.
func benchModel(s shape) *model {
	rnd := rand.New(rand.NewPCG(17, 17))
	m := &model{hidden: s.hidden, inner: s.inner}
	matrix := func(out, in int) Weights {
		w := Weights{DType: s.dtype, Out: out, In: in, StrideOut: in, StrideIn: 1, Data: make([]byte, s.dtype.bytes(out*in))}
		for i := range w.Data {
			w.Data[i] = byte(rnd.Uint32())
			switch {
			case s.dtype == BF16 && i%2 == 1, s.dtype == F32 && i%4 == 3:
				w.Data[i] = w.Data[i]&0x80 | 0x3c
			case s.dtype == F8E4M3:
				w.Data[i] &^= 0x08
			}
		}
		switch s.dtype {
		case F8E4M3:
			w.BlockOut, w.BlockIn, w.ScaleStride = 128, 128, (in+127)/128
			w.Scales = slices.Repeat([]float32{1e-3}, (out+127)/128*w.ScaleStride)
		case MXFP4:
			w.Exponents = slices.Repeat([]byte{120}, out*in/32)
		}
		return w
	}
	m.ffn.Gate, m.ffn.Up, m.ffn.Down = matrix(s.inner, s.hidden), matrix(s.inner, s.hidden), matrix(s.hidden, s.inner)
	return m
}

// benchForward measures passes through experts by turns, beside the limits of the machine measured in the same run. A pass's time is the median.
func benchForward(b *testing.B, pool *Pool, all []*PackedFFN, rows int, n Numerics) {
	rnd := rand.New(rand.NewPCG(18, 18))
	hidden := all[0].Hidden()
	x, y := randomRows(rnd, rows*hidden), make([]float32, rows*hidden)
	limits, err := MeasureLimits(context.Background(), pool)
	require.NoError(b, err)
	for _, e := range all {
		e.Forward(pool, y, x, rows, n)
	}
	var times []time.Duration
	i := 0
	for b.Loop() {
		begun := time.Now()
		all[i%len(all)].Forward(pool, y, x, rows, n)
		times = append(times, time.Since(begun))
		i++
	}
	slices.Sort(times)
	took := times[len(times)/2]
	perRow, bytes := all[0].Work()
	flops := float64(perRow) * float64(rows)
	b.ReportMetric(flops/float64(took.Nanoseconds()), "GFLOP/s")
	b.ReportMetric(float64(bytes)/float64(took.Nanoseconds()), "GB/s")
	b.ReportMetric(limits.Of(took, flops, float64(bytes), pool.Native(n)), "of-limit")
	b.ReportMetric(limits.Of(times[0], flops, float64(bytes), pool.Native(n)), "best-of-limit")
	b.ReportMetric(limits.ReadGBs, "limit-GB/s")
	b.ReportMetric(limits.FMAGFLOPS, "limit-FMA-GFLOP/s")
	b.ReportMetric(limits.BF16GFLOPS, "limit-BF16-GFLOP/s")
}

func BenchmarkGLU(b *testing.B) {
	pool := newTestPool(b, 0)
	for _, s := range []struct {
		hidden, inner int
		rows          []int
	}{
		{2048, 768, []int{1, 16, 128, 512}},
		{4096, 14336, []int{1}},
		{7168, 2048, []int{128}},
	} {
		b.Run(fmt.Sprintf("%dx%d", s.hidden, s.inner), func(b *testing.B) {
			all := experts(b, shape{hidden: s.hidden, inner: s.inner, dtype: BF16})
			for _, rows := range s.rows {
				for n := range Numerics(numerics) {
					b.Run(fmt.Sprintf("rows=%d/%v", rows, n), func(b *testing.B) { benchForward(b, pool, all, rows, n) })
				}
			}
		})
	}
}

func BenchmarkGLUQuant(b *testing.B) {
	pool := newTestPool(b, 0)
	for _, s := range []struct {
		hidden, inner int
		dtype         DType
		name          string
	}{
		{7168, 2048, F8E4M3, "fp8"},
		{2880, 2880, MXFP4, "mxfp4"},
	} {
		b.Run(fmt.Sprintf("%dx%d-%s", s.hidden, s.inner, s.name), func(b *testing.B) {
			all := experts(b, shape{hidden: s.hidden, inner: s.inner, dtype: s.dtype})
			b.Run("rows=1/exact", func(b *testing.B) { benchForward(b, pool, all, 1, Exact) })
		})
	}
}
