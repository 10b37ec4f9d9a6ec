package main

import (
	"fmt"
	"math/bits"
	"strconv"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/kwaai/kwaaid/internal/kernel/internal/consts"
)

// The registers of every product; x has one for each three rows, which lie 0, 1 and 2 strides behind it.
var (
	regC, regW, regS     = reg.RDI, reg.RSI, reg.RDX
	regStride            = reg.R8
	regBlocks            = reg.RCX
	regCount, regHalf    = reg.R10, reg.RBX
	regAheadX, regAheadW = reg.RAX, reg.R9
	regX                 = []reg.GPPhysical{reg.R11, reg.R12, reg.R13, reg.R15}
)

const (
	productParams    = "c, x, w, s, aheadX, aheadW unsafe.Pointer, stride, blocks, steps int"
	productAvoParams = "c, x, w, s, aheadX, aheadW *byte, stride, blocks, steps int"
)

// product writes a product of some rows. Its accumulators are registers 0 and up: two for each row, or four.
type product struct {
	*target
	rows int
	// ahead tells that there may be further rows: the product fetches for those that come after it.
	ahead bool
	// readAhead is whether a single row's product asks for its weights ahead of time.
	readAhead bool
	// totals of a single row, which stay in registers; none for more rows.
	totals []reg.VecPhysical
}

// inputs of x at k, for row r; an element has the given size.
func (p *product) x(r, k, size int) operand.Mem {
	m := operand.Mem{Base: regX[r/3], Disp: k * size}
	if r%3 > 0 {
		m.Index, m.Scale = regStride, uint8(r%3)
	}
	return m
}

// start begins the function: it loads parameters.
func (p *product) start(name, doc string) {
	p.begin(name, doc, productParams, productAvoParams)
	p.load("c", regC)
	p.load("w", regW)
	p.load("s", regS)
	p.load("stride", regStride)
}

// startHalf sets up what a pass over k consumes.
func (p *product) startHalf() {
	p.load("x", regX[0])
	for j := 1; j*3 < p.rows; j++ {
		p.LEAQ(operand.Mem{Base: regX[j-1], Index: regStride, Scale: 2}, regX[j])
		p.ADDQ(regStride, regX[j])
	}
	p.load("blocks", regBlocks)
	if p.ahead {
		p.load("aheadX", regAheadX)
		p.load("aheadW", regAheadW)
	}
}

// forHalves runs body once, or twice where a vector holds eight columns: the second time for the panel's columns from 16 on.
func (p *product) forHalves(wBytes, sBytes int, body func()) {
	if p.halves() == 1 {
		p.startHalf()
		body()
		return
	}
	p.MOVQ(operand.U32(p.halves()), regHalf)
	p.loop("half", regHalf, func() {
		p.startHalf()
		body()
		p.load("w", regW)
		p.ADDQ(operand.U32(wBytes), regW)
		p.load("s", regS)
		p.ADDQ(operand.U32(sBytes), regS)
		p.ADDQ(operand.U32(4*consts.Half), regC)
	})
}

// singleReadAhead is how far in front of a single row's product its weights are asked for, in bytes, into the nearest cache: it uses each of them
// once, as fast as memory gives them, and the CPU by itself does not look far enough ahead. On a Zen 4 2 KiB are too few, 8 KiB too many. They are
// asked for as what is used once, unless the second half of a panel needs the same lines again: else a pass drives all that a process works with
// out of the second cache, and what comes after it waits for memory.
const singleReadAhead = 4096

// decodedReadAhead and decodedReadAhead2 are how far in front weights are asked for where decoding them takes most of the time, in bytes, into the
// nearest and into the second cache. Only the second has room for as many requests as memory answers at once.
const (
	decodedReadAhead  = 2048
	decodedReadAhead2 = 8192
)

const cacheLine = 64

