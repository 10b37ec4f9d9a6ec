package main

import (
	"encoding/binary"
	"fmt"

	"github.com/mmcloughlin/avo/ir"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// vdpbf16ps writes acc += pairs of a times the pair at m, which is broadcast: VDPBF16PS acc, a, m{1to16}. avo and Go's assembler do not know the
// instruction, so it is emitted as bytes. Its operands are told to avo, which allocates no registers here but checks what is live.
func (t *target) vdpbf16ps(m operand.Mem, a, acc reg.VecPhysical) {
	t.Commentf("VDPBF16PS %s{1to16}, %s, %s", m.Asm(), a.Asm(), acc.Asm())
	t.Instruction(&ir.Instruction{
		Opcode:   "QUAD",
		Operands: []operand.Op{operand.U64(binary.LittleEndian.Uint64(encodeVDPBF16PS(m, a, acc)))},
		Inputs:   []operand.Op{m, a, acc},
		Outputs:  []operand.Op{acc},
		ISA:      []string{"AVX512BF16"},
	})
}

// encodeVDPBF16PS returns EVEX.512.F3.0F38.W0 52 /r with a broadcast of 32 bits from memory (Intel SDM volume 2, section 2.7).
func encodeVDPBF16PS(m operand.Mem, a, acc reg.VecPhysical) []byte {
	const (
		mapF38    = 2
		prefixF3  = 2
		length512 = 2
		broadcast = 1
		opcode    = 0x52
	)
	id := func(r reg.Register) byte { return byte(r.(reg.Physical).PhysicalIndex()) }
	inverted := func(bit byte, at int) byte { return (^bit & 1) << at }
	dst, src, base := id(acc), id(a), id(m.Base)
	index := byte(4) // none
	if m.Index != nil {
		index = id(m.Index)
	}
	p0 := inverted(dst>>3, 7) | inverted(index>>3, 6) | inverted(base>>3, 5) | inverted(dst>>4, 4) | mapF38
	p1 := ^src&15<<3 | 1<<2 | prefixF3
	p2 := byte(length512<<5|broadcast<<4) | inverted(src>>4, 3)
	scale := map[uint8]byte{0: 0, 1: 0, 2: 1, 4: 2, 8: 3}[m.Scale]
	if m.Disp%4 != 0 || m.Disp/4 > 127 || m.Disp/4 < -128 {
		panic(fmt.Sprintf("displacement %d: does not fit a byte times four", m.Disp))
	}
	modrm := byte(1<<6) | dst&7<<3 | 4 // a SIB byte and a displacement of 8 bits, times the 4 bytes that are broadcast
	sib := scale<<6 | index&7<<3 | base&7
	return []byte{0x62, p0, p1, p2, opcode, modrm, sib, byte(m.Disp / 4)}
}
