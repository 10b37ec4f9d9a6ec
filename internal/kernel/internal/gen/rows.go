package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/kwaai/kwaaid/internal/kernel/internal/consts"
)

// sequence writes sequences of operations on vectors; each returns a register of its own, and avo finds out which can be used again.
type sequence struct{ *target }

func (m sequence) new() reg.VecVirtual {
	if m.wide() {
		return m.ZMM()
	}
	return m.YMM()
}

// bits returns a vector of one constant.
func (m sequence) bits(b uint32) reg.VecVirtual {
	v := m.new()
	m.VBROADCASTSS(m.constant(b), v)
	return v
}

func (m sequence) float(f float32) reg.VecVirtual {
	v := m.new()
	m.VBROADCASTSS(m.constantFloat(f), v)
	return v
}

func (m sequence) loadFrom(from operand.Mem) reg.VecVirtual {
	v := m.new()
	m.VMOVUPS(from, v)
	return v
}

func (m sequence) add(a, b operand.Op) reg.VecVirtual { v := m.new(); m.VADDPS(b, a, v); return v }
func (m sequence) sub(a, b operand.Op) reg.VecVirtual { v := m.new(); m.VSUBPS(b, a, v); return v }
func (m sequence) mul(a, b operand.Op) reg.VecVirtual { v := m.new(); m.VMULPS(b, a, v); return v }
func (m sequence) div(a, b operand.Op) reg.VecVirtual { v := m.new(); m.VDIVPS(b, a, v); return v }

// min and max return v where one of the two is NaN: the instruction returns its second operand then.
func (m sequence) min(bound, v operand.Op) reg.VecVirtual {
	r := m.new()
	m.VMINPS(v, bound, r)
	return r
}

func (m sequence) max(bound, v operand.Op) reg.VecVirtual {
	r := m.new()
	m.VMAXPS(v, bound, r)
	return r
}

// fma returns a*b + c.
func (m sequence) fma(a, b, c operand.Op) reg.VecVirtual {
	v := m.new()
	m.VMOVAPS(c, v)
	m.VFMADD231PS(b, a, v)
	return v
}

func (m sequence) and(a, b operand.Op) reg.VecVirtual {
	v := m.new()
	if m.wide() {
		m.VPANDD(b, a, v)
	} else {
		m.VPAND(b, a, v)
	}
	return v
}

func (m sequence) xor(a, b operand.Op) reg.VecVirtual {
	v := m.new()
	if m.wide() {
		m.VPXORD(b, a, v)
	} else {
		m.VPXOR(b, a, v)
	}
	return v
}

func (m sequence) negate(a operand.Op) reg.VecVirtual   { return m.xor(a, m.bits(signBits)) }
func (m sequence) absolute(a operand.Op) reg.VecVirtual { return m.and(a, m.bits(^uint32(signBits))) }

func (m sequence) addInt(a, b operand.Op) reg.VecVirtual { v := m.new(); m.VPADDD(b, a, v); return v }

func (m sequence) subInt(a, b operand.Op) reg.VecVirtual { v := m.new(); m.VPSUBD(b, a, v); return v }

func (m sequence) shiftLeft(a operand.Op, n uint8) reg.VecVirtual {
	v := m.new()
	m.VPSLLD(operand.U8(n), a, v)
	return v
}

func (m sequence) shiftRight(a operand.Op, n uint8) reg.VecVirtual {
	v := m.new()
	m.VPSRLD(operand.U8(n), a, v)
	return v
}

func (m sequence) shiftArithmetic(a operand.Op, n uint8) reg.VecVirtual {
	v := m.new()
	m.VPSRAD(operand.U8(n), a, v)
	return v
}

// orNaN returns v, or the canonical NaN where v is NaN.
func (m sequence) orNaN(v operand.Op) reg.VecVirtual {
	const unordered = 3
	nan := m.bits(consts.NaN)
	out := m.new()
	if m.wide() {
		k := m.K()
		m.VCMPPS(operand.U8(unordered), v, v, k)
		m.VPBLENDMD(nan, v, k, out)
		return out
	}
	mask := m.new()
	m.VCMPPS(operand.U8(unordered), v, v, mask)
	m.VBLENDVPS(mask, nan, v, out)
	return out
}

// flush returns v, or zero with its sign where v is subnormal.
func (m sequence) flush(v operand.Op) reg.VecVirtual {
	sign, exponent := m.and(v, m.bits(signBits)), m.and(v, m.bits(0x7f800000))
	out := m.new()
	if m.wide() {
		k := m.K()
		m.VPTESTNMD(exponent, exponent, k)
		m.VPBLENDMD(sign, v, k, out)
		return out
	}
	zero, mask := m.xor(exponent, exponent), m.new()
	m.VPCMPEQD(zero, exponent, mask)
	m.VBLENDVPS(mask, sign, v, out)
	return out
}

