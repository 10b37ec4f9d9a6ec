package kernel

import (
	"math"
	"unsafe"

	"github.com/kwaai/kwaaid/internal/kernel/internal/consts"
)

// The sizes of a panel and of the steps along k; see package consts.
const (
	panel = consts.Panel
	half  = consts.Half
	step  = consts.Step
	block = consts.Block

	mxBlock = 32 // MXFP4 elements that share an exponent
)

// maxRows is the most rows that any path computes at once.
const maxRows = 12

// productFunc adds up the products of some rows with a panel of packed weights, along a part of k.
//
//	c      totals, float32 [rows][panel]; read and written
//	x      activations, rows that lie stride bytes apart: float32, or bf16 where the path says so
//	w      packed weights of the panel, from the first k of the part on
//	s      F8E4M3: scales, float32 [blocks][panel]; MXFP4: exponents, byte [blocks][panel]
//	aheadX activations that will be needed next, and
//	aheadW weights: a product may ask for them ahead of time; they may lie anywhere
//	blocks how many blocks of k
//	steps  how many times 32 k make a block
//
// The pointers are unsafe since half of these functions are assembly code.
type productFunc func(c, x, w, s, aheadX, aheadW unsafe.Pointer, stride, blocks, steps int)

// rowsFunc finishes rows of totals c, float32 [rows][panel]: it adds bias, float32 [panel], applies an activation, and writes to y, whose rows lie
// stride bytes apart. Gated activations write half a panel, others a whole one. y may be c.
type rowsFunc func(y, c, bias unsafe.Pointer, stride, rows int, limit float32)

// roundFunc rounds rows of n times 16 float32 to bf16: into bf16, or into float32 of that accuracy. Strides, from row to row, are in bytes.
type roundFunc func(dst, src unsafe.Pointer, dstStride, srcStride, n, rows int)

// at returns the element i of an array at p.
func at[T any](p unsafe.Pointer, i int) *T {
	var t T
	return (*T)(unsafe.Add(p, uintptr(i)*unsafe.Sizeof(t)))
}

// weightRow decodes the weights of the panel's outputs for input k.
func weightRow(d DType, w unsafe.Pointer, k int, row *[panel]float32) {
	for o := range row {
		switch d {
		case F32:
			row[o] = *at[float32](w, k*panel+o)
		case BF16:
			row[o] = math.Float32frombits(uint32(*at[uint16](w, k/2*2*panel+2*o+k%2)) << 16)
		case F16:
			row[o] = fromF16(*at[uint16](w, k*panel+o))
		case F8E4M3:
			q := *at[byte](w, k/2*2*panel+2*o+k%2)
			row[o] = fromF16(uint16(q&0x80)<<8 | uint16(q&0x7f)<<7)
		default:
			// Eight k of an output make four bytes: the even ones in the lower two, the odd ones in the upper.
			q := *at[uint32](w, k/8*panel+o) >> (k%2*16 + k%8/2*4)
			row[o] = fromE2M1(q)
		}
	}
}

// fromF16 widens a binary16, exactly.
func fromF16(h uint16) float32 {
	sign, m := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	if m >= 0x7c00 {
		return math.Float32frombits(sign | 0x7f800000 | m<<13)
	}
	return math.Float32frombits(sign | math.Float32bits(math.Float32frombits(m<<13)*0x1p112))
}

// e2m1 are the magnitudes of MXFP4's numbers.
var e2m1 = [8]float32{0, 0.5, 1, 1.5, 2, 3, 4, 6}

// fromE2M1 returns the number in the lower four bits of q.
func fromE2M1(q uint32) float32 {
	return math.Float32frombits(math.Float32bits(e2m1[q&7]) | q&8<<28)
}

// blockScale returns what the sum of block b is multiplied by in column o.
func blockScale(d DType, s unsafe.Pointer, b, o int) float32 {
	switch d {
	case F8E4M3:
		return *at[float32](s, b*panel+o)
	case MXFP4:
		// 2^(e-127), subnormal for 0 and infinite for 255.
		return math.Float32frombits(max(uint32(*at[byte](s, b*panel+o))<<23, 1<<22))
	default:
		return 1
	}
}

