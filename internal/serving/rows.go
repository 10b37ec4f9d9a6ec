package serving

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// span tells whether the indices are consecutive, and where they start.
func span(rows []int32) (first int, ok bool) {
	for i, r := range rows {
		if r != rows[0]+int32(i) {
			return 0, false
		}
	}
	return int(rows[0]), true
}

// gather copies the chosen rows of x, or all where rows is nil, to dst.
func gather(dst, x []float32, rows []int32, hidden int) {
	if rows == nil {
		copy(dst, x)
		return
	}
	for i, r := range rows {
		copy(dst[i*hidden:(i+1)*hidden], x[int(r)*hidden:])
	}
}

// firstNonFinite returns the index, into rows, of the first chosen row that holds NaN or Inf; -1 when none does.
func firstNonFinite(x []float32, rows []int32, count, hidden int) int {
	for i := range count {
		r := i
		if rows != nil {
			r = int(rows[i])
		}
		if !expert.Finite(x[r*hidden : (r+1)*hidden]) {
			return i
		}
	}
	return -1
}

// sameMemory tells whether two slices share elements: an expert may return its very input.
func sameMemory(a, b []float32) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	firstA, lastA := uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&a[len(a)-1]))
	firstB, lastB := uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&b[len(b)-1]))
	return firstA <= lastB && firstB <= lastA
}

// bufferPool keeps the buffers in which rows are gathered, by size class: class c holds 1<<c elements.
type bufferPool struct {
	classes [48]sync.Pool
}

// get returns n elements that hold anything.
func (p *bufferPool) get(n int) []float32 {
	class := bits.Len(uint(n - 1))
	if b, ok := p.classes[class].Get().(*float32); ok {
		return unsafe.Slice(b, 1<<class)[:n]
	}
	return make([]float32, n, 1<<class)
}

// memory is where the outputs of a pass stand. It goes back when all that have a share of it have released theirs.
type memory struct {
	pool   *memoryPool
	values []float32
	shares atomic.Int32  // the pass's own, and one for each result that was handed out
	rows   *tensor.Dense // of values as they were used last; kept, since a tensor takes eight allocations
}

// Release gives one share back.
func (m *memory) Release() {
	if m.shares.Add(-1) == 0 {
		m.pool.classes[bits.Len(uint(len(m.values)-1))].Put(m)
	}
}

// tensor returns all values as rows.
func (m *memory) tensor(hidden int) *tensor.Dense {
	// Whoever had it may have reshaped it; then it is of no more use.
	if values, err := expert.Rows(m.rows, hidden); err != nil || len(values) != len(m.values) {
		m.rows = expert.NewRows(m.values, hidden)
	}
	return m.rows
}

// memoryPool keeps the memory of outputs, by size class: class c holds 1<<c elements.
type memoryPool struct {
	classes [48]sync.Pool
}

// get returns memory of n elements that hold anything, with one share.
func (p *memoryPool) get(n int) *memory {
	class := bits.Len(uint(n - 1))
	m, ok := p.classes[class].Get().(*memory)
	if !ok {
		m = &memory{pool: p, values: make([]float32, n, 1<<class)}
	}
	m.values = m.values[:n]
	m.shares.Store(1)
	return m
}

// put takes back what get returned, once nobody reads it.
func (p *bufferPool) put(b []float32) {
	p.classes[bits.Len(uint(len(b)-1))].Put(unsafe.SliceData(b))
}