// fetch asks for what comes later, to be in the second cache by then: as many bytes of activations as the loop's body reads, and half as many of
// weights, since at least two products follow each other on the same ones.
func (p *product) fetch(inputs, size, wBytes int) {
	if p.readAhead {
		ask := p.PREFETCHNTA
		if p.halves() > 1 {
			ask = p.PREFETCHT0
		}
		for i := range wBytes / cacheLine {
			ask(mem(regW, singleReadAhead+i*cacheLine))
		}
	}
	if !p.ahead {
		return
	}
	for _, of := range []struct {
		at    reg.GPPhysical
		bytes int
	}{{regAheadX, p.rows * inputs * size}, {regAheadW, wBytes / p.halves() / 2}} {
		lines := (of.bytes + cacheLine - 1) / cacheLine
		for i := range lines {
			p.PREFETCHT1(mem(of.at, i*cacheLine))
		}
		p.ADDQ(operand.U32(lines*cacheLine), of.at)
	}
}

// advance moves on by some inputs.
func (p *product) advance(inputs, size, wBytes int) {
	p.fetch(inputs, size, wBytes)
	for j := 0; j*3 < p.rows; j++ {
		p.ADDQ(operand.U32(inputs*size), regX[j])
	}
	p.ADDQ(operand.U32(wBytes), regW)
}

// zero clears a register.
func (p *product) zero(v reg.VecPhysical) {
	if p.wide() {
		p.VPXORD(v, v, v)
	} else {
		p.VPXOR(v, v, v)
	}
}

// broadcasts tells whether activations are broadcast to a register of their own before they are multiplied: where the instruction cannot do it, and
// where a single row's product has more to load than to compute.
func (p *product) broadcasts() bool { return !p.wide() }

// multiply adds the products of input k with the weights in a and b to the sums of all rows; spare is the register that activations are broadcast to,
// nil where the instruction does so itself.
func (p *product) multiply(k int, a, b, spare reg.VecPhysical, sum func(r, i int) reg.VecPhysical) {
	for r := range p.rows {
		p.multiplyBy(p.x(r, k, 4), a, b, spare, sum(r, 0), sum(r, 1))
	}
}

// multiplyBy does so for one row, whose input is at x.
func (p *product) multiplyBy(x operand.Mem, a, b, spare, sumA, sumB reg.VecPhysical) {
	if spare == nil {
		p.VFMADD231PS_BCST(x, a, sumA)
		p.VFMADD231PS_BCST(x, b, sumB)
		return
	}
	p.VBROADCASTSS(x, spare)
	p.VFMADD231PS(spare, a, sumA)
	p.VFMADD231PS(spare, b, sumB)
}

// total returns the memory of a row's totals, vector i.
func (p *product) total(r, i int) operand.Mem { return mem(regC, r*4*consts.Panel+i*p.bytes()) }

// setCount sets the counter of the loop along a block's steps, each unroll inputs.
func (p *product) setCount(unroll int) {
	p.load("steps", regCount)
	if times := consts.Step / unroll; times > 1 {
		shift := 0
		for 1<<shift < times {
			shift++
		}
		p.SHLQ(operand.U8(shift), regCount)
	}
}

// exact writes the product of `exact`.
func (t *target) exact(f format, rows, unroll int, ahead bool) string {
	p := &product{target: t, rows: rows, ahead: ahead, readAhead: rows == 1}
	name := fmt.Sprintf("%sExact%sRows%d", t.name, f.name, rows)
	p.start(name, fmt.Sprintf("is the product of exact for weights in %s, rows: %d.", f.name, rows))
	sum := func(r, i int) reg.VecPhysical { return p.v(2*r + i) }
	together := p.together(f)
	sums := max(rows, together)
	a, b, next := p.v(2*sums), p.v(2*sums+1), 2*sums+2
	var spare reg.VecPhysical
	if p.broadcasts() {
		spare, next = p.v(next), next+1
	}
	var temps []reg.VecPhysical
	count := f.tempsAVX2
	if p.wide() {
		count = f.temps + 2*(together-1)
	}
	for range count {
		temps, next = append(temps, p.v(next)), next+1
	}
	if f.begin != nil {
		f.begin(t, temps)
	}
	sBytes := 0
	switch f.scale {
	case scaleFloat:
		sBytes = 4 * consts.Half
	case scaleExponent:
		sBytes = consts.Half
	case scaleNone:
	}
	if rows == 1 {
		p.totals = []reg.VecPhysical{p.v(next), p.v(next + 1)}
	}
	p.forHalves(f.halfBytes, sBytes, func() {
		for i, v := range p.totals {
			p.VMOVUPS(p.total(0, i), v)
		}
		for n := together; n > 1; n /= 2 {
			p.blocksTogether(f, n, a, b, spare, temps, sum)
		}
		p.loop("block", regBlocks, func() {
			for r := range rows {
				p.zero(sum(r, 0))
				p.zero(sum(r, 1))
			}
			p.setCount(unroll)
			p.loop("step", regCount, func() {
				for k := range unroll {
					w := mem(regW, k/f.group*f.groupBytes)
					if k%f.group == 0 {
						f.loadGroup(t, w, temps)
					}
					f.row(t, w, k%f.group, a, b, temps)
					p.multiply(k, a, b, spare, sum)
				}
				p.advance(unroll, 4, unroll/f.group*f.groupBytes)
			})
			p.addBlock(f.scale, a, b, sum)
		})
		for i, v := range p.totals {
			p.VMOVUPS(v, p.total(0, i))
		}
	})
	p.end()
	return name
}

