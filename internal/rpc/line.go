package rpc

import (
	"bufio"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

const (
	// readBuffer is what a stream reads ahead: a header and the beginning of its payload, whose greater part is then read to where
	// it belongs. It stays allocated while a stream is idle, so it is small.
	readBuffer = 1 << 10
	// smallFrame is the greatest frame that is put together in memory and sent by one write: yamux makes a frame, a record of TLS
	// and a system call of every write, which costs more than to copy this much.
	smallFrame = 64 << 10
)

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// line is a stream with its read buffer. One exchange at a time uses it.
type line struct {
	network.Stream
	r       *bufio.Reader
	aborted atomic.Bool
	cancel  func()    // aborts the line because its caller has given up
	fresh   bool      // no exchange has ended well on it yet
	idle    time.Time // since when it rests in the pool
}

func newLine(st network.Stream) *line {
	l := &line{Stream: st, r: bufio.NewReaderSize(st, readBuffer), fresh: true}
	l.cancel = func() { l.abort(codeCancelled) }
	return l
}

// abort ends the line at once; only the first call does anything. A write that waits for a connection that does not move is not
// woken by a reset, but by a deadline. On such a connection the reset itself may take until the connection is given up, so who
// was woken must not wait for it.
func (l *line) abort(code network.StreamErrorCode) {
	if l.aborted.Swap(true) {
		return
	}
	_ = l.SetDeadline(longAgo)
	_ = l.ResetWithError(code)
}

// send writes a frame: its header, which stands in s.out, and rows as its payload. It returns the bytes sent. Small pieces are gathered,
// large ones are written as they are.
func (l *line) send(s *scratch, rows [][]float32, c codec.DType) (int64, error) {
	size := len(s.out)
	for _, x := range rows {
		size += c.Size(len(x))
	}
	if size <= smallFrame {
		for _, x := range rows {
			s.out = wire.AppendRows(s.out, x, c)
		}
		_, err := l.Write(s.out)
		return int64(size), err
	}
	for _, x := range rows {
		small := c.Size(len(x)) <= smallFrame/2
		if len(s.out) > 0 && (!small || len(s.out)+c.Size(len(x)) > smallFrame) {
			if _, err := l.Write(s.out); err != nil {
				return 0, err
			}
			s.out = s.out[:0]
		}
		if small {
			s.out = wire.AppendRows(s.out, x, c)
		} else if err := wire.WriteRows(l, x, c); err != nil {
			return 0, err
		}
	}
	if len(s.out) == 0 {
		return int64(size), nil
	}
	_, err := l.Write(s.out)
	return int64(size), err
}

// scratch is what an exchange borrows for its duration.
type scratch struct {
	in  []byte // a header that came
	out []byte // a frame that goes
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func getScratch() *scratch { return scratches.Get().(*scratch) }

// release gives the buffers back; nothing may point into them any more.
func (s *scratch) release() {
	if cap(s.in) > smallFrame {
		s.in = nil
	}
	if cap(s.out) > 2*smallFrame {
		s.out = nil
	}
	s.in, s.out = s.in[:0], s.out[:0]
	scratches.Put(s)
}

// floatPool lends float32 slices by size class, a power of two each. What it holds is free for the garbage collector to take.
type floatPool struct {
	classes [bits.UintSize]sync.Pool
}

// floats is a slice of a floatPool.
type floats struct {
	pool   *floatPool
	x      []float32
	class  int
	shares atomic.Int32   // outputs that stand in x and were not released yet
	parts  []tensorOfPart // as they were used last; kept, since a tensor takes eight allocations
}

// tensorOfPart is rows in the memory of floats, from an element on.
type tensorOfPart struct {
	from int
	rows *tensor.Dense
}

// partsMost bounds the tensors that are kept: a layer's choice of experts at one peer is rarely larger.
const partsMost = 16

// tensor returns x[from:to] as rows that share its memory, until x goes back to the pool.
func (f *floats) tensor(from, to, hidden int) *tensor.Dense {
	for i := range f.parts {
		// Whoever had it may have reshaped it; then it is of no more use.
		if p := &f.parts[i]; p.from == from {
			if x, err := expert.Rows(p.rows, hidden); err != nil || len(x) != to-from {
				p.rows = expert.NewRows(f.x[from:to:to], hidden)
			}
			return p.rows
		}
	}
	rows := expert.NewRows(f.x[from:to:to], hidden)
	if len(f.parts) < partsMost {
		f.parts = append(f.parts, tensorOfPart{from, rows})
	}
	return rows
}

// Release gives one of the outputs back, and with the last one the slice.
func (f *floats) Release() {
	if f.shares.Add(-1) == 0 {
		f.pool.put(f)
	}
}

// get returns n > 0 numbers of any value.
func (p *floatPool) get(n int) *floats {
	class := bits.Len(uint(n - 1))
	if f, ok := p.classes[class].Get().(*floats); ok {
		f.x = f.x[:n]
		return f
	}
	return &floats{pool: p, x: make([]float32, n, 1<<class), class: class}
}

// put takes them back; nothing may point into them any more.
func (p *floatPool) put(f *floats) { p.classes[f.class].Put(f) }
