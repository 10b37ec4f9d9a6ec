package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// format says how the weights of two vectors of columns are decoded.
type format struct {
	name       string // as in the name of a function
	group      int    // inputs that are decoded together
	groupBytes int    // of a panel
	halfBytes  int    // from a panel's first column to its column 16, in a group
	temps      int    // registers that begin sets up or that decoding needs, with wide vectors
	tempsAVX2  int    // and with AVX2, where constants in memory do but for tables
	begin      func(t *target, temps []reg.VecPhysical)
	// load, with wide vectors, loads the group at w into temps, from which row decodes; nil where there is nothing to share among a group's inputs.
	load func(t *target, w operand.Mem, temps []reg.VecPhysical)
	// row decodes input k of the group at w into a and b; inputs are decoded in ascending order.
	row   func(t *target, w operand.Mem, k int, a, b reg.VecPhysical, temps []reg.VecPhysical)
	scale scaleKind
}

// scaleKind says what a block's sum is multiplied by.
type scaleKind int

const (
	scaleNone     scaleKind = iota
	scaleFloat              // a float32 for each column
	scaleExponent           // a byte for each column: 2^(byte-127)
)

const (
	upperHalves = 0xffff0000
	signBits    = 0x80000000
)

func plus(m operand.Mem, disp int) operand.Mem { return m.Offset(disp) }

// loadGroup prepares the decoding of a group at w.
func (f format) loadGroup(t *target, w operand.Mem, temps []reg.VecPhysical) {
	if t.wide() && f.load != nil {
		f.load(t, w, temps)
	}
}

func formats() []format {
	return []format{formatF32(), formatBF16(), formatF16(), formatF8(), formatMX()}
}

func formatF32() format {
	return format{
		name: "F32", group: 1, groupBytes: 128, halfBytes: 64,
		row: func(t *target, w operand.Mem, _ int, a, b reg.VecPhysical, _ []reg.VecPhysical) {
			t.VMOVUPS(w, a)
			t.VMOVUPS(plus(w, t.bytes()), b)
		},
	}
}

func formatBF16() format {
	f := format{name: "BF16", group: 2, groupBytes: 128, halfBytes: 64, temps: 3}
	f.begin = func(t *target, temps []reg.VecPhysical) {
		if t.wide() {
			t.VPBROADCASTD(t.constant(upperHalves), temps[0])
		}
	}
	f.load = func(t *target, w operand.Mem, temps []reg.VecPhysical) {
		t.VMOVDQU32(w, temps[1])
		t.VMOVDQU32(plus(w, t.bytes()), temps[2])
	}
	f.row = func(t *target, w operand.Mem, k int, a, b reg.VecPhysical, temps []reg.VecPhysical) {
		for i, to := range []reg.VecPhysical{a, b} {
			from := plus(w, i*t.bytes())
			switch {
			case t.wide() && k == 0:
				t.VPSLLD(operand.U8(16), temps[1+i], to)
			case t.wide():
				t.VPANDD(temps[1+i], temps[0], to)
			case k == 0:
				t.VMOVDQU(from, to)
				t.VPSLLD(operand.U8(16), to, to)
			default:
				t.VMOVDQU(from, to)
				t.VPAND(t.vector(upperHalves), to, to)
			}
		}
	}
	return f
}

func formatF16() format {
	return format{
		name: "F16", group: 1, groupBytes: 64, halfBytes: 32,
		row: func(t *target, w operand.Mem, _ int, a, b reg.VecPhysical, _ []reg.VecPhysical) {
			t.VCVTPH2PS(w, a)
			t.VCVTPH2PS(plus(w, t.bytes()/2), b)
		},
	}
}

