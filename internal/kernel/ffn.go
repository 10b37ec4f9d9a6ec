package kernel

import (
	"fmt"
	"runtime"
	"unsafe"
)

// PackedFFN is an FFN whose weights were packed for the products. It never changes, and is safe for concurrent use.
type PackedFFN struct {
	up         *matrix // gate and up together where there is a gate
	down       *matrix
	gated      bool
	activation Activation
	limit      float32
	hidden     int
	inner      int
}

// Pack checks f and packs its weights, in the format in which they are; f's slices may go away afterwards. Errors match ErrWeights, or are the
// system's where memory is short.
func Pack(f FFN) (*PackedFFN, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	p := &PackedFFN{gated: f.gated(), activation: f.Activation, limit: f.Limit, hidden: f.Up.In, inner: f.Up.Out}
	sources := []source{{&f.Up, f.UpBias}}
	if p.gated {
		sources = []source{{&f.Gate, f.GateBias}, {&f.Up, f.UpBias}}
	}
	var err error
	if p.up, err = packMatrix(sources); err != nil {
		return nil, fmt.Errorf("gate and up: %w", err)
	}
	if p.down, err = packMatrix([]source{{&f.Down, f.DownBias}}); err != nil {
		return nil, fmt.Errorf("down: %w", err)
	}
	return p, nil
}

// Bytes returns the memory that the packed weights take, padding, scales and biases included.
func (p *PackedFFN) Bytes() int64 { return p.up.bytes() + p.down.bytes() }

// Numerics returns how Forward computes when asked for n, one of Exact, Dot and Tile: the latter two are for bf16 weights, others stay exact.
func (p *PackedFFN) Numerics(n Numerics) Numerics {
	if p.up.dtype == BF16 && p.down.dtype == BF16 {
		return n
	}
	return Exact
}

// Forward computes y = FFN(x), both [rows, hidden], row-major; n is one of Exact, Dot and Tile, see Numerics. A row of y depends on the same
// row of x, the weights and n alone, bit for bit. It allocates nothing once the pool has seen as large a call. x and y may not overlap.
// It panics when a slice is too short or n is Fast, which are the caller's mistakes.
func (p *PackedFFN) Forward(pool *Pool, y, x []float32, rows int, n Numerics) {
	if rows < 0 || len(x) < rows*p.hidden || len(y) < rows*p.hidden || int(n) >= numerics {
		panic(fmt.Sprintf("kernel: %d rows of %d in %v, with %d elements of x and %d of y", rows, p.hidden, n, len(x), len(y)))
	}
	if rows == 0 {
		return
	}
	c := pool.take()
	c.prepare(p, y, x, rows, p.Numerics(n))
	pool.run(c)
	pool.put(c)
	runtime.KeepAlive(p)
}

const (
	// chunkRows is the most rows that one task takes through one panel: their totals, 9 KiB, stay in the nearest cache beside a tile's activations,
	// 24 KiB of bf16. They are six tiles of the widest products.
	chunkRows = 72
	// chunkInputs is how much of k a task takes at once through its rows: 64 KiB of bf16 weights, which stay in the second cache meanwhile.
	chunkInputs = 1024
	// convertRows is how many rows one task converts to the form that the products take.
	convertRows = 4
	// aloneWork is the number of multiplications below which a call is not worth a second thread: some ten microseconds.
	aloneWork = 1 << 19
)

// call is one Forward: three phases, each of independent tasks. Its buffers are used again.
type call struct {
	schedule
	ffn      *PackedFFN
	set      *kernels
	up, down *products
	y, x     []float32
	rows     int
	chunk    int // rows of a task
	chunks   int
	round    roundFunc // how activations become what the products take; nil: as they are
	xs, hs   rowBuffer
	scratch  [][]float32 // for each participant: totals of a chunk
}

// rowBuffer holds rows of activations as the products take them, in chunks of inputs: all rows' first chunk, then all rows' second, and so on, so
// that what a product reads lies together. Within a chunk rows are a number of cache lines apart that is odd: a power of two would put a tile's
// rows on top of each other in the caches.
type rowBuffer struct {
	memory   *memory
	rows     int
	chunk    int // inputs of a chunk
	elemSize int
	stride   int // bytes
}

const cacheLine = 64