// roundBF16 returns v with the accuracy of bf16, in float32: flushed, to nearest even, NaN canonical.
func (m sequence) roundBF16(v operand.Op) reg.VecVirtual {
	b := m.flush(v)
	last := m.and(m.shiftRight(b, 16), m.bits(1))
	up := m.addInt(m.addInt(b, m.bits(0x7fff)), last)
	rounded := m.and(up, m.bits(upperHalves))
	// Where v is NaN the sum above is meaningless.
	const unordered = 3
	nan, out := m.bits(consts.NaN), m.new()
	if m.wide() {
		k := m.K()
		m.VCMPPS(operand.U8(unordered), v, v, k)
		m.VPBLENDMD(nan, rounded, k, out)
		return out
	}
	mask := m.new()
	m.VCMPPS(operand.U8(unordered), v, v, mask)
	m.VBLENDVPS(mask, nan, rounded, out)
	return out
}

// horner returns the polynomial of x whose coefficients are given, the highest power first.
func (m sequence) horner(poly []float32, x operand.Op) reg.VecVirtual {
	p := m.float(poly[0])
	for _, c := range poly[1:] {
		p = m.fma(p, x, m.float(c))
	}
	return p
}

func (m sequence) exp(x operand.Op) reg.VecVirtual {
	magic := m.float(consts.ExpMagic)
	c := m.min(m.float(consts.ExpMax), m.max(m.float(consts.ExpMin), x))
	t := m.fma(c, m.float(consts.Log2E), magic)
	n := m.sub(t, magic)
	r := m.fma(n, m.float(-consts.Ln2High), c)
	r = m.fma(n, m.float(-consts.Ln2Low), r)
	poly := consts.ExpPoly()
	p := m.horner(poly[:], r)
	whole := m.subInt(t, magic)
	half := m.shiftArithmetic(whole, 1)
	rest := m.subInt(whole, half)
	p = m.mul(p, m.shiftLeft(m.addInt(half, m.bits(127)), 23))
	return m.mul(p, m.shiftLeft(m.addInt(rest, m.bits(127)), 23))
}

func (m sequence) silu(v operand.Op) reg.VecVirtual {
	return m.div(v, m.add(m.float(1), m.exp(m.negate(v))))
}

func (m sequence) gelu(v operand.Op) reg.VecVirtual {
	z := m.min(m.float(consts.GELUMax), m.absolute(v))
	square := m.mul(z, z)
	lost := m.fma(z, z, m.negate(square))
	e := m.exp(m.mul(square, m.float(-0.5)))
	e = m.fma(m.mul(lost, m.float(-0.5)), e, e)
	q := m.div(m.sub(z, m.float(4)), m.add(z, m.float(4)))
	poly := consts.GELUPoly()
	p := m.horner(poly[:], q)
	tail := m.div(m.mul(e, p), m.fma(z, m.float(0.5), m.float(1)))
	return m.fma(m.negate(z), tail, m.max(m.float(0), v))
}

func (m sequence) geluTanh(v operand.Op) reg.VecVirtual {
	u := m.fma(m.mul(v, v), m.float(consts.GELUTanhCubic), m.float(1))
	w := m.mul(m.mul(v, m.float(consts.GELUTanhScale)), u)
	return m.div(v, m.add(m.float(1), m.exp(w)))
}

func (m sequence) relu(v operand.Op) reg.VecVirtual { return m.max(m.float(0), v) }

func (m sequence) swigluClamped(gate, up, limit operand.Op) reg.VecVirtual {
	g := m.min(limit, gate)
	u := m.max(m.negate(limit), m.min(limit, up))
	e := m.exp(m.mul(g, m.float(-consts.SwiGLUAlpha)))
	return m.mul(m.add(u, m.float(1)), m.div(g, m.add(m.float(1), e)))
}

const (
	rowsParams    = "y, c, bias unsafe.Pointer, stride, rows int, limit float32"
	rowsAvoParams = "y, c, bias *byte, stride, rows int, limit float32"
)

// rowsFunction writes a loop over rows; body gets the memory of a row of totals, of the bias, and of the row to write.
func (t *target) rowsFunction(name, doc string, body func(c, bias, y operand.Mem)) string {
	name = t.name + name
	t.begin(name, doc, rowsParams, rowsAvoParams)
	t.load("y", reg.RDI)
	t.load("c", reg.RSI)
	t.load("bias", reg.RDX)
	t.load("stride", reg.R8)
	t.load("rows", reg.RCX)
	t.loop("row", reg.RCX, func() {
		body(mem(reg.RSI, 0), mem(reg.RDX, 0), mem(reg.RDI, 0))
		t.ADDQ(operand.U32(4*consts.Panel), reg.RSI)
		t.ADDQ(reg.R8, reg.RDI)
	})
	t.end()
	return name
}

