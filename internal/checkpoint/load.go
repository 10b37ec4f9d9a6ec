package checkpoint

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// Progress is told how many more bytes were read; it is called from the goroutine that loads, after each half a megabyte.
type Progress func(bytes int64)

// load reads, hashes and packs expert e (0 for a network that is not one of several). One pass over the bytes, and none over
// those of other experts.
func (n network) load(ctx context.Context, e int, engine expert.Engine, buffers *buffers, progress Progress) (*expert.FFN, error) {
	b := buffers.take()
	defer buffers.give(b)
	m := expert.Manifest{Function: n.fn}
	var w expert.Weights
	for i, p := range n.layout.parts {
		s, err := n.locate(p, e)
		if err != nil {
			return nil, err
		}
		if s == nil {
			continue
		}
		if err := n.check(s); err != nil {
			return nil, err
		}
		l, err := n.read(ctx, s, e, b.slot(i), progress)
		if err != nil {
			return nil, err
		}
		m.Slices = append(m.Slices, l.slices...)
		l.put(&w)
	}
	f, err := expert.NewFFN(m, w, engine)
	if err != nil {
		if n.prefix != "" {
			err = fmt.Errorf("%s: %w", strings.TrimSuffix(n.prefix, "."), err)
		}
		return nil, fmt.Errorf("%s: %w", n.src.dir, err)
	}
	return f, nil
}

// loaded is one part of one expert in memory. Its bytes are the buffer's and live until the next load takes it.
type loaded struct {
	part
	sizes     sizes
	dtype     dtype
	data      []byte
	scales    []float32
	exponents []byte
	block     [2]int
	slices    []expert.Slice
}

// read fetches expert e's share of a part and of what belongs to it.
func (n *network) read(ctx context.Context, s *stored, e int, buf *[2][]byte, progress Progress) (*loaded, error) {
	l := &loaded{part: s.part, sizes: n.sizes, dtype: s.dtype, block: n.block}
	count, from := n.perExpert(s.part), int64(0)
	if s.stacked() {
		from = int64(e) * count
	}
	axes := s.sliceAxes()
	var err error
	if l.data, err = l.fetch(ctx, s.tensor, s.plays, s.dtype.name, axes, &buf[0], s.dtype.bytes(from), s.dtype.bytes(count), progress); err != nil {
		return nil, err
	}
	switch s.dtype.name {
	case expert.DTypeMXFP4:
		l.exponents, err = l.fetch(ctx, s.beside, s.plays+".exponent", "u8", fmt.Sprintf("%s/%d", axes, mxfp4Block),
			&buf[1], from/mxfp4Block, count/mxfp4Block, progress)
	case expert.DTypeF8E4M3:
		out, in, _ := strings.Cut(axes, ",")
		d := plainDTypes[s.beside.DType]
		var raw []byte
		raw, err = l.fetch(ctx, s.beside, s.plays+".scale", d.name, fmt.Sprintf("%s/%d,%s/%d", out, n.block[0], in, n.block[1]),
			&buf[1], 0, s.beside.size(), progress)
		l.scales = d.widen(raw)
	}
	return l, err
}

// fetch reads a slice into a buffer that it may replace by a larger one, and enters it among the slices.
func (l *loaded) fetch(ctx context.Context, t tensorAt, plays, dtype, axes string, buf *[]byte, from, count int64, progress Progress) ([]byte, error) {
	if int64(cap(*buf)) < count {
		*buf = make([]byte, count) // not above the file's size: the tensor's shape was checked against it
	}
	data := (*buf)[:count]
	sum, err := t.read(ctx, data, from, progress)
	if err != nil {
		return nil, err
	}
	l.slices = append(l.slices, expert.Slice{Part: plays, DType: dtype, Axes: axes, Sum: sum})
	return data, nil
}

// put enters the part in the network's weights.
func (l *loaded) put(w *expert.Weights) {
	role, isBias := strings.CutSuffix(l.plays, ".bias")
	switch {
	case l.plays == "norm.weight":
		w.NormWeight = l.dtype.widen(l.data)
	case l.plays == "norm.bias":
		w.NormBias = l.dtype.widen(l.data)
	case isBias:
		l.putBias(w, role)
	case role == "gate":
		w.Gate = l.matrix(false)
	case role == "up":
		w.Up = l.matrix(false)
	case role == "down":
		w.Down = l.matrix(false)
	default: // gate+up, gate|up
		w.Gate, w.Up = l.matrix(false), l.matrix(true)
	}
}

func (l *loaded) putBias(w *expert.Weights, role string) {
	values := l.dtype.widen(l.data)
	switch role {
	case "gate":
		w.GateBias = values
	case "up":
		w.UpBias = values
	case "down":
		w.DownBias = values
	case "gate+up":
		w.GateBias, w.UpBias = values[:l.sizes.inner:l.sizes.inner], values[l.sizes.inner:]
	case "gate|up":
		for k := 0; k < len(values); k += 2 {
			w.GateBias = append(w.GateBias, values[k])
			w.UpBias = append(w.UpBias, values[k+1])
		}
	}
}

// matrix describes the part's elements to the kernel; second is for up in a tensor that holds gate and up.
func (l *loaded) matrix(second bool) kernel.Weights {
	axes := strings.Split(l.sliceAxes(), ",")
	lengths := l.sizes.lengths(axes)
	strides := [2]int{lengths[1], 1}
	inner := 0 // which of the two axes is the inner one
	if strings.HasSuffix(axes[1], "inner") {
		inner = 1
	}
	w := kernel.Weights{
		DType: l.dtype.kernel, Data: l.data, Exponents: l.exponents, Scales: l.scales,
		Out: l.sizes.inner, In: l.sizes.hidden, StrideOut: strides[inner], StrideIn: strides[1-inner],
	}
	switch l.plays {
	case "down":
		w.Out, w.In = w.In, w.Out
		w.StrideOut, w.StrideIn = w.StrideIn, w.StrideOut
	case "gate|up":
		w.StrideOut *= 2
		if second {
			w.Offset = strides[inner]
		}
	case "gate+up":
		if second {
			w.Offset = l.sizes.inner * strides[inner]
		}
	}
	if l.scales != nil {
		w.BlockOut, w.BlockIn, w.ScaleStride = l.block[0], l.block[1], ceilDiv(lengths[1], l.block[1])
	}
	return w
}

// buffers lends memory for the bytes of one expert at a time, so that loading thousands leaves no garbage behind. As many
// are kept as there were loads at once.
type buffers struct {
	mu   sync.Mutex
	free []*buffer
}

// buffer holds a pair of slices for each part of a layout: its bytes, and its scales or exponents.
type buffer struct{ slots []*[2][]byte }

func (b *buffers) take() *buffer {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) == 0 {
		return &buffer{}
	}
	last := b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	return last
}

func (b *buffers) give(one *buffer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = append(b.free, one)
}

// drop leaves all memory that is not lent to the collector.
func (b *buffers) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = nil
}

func (b *buffer) slot(i int) *[2][]byte {
	for len(b.slots) <= i {
		b.slots = append(b.slots, new([2][]byte))
	}
	return b.slots[i]
}
