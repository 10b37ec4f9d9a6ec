package kernel

import "unsafe"

// Path is one way of computing what all ways compute: a set of instructions.
type Path uint8

// The paths. The zero value lets the machine decide.
const (
	PathAuto     Path = iota // the best that this machine has
	PathPortable             // Go, on every machine
	PathAVX2                 // 256-bit vectors with FMA and F16C
	PathAVX512               // 512-bit vectors (F, BW, DQ and VL) with FMA
	PathBF16                 // as PathAVX512, and VDPBF16PS for Dot
)

// String returns the name, such as "avx512".
func (p Path) String() string {
	return [...]string{"auto", "portable", "avx2", "avx512", "avx512_bf16"}[p]
}

// kernels are the functions of one path.
type kernels struct {
	path     Path
	products [numerics][dtypes]products
	gated    [activations]rowsFunc
	plain    [activations]rowsFunc // none for SwiGLUClamped
	finish   rowsFunc
	round    roundFunc // to float32 of bf16's accuracy
	pack     roundFunc // to bf16; nil where no product takes such
}

// products are the products of one numerics and one format of weights.
type products struct {
	rows  [maxRows]productFunc // for one row, two and so on; nil from the first number of rows that is too many
	most  int                  // the largest number of rows
	pairs bool                 // takes activations as bf16, else as float32
}

// productTable makes a table of products for one row up to most.
func productTable(most int, pairs bool, f func(rows int) productFunc) products {
	p := products{most: most, pairs: pairs}
	for r := range most {
		p.rows[r] = f(r + 1)
	}
	return p
}

// portableRows is how many rows the portable path takes at once: enough to decode weights seldom.
const portableRows = 8

func portableKernels() *kernels {
	k := &kernels{path: PathPortable, finish: portableFinish, round: portableRound}
	for d := range DType(dtypes) {
		k.products[Exact][d] = productTable(portableRows, false, func(rows int) productFunc { return portableExact(d, rows) })
	}
	k.products[Dot][BF16] = productTable(portableRows, false, portableDot)
	k.products[Tile][BF16] = productTable(portableRows, false, portableTile)
	for a := range Activation(activations) {
		k.gated[a] = portableGated(a)
		if a != SwiGLUClamped {
			k.plain[a] = portablePlain(a)
		}
	}
	return k
}

// elemSize returns the bytes of an activation as the products take it.
func (p *products) elemSize() int {
	if p.pairs {
		return 2
	}
	return int(unsafe.Sizeof(float32(0)))
}