// together returns how many blocks are summed up at a time: a single row's chains of additions, one for each vector of columns, take longer than
// decoding the numbers of 4 bits that they add.
func (p *product) together(f format) int {
	switch {
	case p.rows > 1 || f.scale != scaleExponent:
		return 1
	case p.wide():
		return 4
	default:
		return 2
	}
}

// blocksTogether sums up count blocks of a step each at a time, a power of two, and leaves fewer in regBlocks. They take turns by inputs, so that
// the CPU has all of them in view.
func (p *product) blocksTogether(f format, count int, a, b, spare reg.VecPhysical, temps []reg.VecPhysical, sum func(r, i int) reg.VecPhysical) {
	regTimes := regX[1] // free, with one row
	p.MOVQ(regBlocks, regTimes)
	p.SHRQ(operand.U8(bits.Len(uint(count))-1), regTimes)
	p.ANDQ(operand.U32(count-1), regBlocks)
	blockBytes := consts.Step / f.group * f.groupBytes
	p.loop(fmt.Sprintf("blocks%d", count), regTimes, func() {
		for r := range count {
			p.zero(sum(r, 0))
			p.zero(sum(r, 1))
		}
		for first := 0; first < consts.Step; first += f.group {
			w := func(r int) operand.Mem { return mem(regW, r*blockBytes+first/f.group*f.groupBytes) }
			own := func(r int) []reg.VecPhysical { // of a block: its group's weights, with wide vectors
				if !p.wide() {
					return temps
				}
				return append(temps[:2:2], temps[2+2*r:4+2*r]...)
			}
			for r := range count {
				f.loadGroup(p.target, w(r), own(r))
			}
			for k := range f.group {
				// What is read ahead is asked for in order, at an even pace: a line with each input, or with every second one.
				if at := (first + k) * count * f.groupBytes / f.group; at%cacheLine == 0 {
					p.PREFETCHT0(mem(regW, decodedReadAhead+at))
					p.PREFETCHT1(mem(regW, decodedReadAhead2+at))
				}
				for r := range count {
					f.row(p.target, w(r), k, a, b, own(r))
					x := mem(regX[0], 4*(r*consts.Step+first+k))
					p.multiplyBy(x, a, b, spare, sum(r, 0), sum(r, 1))
				}
			}
		}
		p.ADDQ(operand.U32(count*4*consts.Step), regX[0])
		p.ADDQ(operand.U32(count*blockBytes), regW)
		for r := range count {
			p.addBlock(f.scale, a, b, func(_, i int) reg.VecPhysical { return sum(r, i) })
		}
	})
}