// portableExact returns the product of `exact` for weights of one format.
func portableExact(d DType, rows int) productFunc {
	return func(c, x, w, s, _, _ unsafe.Pointer, stride, blocks, steps int) {
		var sums [maxRows][panel]float32
		var weights [panel]float32
		for b := range blocks {
			sums = [maxRows][panel]float32{}
			for k := b * steps * step; k < (b+1)*steps*step; k++ {
				weightRow(d, w, k, &weights)
				for r := range rows {
					v := *at[float32](unsafe.Add(x, r*stride), k)
					for o := range panel {
						sums[r][o] = fma(v, weights[o], sums[r][o])
					}
				}
			}
			for r := range rows {
				for o := range panel {
					total := at[float32](c, r*panel+o)
					*total = fma(blockScale(d, s, b, o), sums[r][o], *total)
				}
			}
		}
	}
}

// portableDot returns the product of `dot`; x is float32 of bf16's accuracy.
func portableDot(rows int) productFunc {
	return func(c, x, w, _, _, _ unsafe.Pointer, stride, blocks, steps int) {
		var even, odd [panel]float32
		for k := 0; k < blocks*steps*step; k += 2 {
			flushedRow(w, k, &even)
			flushedRow(w, k+1, &odd)
			for r := range rows {
				row := unsafe.Add(x, r*stride)
				v0, v1 := *at[float32](row, k), *at[float32](row, k+1)
				for o := range panel {
					total := at[float32](c, r*panel+o)
					*total = fmaFlushed(v0, even[o], fmaFlushed(v1, odd[o], *total))
				}
			}
		}
	}
}

// portableTile returns the product of `tile`; x is float32 of bf16's accuracy.
func portableTile(rows int) productFunc {
	return func(c, x, w, _, _, _ unsafe.Pointer, stride, blocks, steps int) {
		var sums [2][maxRows][panel]float32
		var weights [panel]float32
		for b := range blocks * steps {
			sums = [2][maxRows][panel]float32{}
			for k := b * step; k < (b+1)*step; k++ {
				flushedRow(w, k, &weights)
				for r := range rows {
					v := *at[float32](unsafe.Add(x, r*stride), k)
					for o := range panel {
						sum := &sums[k%2][r][o]
						*sum = fmaFlushed(v, weights[o], *sum)
					}
				}
			}
			for r := range rows {
				for o := range panel {
					total := at[float32](c, r*panel+o)
					*total = addFlushed(*total, addFlushed(sums[0][r][o], sums[1][r][o]))
				}
			}
		}
	}
}

// flushedRow decodes bf16 weights, subnormal ones as zero.
func flushedRow(w unsafe.Pointer, k int, row *[panel]float32) {
	weightRow(BF16, w, k, row)
	for o := range row {
		row[o] = flush(row[o])
	}
}

// portableGated returns act(gate) * up for the halves of a panel.
func portableGated(a Activation) rowsFunc {
	return func(y, c, bias unsafe.Pointer, stride, rows int, limit float32) {
		for r := range rows {
			row := unsafe.Add(y, r*stride)
			for o := range half {
				gate := *at[float32](c, r*panel+o) + *at[float32](bias, o)
				up := *at[float32](c, r*panel+half+o) + *at[float32](bias, half+o)
				*at[float32](row, o) = activate(a, true, gate, up, limit)
			}
		}
	}
}

// portablePlain returns act(total + bias).
func portablePlain(a Activation) rowsFunc {
	return func(y, c, bias unsafe.Pointer, stride, rows int, limit float32) {
		for r := range rows {
			row := unsafe.Add(y, r*stride)
			for o := range panel {
				*at[float32](row, o) = activate(a, false, 0, *at[float32](c, r*panel+o)+*at[float32](bias, o), limit)
			}
		}
	}
}

// portableFinish writes total + bias, NaN made canonical.
func portableFinish(y, c, bias unsafe.Pointer, stride, rows int, _ float32) {
	for r := range rows {
		row := unsafe.Add(y, r*stride)
		for o := range panel {
			*at[float32](row, o) = canonical(*at[float32](c, r*panel+o) + *at[float32](bias, o))
		}
	}
}

// portableRound rounds float32 to the accuracy of bf16.
func portableRound(dst, src unsafe.Pointer, dstStride, srcStride, n, rows int) {
	for r := range rows {
		for i := range n * 16 {
			*at[float32](unsafe.Add(dst, r*dstStride), i) = roundBF16(*at[float32](unsafe.Add(src, r*srcStride), i))
		}
	}
}