// formatF8 moves the bits of a float8, s eeee mmm, into a binary16, s0eeeemmm0000000: its value times 2^-8.
func formatF8() format {
	const bits = 0xbf80bf80
	return format{
		name: "F8E4M3", group: 2, groupBytes: 64, halfBytes: 32, temps: 3, scale: scaleFloat,
		begin: func(t *target, temps []reg.VecPhysical) {
			if t.wide() {
				t.VPBROADCASTD(t.constant(bits), temps[0])
			}
		},
		load: func(t *target, w operand.Mem, temps []reg.VecPhysical) {
			t.VMOVDQU32(w, temps[1].AsY())
			t.VMOVDQU32(plus(w, t.bytes()/2), temps[2].AsY())
		},
		row: func(t *target, w operand.Mem, k int, a, b reg.VecPhysical, temps []reg.VecPhysical) {
			for i, to := range []reg.VecPhysical{a, b} {
				from := plus(w, i*t.bytes()/2)
				if t.wide() {
					h := to.AsY()
					if k == 0 {
						t.VPSLLW(operand.U8(8), temps[1+i].AsY(), h)
						t.VPSRAW(operand.U8(1), h, h)
					} else {
						t.VPSRAW(operand.U8(1), temps[1+i].AsY(), h)
					}
					t.VPANDD(temps[0].AsY(), h, h)
					t.VCVTPH2PS(h, to)
					continue
				}
				h := to.AsX()
				t.VMOVDQU(from, h)
				if k == 0 {
					t.VPSLLW(operand.U8(8), h, h)
				}
				t.VPSRAW(operand.U8(1), h, h)
				t.VPAND(t.vector(bits), h, h)
				t.VCVTPH2PS(h, to)
			}
		},
	}
}

// formatMX looks numbers of 4 bits up in tables. Wide vectors have room for all of a table: an even input's number, in the lowest bits of a word of
// 32, is looked up as float32; an odd one's, in the lowest bits of the upper 16, as bf16 whose other half is made zero. Narrow ones look up
// magnitudes and add the sign.
func formatMX() format {
	f := format{name: "MXFP4", group: 8, groupBytes: 128, halfBytes: 64, temps: 4, tempsAVX2: 3, scale: scaleExponent}
	magnitudes := []uint32{0, 0x3f000000, 0x3f800000, 0x3fc00000, 0x40000000, 0x40400000, 0x40800000, 0x40c00000}
	var numbers, pairs []uint32 // pairs are of bf16: numbers 0 and 1, 2 and 3, and so on; twice, since five bits of an index are looked at
	for n := range uint32(16) {
		numbers = append(numbers, magnitudes[n&7]|n&8<<28)
	}
	for i := range 16 {
		pairs = append(pairs, numbers[2*i%16]>>16|numbers[(2*i+1)%16])
	}
	f.begin = func(t *target, temps []reg.VecPhysical) {
		if t.wide() {
			t.VMOVDQU32(t.array(t.name+"_e2m1", numbers), temps[0])
			t.VMOVDQU32(t.array(t.name+"_e2m1_pairs", pairs), temps[1])
			t.MOVL(operand.U32(0xaaaaaaaa), reg.EAX)
			t.KMOVD(reg.EAX, reg.K1)
			return
		}
		t.VMOVDQU(t.array(t.name+"_e2m1", magnitudes), temps[0])
	}
	f.load = func(t *target, w operand.Mem, temps []reg.VecPhysical) {
		t.VMOVDQU32(w, temps[2])
		t.VMOVDQU32(plus(w, t.bytes()), temps[3])
	}
	f.row = func(t *target, w operand.Mem, k int, a, b reg.VecPhysical, temps []reg.VecPhysical) {
		if t.wide() {
			for i, to := range []reg.VecPhysical{a, b} {
				group := temps[2+i] // of which earlier pairs are shifted away
				if k > 0 && k%2 == 0 {
					t.VPSRLD(operand.U8(4), group, group)
				}
				if k%2 == 0 {
					t.VPERMPS(temps[0], group, to)
				} else {
					t.VPERMW_Z(temps[1], group, reg.K1, to)
				}
			}
			return
		}
		for i, to := range []reg.VecPhysical{a, b} {
			from := plus(w, i*t.bytes())
			at := k%2*16 + k/2*4
			number, sign := temps[1], temps[2]
			t.VMOVDQU(from, number)
			t.VPSLLD(operand.U8(28-at), number, sign)
			t.VPAND(t.vector(signBits), sign, sign)
			t.VPSRLD(operand.U8(at), number, number)
			t.VPERMPS(temps[0], number, number)
			t.VPXOR(number, sign, to)
		}
	}
	return f
}