// addBlock adds a block's sums to the totals.
func (p *product) addBlock(scale scaleKind, a, b reg.VecPhysical, sum func(r, i int) reg.VecPhysical) {
	scales := []reg.VecPhysical{a, b}
	switch scale {
	case scaleFloat:
		for i, s := range scales {
			p.VMOVUPS(mem(regS, i*p.bytes()), s)
		}
		p.ADDQ(operand.U32(4*consts.Panel), regS)
	case scaleExponent:
		for i, s := range scales {
			p.VPMOVZXBD(mem(regS, i*p.lanes), s)
			p.VPSLLD(operand.U8(23), s, s)
			if p.wide() {
				p.VPMAXUD_BCST(p.constant(1<<22), s, s)
			} else {
				p.VPMAXUD(p.vector(1<<22), s, s)
			}
		}
		p.ADDQ(operand.U32(consts.Panel), regS)
	case scaleNone:
	}
	for r := range p.rows {
		for i := range 2 {
			switch {
			case p.totals != nil && scale == scaleNone:
				p.VADDPS(p.totals[i], sum(r, i), p.totals[i])
				continue
			case p.totals != nil:
				p.VFMADD231PS(sum(r, i), scales[i], p.totals[i])
				continue
			case scale == scaleNone:
				p.VADDPS(p.total(r, i), sum(r, i), sum(r, i))
			default:
				p.VFMADD213PS(p.total(r, i), scales[i], sum(r, i))
			}
			p.VMOVUPS(sum(r, i), p.total(r, i))
		}
	}
}

// weightsBF16 returns a function that decodes the inputs of a pair, with the registers that it needs.
func (p *product) weightsBF16(first int) (a, b, spare reg.VecPhysical, temps []reg.VecPhysical) {
	a, b = p.v(first), p.v(first+1)
	next := first + 2
	if p.broadcasts() {
		spare, next = p.v(next), next+1
	}
	if p.wide() {
		temps = []reg.VecPhysical{p.v(next), p.v(next + 1), p.v(next + 2)}
	}
	formatBF16().begin(p.target, temps)
	return a, b, spare, temps
}

// dot writes the product of `dot` with fused multiply-adds.
func (t *target) dot(rows, unroll int, ahead bool) string {
	p := &product{target: t, rows: rows, ahead: ahead, readAhead: rows == 1}
	name := fmt.Sprintf("%sDotRows%d", t.name, rows)
	p.start(name, "is the product of dot by fused multiply-adds, rows: "+strconv.Itoa(rows)+".")
	sum := func(r, i int) reg.VecPhysical { return p.v(2*r + i) }
	f := formatBF16()
	a, b, spare, temps := p.weightsBF16(2 * rows)
	t.flushing(func() {
		p.forHalves(f.halfBytes, 0, func() {
			p.chain(rows, unroll, 4, sum, func(pair int) {
				w := mem(regW, pair*f.groupBytes)
				f.loadGroup(t, w, temps)
				for _, k := range []int{1, 0} {
					f.row(t, w, k, a, b, temps)
					p.multiply(2*pair+k, a, b, spare, sum)
				}
			})
		})
	})
	p.end()
	return name
}

// chain writes a sum along all of k that begins with the totals: the body of a pair, unroll inputs at a time.
func (p *product) chain(rows, unroll, size int, sum func(r, i int) reg.VecPhysical, pair func(pair int)) {
	for r := range rows {
		for i := range 2 {
			p.VMOVUPS(p.total(r, i), sum(r, i))
		}
	}
	p.loop("block", regBlocks, func() {
		p.setCount(unroll)
		p.loop("step", regCount, func() {
			for i := range unroll / 2 {
				pair(i)
			}
			p.advance(unroll, size, unroll/2*128)
		})
	})
	for r := range rows {
		for i := range 2 {
			p.VMOVUPS(sum(r, i), p.total(r, i))
		}
	}
}

// dotNative writes the product of `dot` with VDPBF16PS; activations are bf16.
func (t *target) dotNative(rows, unroll int, ahead bool) string {
	p := &product{target: t, rows: rows, ahead: ahead}
	name := fmt.Sprintf("%sDotNativeRows%d", t.name, rows)
	p.start(name, "is the product of dot by VDPBF16PS, rows: "+strconv.Itoa(rows)+".")
	sum := func(r, i int) reg.VecPhysical { return p.v(2*r + i) }
	a, b := p.v(2*rows), p.v(2*rows+1)
	p.forHalves(0, 0, func() {
		p.chain(rows, unroll, 2, sum, func(pair int) {
			p.VMOVDQU32(mem(regW, pair*128), a)
			p.VMOVDQU32(mem(regW, pair*128+64), b)
			for r := range rows {
				p.vdpbf16ps(p.x(r, 2*pair, 2), a, sum(r, 0))
				p.vdpbf16ps(p.x(r, 2*pair, 2), b, sum(r, 1))
			}
		})
	})
	p.end()
	return name
}

