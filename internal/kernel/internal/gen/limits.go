package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// allLimits writes loops that do nothing but what limits a product: read memory, multiply and add.
func (t *target) allLimits() {
	if !t.wide() {
		t.begin("pause", "does nothing for a moment, and tells the CPU that it waits.", "", "")
		t.PAUSE()
		t.RET()
		t.begin("prefetch", "asks for n cache lines of 64 bytes, to be in the second cache soon. They may lie anywhere.", "p unsafe.Pointer, n int", "p *byte, n int")
		t.load("p", reg.RSI)
		t.load("n", reg.RCX)
		t.loop("prefetch", reg.RCX, func() {
			t.PREFETCHT1(mem(reg.RSI, 0))
			t.ADDQ(operand.U32(64), reg.RSI)
		})
		t.RET()
	}
	t.begin(t.name+"Read", "reads n times 512 bytes.", "p unsafe.Pointer, n int", "p *byte, n int")
	t.load("p", reg.RSI)
	t.load("n", reg.RCX)
	t.loop("read", reg.RCX, func() {
		for at := 0; at < 512; at += t.bytes() {
			t.VMOVUPS(mem(reg.RSI, at), t.v(at/t.bytes()%8))
		}
		t.ADDQ(operand.U32(512), reg.RSI)
	})
	t.end()

	sums := 24
	if !t.wide() {
		sums = 12
	}
	arithmetic := func(name, doc string, do func(sum reg.VecPhysical)) {
		t.begin(t.name+name, doc, "n int", "n int")
		t.load("n", reg.RCX)
		for i := range sums + 2 {
			if t.wide() {
				t.VPXORD(t.v(i), t.v(i), t.v(i))
			} else {
				t.VPXOR(t.v(i), t.v(i), t.v(i))
			}
		}
		t.LEAQ(t.vector(0), reg.R11)
		t.loop("add", reg.RCX, func() {
			for i := range sums {
				do(t.v(i))
			}
		})
		t.end()
	}
	arithmetic("FMA", "makes n times 24 (AVX2: 12) fused multiply-adds of vectors.", func(sum reg.VecPhysical) {
		t.VFMADD231PS(t.v(sums), t.v(sums+1), sum)
	})
	if t.wide() {
		arithmetic("BF16", "makes n times 24 VDPBF16PS.", func(sum reg.VecPhysical) {
			t.vdpbf16ps(mem(reg.R11, 0), t.v(sums), sum)
		})
	}
}