func (b *rowBuffer) prepare(rows int, m *matrix, elemSize int) {
	b.rows, b.chunk, b.elemSize = rows, min(m.chunk, m.in), elemSize
	b.stride = (b.chunk*elemSize/cacheLine | 1) * cacheLine
	chunks := (m.in + b.chunk - 1) / b.chunk
	if need := rows * chunks * b.stride; b.memory == nil || len(b.memory.bytes) < need {
		b.memory = newScratch(need)
	}
}

// at returns where a row's input k is; the rest of its chunk follows.
func (b *rowBuffer) at(row, k int) unsafe.Pointer {
	return unsafe.Pointer(&b.memory.bytes[(k/b.chunk*b.rows+row)*b.stride+k%b.chunk*b.elemSize])
}

func (c *call) prepare(p *PackedFFN, y, x []float32, rows int, n Numerics) {
	c.ffn, c.y, c.x, c.rows = p, y[:rows*p.hidden], x[:rows*p.hidden], rows
	c.up, c.down = &c.set.products[n][p.up.dtype], &c.set.products[n][p.down.dtype]
	c.round = nil
	switch {
	case c.up.pairs:
		c.round = c.set.pack
	case n != Exact:
		c.round = c.set.round
	}
	c.xs.prepare(rows, p.up, c.up.elemSize())
	c.hs.prepare(rows, p.down, c.down.elemSize())
	c.chunks = (rows + chunkRows - 1) / chunkRows
	c.chunk = (rows + c.chunks - 1) / c.chunks
	c.schedule.reset([phases]int{(rows + convertRows - 1) / convertRows, p.up.panels * c.chunks, p.down.panels * c.chunks})
	c.alone = rows*p.hidden*p.inner < aloneWork
}

// The phases of a call.
const (
	phaseConvert = iota // x into the form that products take
	phaseUp             // gate and up, activation
	phaseDown
	phases
)

// do runs one task of a phase with the scratch memory of one participant.
func (c *call) do(phase, task, participant int) {
	switch phase {
	case phaseConvert:
		for r := task * convertRows; r < min(c.rows, (task+1)*convertRows); r++ {
			c.convert(r, c.scratch[participant])
		}
	case phaseUp:
		c.upTask(task%c.ffn.up.panels, task/c.ffn.up.panels, c.scratch[participant])
	default:
		c.downTask(task%c.ffn.down.panels, task/c.ffn.down.panels, c.scratch[participant])
	}
}

// convert writes a row of x, padded with zeros, as the products take it.
func (c *call) convert(r int, scratch []float32) {
	row := c.x[r*c.ffn.hidden : (r+1)*c.ffn.hidden]
	for k := 0; k < c.ffn.up.in; k += c.xs.chunk {
		n := min(c.xs.chunk, c.ffn.up.in-k)
		src, dst := row[min(k, len(row)):min(k+n, len(row))], c.xs.at(r, k)
		if c.round == nil {
			to := unsafe.Slice((*float32)(dst), n)
			clear(to[copy(to, src):])
			continue
		}
		whole := len(src) / 16
		if whole > 0 {
			c.round(dst, unsafe.Pointer(&src[0]), 0, 0, whole, 1)
		}
		if n > whole*16 {
			rest := scratch[:step]
			clear(rest[copy(rest, src[whole*16:]):])
			c.round(unsafe.Add(dst, whole*16*c.up.elemSize()), unsafe.Pointer(&rest[0]), 0, 0, n/16-whole, 1)
		}
	}
}

// span returns the rows of a chunk.
func (c *call) span(chunk int) (first, n int) {
	first = chunk * c.chunk
	return first, min(c.chunk, c.rows-first)
}

// multiply adds up all of k for some rows and a panel, into totals [n][panel], and calls done with rows that are complete, tile after tile: what it
// stores leaves for memory while the products of the next tile, which store nothing, are under way.
func (c *call) multiply(m *matrix, k *products, rows *rowBuffer, first, n, p int, totals []float32, done func(from, to int)) {
	clear(totals[:n*panel])
	whole, rest := m.in/m.block, m.in%m.block
	size := m.chunk / m.block
	for b := 0; b < whole; b += size {
		c.multiplyBlocks(m, k, rows, first, n, p, b, min(size, whole-b), m.block/step, totals, done)
	}
	if rest > 0 {
		c.multiplyBlocks(m, k, rows, first, n, p, whole, 1, rest/step, totals, done)
	}
}