// allRows writes the activations, and what ends products.
func (t *target) allRows() {
	m := sequence{t}
	// In the order of package kernel's Activation.
	activations := []struct {
		name string
		f    func(v operand.Op) reg.VecVirtual
	}{{"SiLU", m.silu}, {"GELU", m.gelu}, {"GELUTanh", m.geluTanh}, {"ReLU", m.relu}, {"SwiGLUClamped", nil}}
	gated := table{name: t.name + "Gated", typ: "rowsFunc", doc: "the gated activations, in the order of Activation"}
	plain := table{name: t.name + "Plain", typ: "rowsFunc", doc: "the activations without a gate, in the order of Activation; there is no SwiGLUClamped"}
	for _, a := range activations {
		gated.functions = append(gated.functions, t.rowsFunction("Gated"+a.name, "computes "+a.name+" of gate times up.", func(c, bias, y operand.Mem) {
			for at := 0; at < 4*consts.Half; at += t.bytes() {
				gate := m.add(m.loadFrom(plus(c, at)), plus(bias, at))
				up := m.add(m.loadFrom(plus(c, 4*consts.Half+at)), plus(bias, 4*consts.Half+at))
				var h reg.VecVirtual
				if a.f == nil {
					limit := m.new()
					limitAt, err := t.Param("limit").Resolve()
					if err != nil {
						panic(fmt.Sprintf("limit: %v", err))
					}
					t.VBROADCASTSS(limitAt.Addr, limit)
					h = m.swigluClamped(gate, up, limit)
				} else {
					h = m.mul(a.f(gate), up)
				}
				t.VMOVUPS(h, plus(y, at))
			}
		}))
		if a.f == nil {
			continue
		}
		plain.functions = append(plain.functions, t.rowsFunction("Plain"+a.name, "computes "+a.name+".", func(c, bias, y operand.Mem) {
			for at := 0; at < 4*consts.Panel; at += t.bytes() {
				t.VMOVUPS(a.f(m.add(m.loadFrom(plus(c, at)), plus(bias, at))), plus(y, at))
			}
		}))
	}
	t.tables = append(t.tables, gated, plain)
	t.rowsFunction("Finish", "adds the bias and makes NaN canonical.", func(c, bias, y operand.Mem) {
		// Rows lie far apart, and a store that waits for its cache line holds up those after it: the next panel finds its lines in the second cache.
		t.PREFETCHT1(plus(y, 4*consts.Panel))
		t.PREFETCHT1(plus(y, 4*consts.Panel+64))
		for at := 0; at < 4*consts.Panel; at += t.bytes() {
			t.VMOVUPS(m.orNaN(m.add(m.loadFrom(plus(c, at)), plus(bias, at))), plus(y, at))
		}
	})
	t.rounding(m)
}

// rounding writes the conversions of activations: to float32 of bf16's accuracy, and to bf16.
func (t *target) rounding(m sequence) {
	function := func(name, doc string, size int, store func(v reg.VecVirtual, to operand.Mem)) {
		t.begin(t.name+name, doc, "dst, src unsafe.Pointer, dstStride, srcStride, n, rows int", "dst, src *byte, dstStride, srcStride, n, rows int")
		t.load("dst", reg.RDI)
		t.load("src", reg.RSI)
		t.load("dstStride", reg.R8)
		t.load("srcStride", reg.R9)
		t.load("rows", reg.RCX)
		t.loop("row", reg.RCX, func() {
			t.MOVQ(reg.RDI, reg.R10)
			t.MOVQ(reg.RSI, reg.R11)
			t.load("n", reg.RDX)
			t.loop("sixteen", reg.RDX, func() {
				for at := 0; at < 64; at += t.bytes() {
					store(m.roundBF16(m.loadFrom(mem(reg.R11, at))), mem(reg.R10, at/4*size))
				}
				t.ADDQ(operand.U32(64), reg.R11)
				t.ADDQ(operand.U32(16*size), reg.R10)
			})
			t.ADDQ(reg.R8, reg.RDI)
			t.ADDQ(reg.R9, reg.RSI)
		})
		t.end()
	}
	function("Round", "rounds to bf16, kept as float32.", 4, func(v reg.VecVirtual, to operand.Mem) { t.VMOVUPS(v, to) })
	if t.wide() {
		function("Pack", "rounds to bf16.", 2, func(v reg.VecVirtual, to operand.Mem) { t.VPMOVDW(m.shiftRight(v, 16), to) })
	}
}