// tile writes the product of `tile` with fused multiply-adds.
func (t *target) tile(rows, unroll int, ahead bool) string {
	p := &product{target: t, rows: rows, ahead: ahead, readAhead: rows == 1}
	name := fmt.Sprintf("%sTileRows%d", t.name, rows)
	p.start(name, "is the product of tile by fused multiply-adds, rows: "+strconv.Itoa(rows)+".")
	even := func(r, i int) reg.VecPhysical { return p.v(4*r + i) }
	odd := func(r, i int) reg.VecPhysical { return p.v(4*r + 2 + i) }
	f := formatBF16()
	a, b, spare, temps := p.weightsBF16(4 * rows)
	t.flushing(func() {
		p.forHalves(f.halfBytes, 0, func() {
			// A block of the call is a number of steps; here every step is one of tile's blocks.
			p.load("steps", regCount)
			p.IMULQ(regCount, regBlocks)
			p.loop("block", regBlocks, func() {
				for r := range rows {
					for i := range 2 {
						p.zero(even(r, i))
						p.zero(odd(r, i))
					}
				}
				p.MOVQ(operand.U32(consts.Step/unroll), regCount)
				p.loop("step", regCount, func() {
					for k := range unroll {
						sum := even
						if k%2 == 1 {
							sum = odd
						}
						w := mem(regW, k/2*f.groupBytes)
						if k%2 == 0 {
							f.loadGroup(t, w, temps)
						}
						f.row(t, w, k%2, a, b, temps)
						p.multiply(k, a, b, spare, sum)
					}
					p.advance(unroll, 4, unroll/2*f.groupBytes)
				})
				for r := range rows {
					for i := range 2 {
						p.VADDPS(odd(r, i), even(r, i), even(r, i))
						p.VADDPS(p.total(r, i), even(r, i), even(r, i))
						p.VMOVUPS(even(r, i), p.total(r, i))
					}
				}
			})
		})
	})
	p.end()
	return name
}

// allProducts writes the products of all formats for one row, two and so on, as many as there are registers for.
func (t *target) allProducts() {
	unroll := func(rows int) int {
		if rows > 6 {
			return 4
		}
		return 8
	}
	add := func(name, doc string, most int, f func(rows int, ahead bool) string) {
		tab := table{name: t.name + name, typ: "productFunc", doc: doc}
		for rows := 1; rows <= most; rows++ {
			tab.functions = append(tab.functions, f(rows, rows > most/2))
		}
		t.tables = append(t.tables, tab)
	}
	for _, f := range formats() {
		most := map[bool]int{true: 12, false: 6}[t.wide()]
		if f.scale != scaleNone { // decoding takes registers
			most = map[bool]int{true: 8, false: 4}[t.wide()]
		}
		add("Exact"+f.name, "the products of exact for weights in "+f.name+", by rows", most, func(rows int, ahead bool) string {
			inputs := max(unroll(rows), f.group)
			if rows == 1 && f.scale == scaleExponent { // a whole block, which is short
				inputs = consts.Step
			}
			return t.exact(f, rows, inputs, ahead)
		})
	}
	most := map[bool]int{true: 12, false: 6}[t.wide()]
	add("Dot", "the products of dot by fused multiply-adds, by rows", most, func(rows int, ahead bool) string { return t.dot(rows, unroll(rows), ahead) })
	add("Tile", "the products of tile by fused multiply-adds, by rows", most/2, func(rows int, ahead bool) string { return t.tile(rows, unroll(2*rows), ahead) })
	if t.wide() {
		add("DotNative", "the products of dot by VDPBF16PS, by rows", most, func(rows int, ahead bool) string { return t.dotNative(rows, 8, ahead) })
	}
}
