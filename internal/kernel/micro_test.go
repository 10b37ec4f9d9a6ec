package kernel

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// BenchmarkProduct runs products alone, in one thread, on operands in the caches: GFLOP/s to compare with half of the limit.
func BenchmarkProduct(b *testing.B) {
	rnd := rand.New(rand.NewPCG(19, 19))
	for _, inputs := range []int{256, 2048} {
		w := make([]uint32, inputs*panel)
		for i := range w {
			w[i] = rnd.Uint32()&0x83ff83ff | 0x3c003c00
		}
		x := make([]float32, maxRows*(inputs+16))
		for i := range x {
			x[i] = 1e-3
		}
		var c [maxRows * panel]float32
		s := make([]float32, inputs/32*panel)
		for _, path := range vectorPaths() {
			k := kernelsFor(path)
			for n := range Numerics(numerics) {
				for d := range DType(dtypes) {
					p := &k.products[n][d]
					if p.most == 0 || (path == PathBF16 && n != Dot) {
						continue
					}
					for _, rows := range []int{1, 2, 4, 8, p.most} {
						if rows > p.most {
							continue
						}
						b.Run(fmt.Sprintf("%v/%v/%v/k=%d/rows=%d", path, n, d, inputs, rows), func(b *testing.B) {
							blocks, steps := inputs/128, 4
							if d == MXFP4 {
								blocks, steps = inputs/32, 1
							}
							for b.Loop() {
								p.rows[rows-1](unsafe.Pointer(&c), unsafe.Pointer(&x[0]), unsafe.Pointer(&w[0]), unsafe.Pointer(&s[0]), unsafe.Pointer(&x[0]), unsafe.Pointer(&w[0]), (inputs+16)*p.elemSize(), blocks, steps)
							}
							b.ReportMetric(2*float64(rows*inputs*panel)*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "GFLOP/s")
							b.ReportMetric(float64(d.bytes(inputs*panel))*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "GB/s")
						})
					}
				}
			}
		}
	}
}
