package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/kwaai/kwaaid/internal/kernel/internal/consts"
)

// target is a set of vector instructions for which functions are written: AVX2 with FMA and F16C, or AVX-512.
type target struct {
	*build.Context
	name   string
	lanes  int // float32 of a vector: 8 or 16
	stubs  []stub
	tables []table
	data   map[string]operand.Mem
}

// stub is the declaration of a function in Go.
type stub struct{ name, params, doc string }

// table is a Go function that returns some of the functions in order.
type table struct {
	name, typ, doc string
	functions      []string
}

func newTarget(name string, lanes int) *target {
	t := &target{Context: build.NewContext(), name: name, lanes: lanes, data: map[string]operand.Mem{}}
	t.ConstraintExpr("amd64")
	return t
}

// all writes every function.
func (t *target) all() {
	t.allProducts()
	t.allRows()
	t.allLimits()
}

func (t *target) wide() bool { return t.lanes == 16 }

// bytes returns the size of a vector.
func (t *target) bytes() int { return 4 * t.lanes }

// v returns vector register i.
func (t *target) v(i int) reg.VecPhysical {
	zs := [...]reg.VecPhysical{
		reg.Z0, reg.Z1, reg.Z2, reg.Z3, reg.Z4, reg.Z5, reg.Z6, reg.Z7, reg.Z8, reg.Z9, reg.Z10, reg.Z11, reg.Z12, reg.Z13, reg.Z14, reg.Z15,
		reg.Z16, reg.Z17, reg.Z18, reg.Z19, reg.Z20, reg.Z21, reg.Z22, reg.Z23, reg.Z24, reg.Z25, reg.Z26, reg.Z27, reg.Z28, reg.Z29, reg.Z30, reg.Z31,
	}
	if t.wide() {
		return zs[i]
	}
	if i > 15 {
		panic("AVX2 has 16 registers")
	}
	return zs[i].AsY().(reg.VecPhysical)
}

// begin starts a function with the parameters of a product, of rows or of a limit, as Go declares them; pointers are *byte to avo.
func (t *target) begin(name, doc, params, avoParams string) {
	t.Function(name)
	t.Attributes(attr.NOSPLIT)
	t.SignatureExpr("func(" + avoParams + ")")
	t.stubs = append(t.stubs, stub{name: name, params: params, doc: name + " " + doc})
}

// load loads a parameter into a register.
func (t *target) load(name string, r reg.Register) { t.Load(t.Param(name), r) }

// mem returns the memory at a register plus a displacement.
func mem(base reg.Register, disp int) operand.Mem { return operand.Mem{Base: base, Disp: disp} }

// constant returns the memory of a 32-bit constant.
func (t *target) constant(bits uint32) operand.Mem {
	return t.array(fmt.Sprintf("%s_%08x", t.name, bits), []uint32{bits})
}

// constantFloat returns the memory of a float32 constant.
func (t *target) constantFloat(v float32) operand.Mem { return t.constant(math.Float32bits(v)) }

// vector returns the memory of a whole vector of one 32-bit constant.
func (t *target) vector(bits uint32) operand.Mem {
	all := make([]uint32, t.lanes)
	for i := range all {
		all[i] = bits
	}
	return t.array(fmt.Sprintf("%s_all_%08x", t.name, bits), all)
}

// array returns the memory of 32-bit constants.
func (t *target) array(name string, values []uint32) operand.Mem {
	if m, ok := t.data[name]; ok {
		return m
	}
	m := t.StaticGlobal(name)
	t.DataAttributes(attr.RODATA | attr.NOPTR)
	for _, v := range values {
		t.AppendDatum(operand.U32(v))
	}
	t.data[name] = m
	return m
}

// loop writes a loop whose body runs as often as count says, which becomes 0; it may be 0 at the start.
func (t *target) loop(label string, count reg.Register, body func()) {
	t.TESTQ(count, count)
	t.JZ(operand.LabelRef(label + "_end"))
	t.Label(label)
	body()
	t.DECQ(count)
	t.JNZ(operand.LabelRef(label))
	t.Label(label + "_end")
}

// flushing runs body with subnormal operands and results taken as zero, as the bf16 instructions do, and puts MXCSR back.
func (t *target) flushing(body func()) {
	old, changed := t.AllocLocal(8), t.AllocLocal(8)
	t.STMXCSR(old)
	t.MOVL(old, reg.EAX)
	t.ORL(operand.U32(1<<15|1<<6), reg.EAX) // FTZ, DAZ
	t.MOVL(reg.EAX, changed)
	t.LDMXCSR(changed)
	body()
	t.LDMXCSR(old)
}

// end leaves the function.
func (t *target) end() {
	t.VZEROUPPER()
	t.RET()
}

// halves is how many times a function goes over a panel: once with 32 columns in two wide vectors, or twice with 16 in two narrow ones.
func (t *target) halves() int { return consts.Panel / (2 * t.lanes) }
