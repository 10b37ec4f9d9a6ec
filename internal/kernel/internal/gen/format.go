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
	temps      int    // vector registers that begin sets up or that decoding needs
	begin      func(t *target, temps []reg.VecPhysical)
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
	f := format{name: "BF16", group: 2, groupBytes: 128, halfBytes: 64}
	f.temps = 1
	f.begin = func(t *target, temps []reg.VecPhysical) {
		if t.wide() {
			t.VPBROADCASTD(t.constant(upperHalves), temps[0])
		}
	}
	f.row = func(t *target, w operand.Mem, k int, a, b reg.VecPhysical, temps []reg.VecPhysical) {
		for i, to := range []reg.VecPhysical{a, b} {
			from := plus(w, i*t.bytes())
			switch {
			case t.wide() && k == 0:
				t.VPSLLD(operand.U8(16), from, to)
			case t.wide():
				t.VPANDD(from, temps[0], to)
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
		name: "F8E4M3", group: 2, groupBytes: 64, halfBytes: 32, temps: 1, scale: scaleFloat,
		begin: func(t *target, temps []reg.VecPhysical) {
			if t.wide() {
				t.VPBROADCASTD(t.constant(bits), temps[0])
			}
		},
		row: func(t *target, w operand.Mem, k int, a, b reg.VecPhysical, temps []reg.VecPhysical) {
			for i, to := range []reg.VecPhysical{a, b} {
				from := plus(w, i*t.bytes()/2)
				if t.wide() {
					h := to.AsY()
					if k == 0 {
						t.VPSLLW(operand.U8(8), from, h)
						t.VPSRAW(operand.U8(1), h, h)
					} else {
						t.VPSRAW(operand.U8(1), from, h)
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

// formatMX looks numbers of 4 bits up in a table: as bf16, two at a time, where a table of 32 words can be had, else their magnitudes as float32.
func formatMX() format {
	f := format{name: "MXFP4", group: 8, groupBytes: 128, halfBytes: 64, temps: 4, scale: scaleExponent}
	magnitudes := []uint32{0, 0x3f000000, 0x3f800000, 0x3fc00000, 0x40000000, 0x40400000, 0x40800000, 0x40c00000}
	var pairs []uint32 // of bf16: numbers 0 and 1, 2 and 3, and so on; twice, since five bits of an index are looked at
	for i := range 16 {
		number := func(n int) uint32 {
			return magnitudes[n&7]>>16 | uint32(n&8)<<12
		}
		pairs = append(pairs, number(2*i%16)|number((2*i+1)%16)<<16)
	}
	f.begin = func(t *target, temps []reg.VecPhysical) {
		if t.wide() {
			t.VMOVDQU32(t.array(t.name+"_e2m1", pairs), temps[0])
			t.VPBROADCASTD(t.constant(upperHalves), temps[1])
			return
		}
		t.VMOVDQU(t.array(t.name+"_e2m1", magnitudes), temps[0])
	}
	f.row = func(t *target, w operand.Mem, k int, a, b reg.VecPhysical, temps []reg.VecPhysical) {
		for i, to := range []reg.VecPhysical{a, b} {
			from := plus(w, i*t.bytes())
			if t.wide() {
				pair := temps[2+i]
				if k%2 == 1 {
					t.VPANDD(temps[1], pair, to)
					continue
				}
				if k == 0 {
					t.VMOVDQU32(from, pair)
				} else {
					t.VPSRLD(operand.U8(4*k/2), from, pair)
				}
				t.VPERMW(temps[0], pair, pair)
				t.VPSLLD(operand.U8(16), pair, to)
				continue
			}
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
