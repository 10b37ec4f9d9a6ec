package kernel

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
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
		default: // no scales
		}
		return w
	}
	m.ffn.Gate, m.ffn.Up, m.ffn.Down = matrix(s.inner, s.hidden), matrix(s.inner, s.hidden), matrix(s.hidden, s.inner)
	return m
}

// benchMeter measures reading on the weights themselves, all of them: physical memory is not of one speed everywhere on a virtual machine.
func benchMeter(pool *Pool, all []*PackedFFN) *meter {
	m := &meter{pool: pool, loops: pool.set.limitLoops()}
	for _, e := range all {
		m.memory = append(m.memory, e.up.data.bytes, e.down.data.bytes)
	}
	return m
}

// sliceTime is how long a benchmark runs before it measures the machine's limits again: on a shared machine they change from second to second.
const sliceTime = 100 * time.Millisecond

// workOf returns what one pass does at least: floating-point operations for each row, and bytes of weights read however many rows there are.
func workOf(p *PackedFFN) (flopsPerRow, bytes int64) {
	matrices := int64(2)
	if p.gated {
		matrices = 3
	}
	return 2 * matrices * int64(p.hidden) * int64(p.inner), p.Bytes()
}

// benchForward measures passes through experts by turns, in slices between which the limits of the machine are measured. A slice's speed is that
// of its median pass, its limits the better of those before and after it; the median of the slices is reported.
func benchForward(b *testing.B, pool *Pool, all []*PackedFFN, rows int, n Numerics) {
	rnd := rand.New(rand.NewPCG(18, 18))
	hidden := all[0].hidden
	x, y := randomRows(rnd, rows*hidden), make([]float32, rows*hidden)
	meter := benchMeter(pool, all)
	for _, e := range all[:2] {
		e.Forward(pool, y, x, rows, n)
	}
	type span struct {
		took     time.Duration
		limits   Limits
		fraction float64
	}
	perRow, bytes := workOf(all[0])
	flops := float64(perRow) * float64(rows)
	var spans []span
	var times []time.Duration
	limits := meter.measure(10 * time.Millisecond)
	begun := time.Now()
	end := func() {
		slices.Sort(times)
		s := span{took: times[len(times)/2], limits: meter.measure(10 * time.Millisecond)}
		before := s.limits
		s.limits.ReadGBs, s.limits.FMAGFLOPS = max(s.limits.ReadGBs, limits.ReadGBs), max(s.limits.FMAGFLOPS, limits.FMAGFLOPS)
		s.limits.BF16GFLOPS = max(s.limits.BF16GFLOPS, limits.BF16GFLOPS)
		work := Work{FMA: flops, Bytes: float64(bytes)}
		if pool.Native(n) {
			work.FMA, work.BF16 = 0, flops
		}
		s.fraction = s.limits.Of(s.took, work)
		spans, times, limits, begun = append(spans, s), times[:0], before, time.Now()
	}
	i := 0
	for b.Loop() {
		start := time.Now()
		all[i%len(all)].Forward(pool, y, x, rows, n)
		times = append(times, time.Since(start))
		if i++; time.Since(begun) > sliceTime {
			b.StopTimer()
			end()
			b.StartTimer()
		}
	}
	if len(times) > 0 {
		end()
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.fraction, b.fraction) })
	s := spans[len(spans)/2]
	b.ReportMetric(flops/float64(s.took.Nanoseconds()), "GFLOP/s")
	b.ReportMetric(float64(bytes)/float64(s.took.Nanoseconds()), "GB/s")
	b.ReportMetric(s.fraction, "of-limit")
	b.ReportMetric(spans[len(spans)-1].fraction, "best-of-limit")
	b.ReportMetric(s.limits.ReadGBs, "limit-GB/s")
	b.ReportMetric(s.limits.FMAGFLOPS, "limit-FMA-GFLOP/s")
	b.ReportMetric(s.limits.BF16GFLOPS, "limit-BF16-GFLOP/s")
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

func BenchmarkPack(b *testing.B) {
	for d := range DType(dtypes) {
		m := benchModel(shape{hidden: 2048, inner: 768, dtype: d})
		b.Run(d.String(), func(b *testing.B) {
			b.SetBytes(int64(d.bytes(3 * 2048 * 768)))
			for b.Loop() {
				m.pack(b)
			}
		})
	}
}