// multiplyBlocks adds up some blocks for all rows, tile after tile, the tiles as even as can be.
func (c *call) multiplyBlocks(m *matrix, k *products, rows *rowBuffer, first, n, p, b, blocks, steps int, totals []float32, done func(from, to int)) {
	tiles := (n + k.most - 1) / k.most
	w, s := m.panelAt(p, b)
	// What comes next: the next tile's activations, and the weights of the next blocks, each tile asking for a part of them.
	bytes := m.dtype.bytes(blocks * steps * step * panel)
	aheadW, last := unsafe.Add(w, bytes), b+blocks >= m.blocks()
	if last {
		aheadW, _ = m.panelAt((p+1)%m.panels, 0)
	}
	x := rows.at(first, b*m.block)
	for t := range tiles {
		from, to := n*t/tiles, n*(t+1)/tiles
		here := unsafe.Add(x, from*rows.stride)
		aheadX := unsafe.Add(x, to*rows.stride)
		k.rows[to-from-1](unsafe.Pointer(&totals[from*panel]), here, w, s, aheadX, unsafe.Add(aheadW, min(t, 1)*bytes/2), rows.stride, blocks, steps)
		if last {
			done(from, to)
		}
	}
}

// fetchAhead is how many bytes of weights a participant that waits for others has fetched at most: a part of the second cache. fetchAtOnce is how
// many between two looks whether the waiting is over.
const (
	fetchAhead  = 128 << 10
	fetchAtOnce = 1 << 10
)

// firstWeights returns the weights that a participant reads first in a phase, up to fetchAhead bytes of them; none after the last phase.
func (c *call) firstWeights(phase, participant int) []byte {
	var m *matrix
	switch phase {
	case phaseUp:
		m = c.ffn.up
	case phaseDown:
		m = c.ffn.down
	default:
		return nil
	}
	first, _ := c.laneTasks(phase, participant%len(c.lanes[phase]))
	from := first % m.panels * m.stride
	return m.data.bytes[from:min(from+fetchAhead, len(m.data.bytes))]
}

func (c *call) upTask(p, chunk int, totals []float32) {
	f := c.ffn
	first, n := c.span(chunk)
	act, width := c.set.plain[f.activation], panel
	if f.gated {
		act, width = c.set.gated[f.activation], half
	}
	bias, column := unsafe.Pointer(&f.up.bias[p*panel]), p*width
	// The last panel of an odd number of halves is followed by one half of padding.
	last := p == f.up.panels-1 && column+width < f.down.in
	c.multiply(f.up, c.up, &c.xs, first, n, p, totals, func(from, to int) {
		sums, hs, n := totals[from*panel:to*panel], c.hs.at(first+from, column), to-from
		if c.round == nil {
			act(hs, unsafe.Pointer(&sums[0]), bias, c.hs.stride, n, f.limit)
			for r := first + from; last && r < first+to; r++ {
				clear(unsafe.Slice((*float32)(c.hs.at(r, column+width)), half))
			}
			return
		}
		act(unsafe.Pointer(&sums[0]), unsafe.Pointer(&sums[0]), bias, panel*4, n, f.limit)
		written := width
		if last {
			for r := range n {
				clear(sums[r*panel+width : (r+1)*panel])
			}
			written = panel
		}
		c.round(hs, unsafe.Pointer(&sums[0]), c.hs.stride, panel*4, written/16, n)
	})
}

func (c *call) downTask(p, chunk int, totals []float32) {
	f := c.ffn
	first, n := c.span(chunk)
	bias, column := unsafe.Pointer(&f.down.bias[p*panel]), p*panel
	c.multiply(f.down, c.down, &c.hs, first, n, p, totals, func(from, to int) {
		sums := totals[from*panel : to*panel]
		y := c.y[(first+from)*f.hidden : (first+to)*f.hidden]
		if column+panel <= f.hidden {
			c.set.finish(unsafe.Pointer(&y[column]), unsafe.Pointer(&sums[0]), bias, f.hidden*4, to-from, 0)
			return
		}
		c.set.finish(unsafe.Pointer(&sums[0]), unsafe.Pointer(&sums[0]), bias, panel*4, to-from, 0)
		for r := range to - from {
			copy(y[r*f.hidden+column:(r+1)*f.hidden], sums[r*panel:])
		}
	})
}
