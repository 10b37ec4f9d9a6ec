package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"github.com/kwaai/kwaaid/internal/kernel/internal/consts"
)

// matrix is a packed matrix, or gate and up in one: panels of 32 outputs, in each of which the weights for one input after the other follow,
// inputs padded with zeros to a multiple of 32. What the weights of 32 outputs for one input, two or eight look like is told in doc.go.
type matrix struct {
	dtype  DType
	panels int
	in     int // inputs, padded
	block  int // inputs to a block
	chunk  int // inputs that a task takes at once: some whole blocks
	data   *memory
	stride int       // bytes of a panel
	scales []float32 // F8E4M3: [panels][blocks][panel]
	exps   []byte    // MXFP4: [panels][blocks][panel]
	bias   []float32 // [panels][panel]
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// blocks returns how many blocks the inputs make; the last may be shorter.
func (m *matrix) blocks() int { return (m.in + m.block - 1) / m.block }

// bytes returns the memory that the matrix takes.
func (m *matrix) bytes() int64 {
	return int64(len(m.data.bytes)) + int64(len(m.scales))*4 + int64(len(m.exps)) + int64(len(m.bias))*4
}

// source is a column of panels: which matrix its outputs come from.
type source struct {
	w    *Weights
	bias []float32
}

// packMatrix packs sources side by side: one in panels of 32 outputs, or two of the same shape in panels of which each fills a half.
func packMatrix(sources []source) (*matrix, error) {
	w := sources[0].w
	width := panel / len(sources)
	m := &matrix{dtype: w.DType, panels: (w.Out + width - 1) / width, in: roundUp(w.In, step), block: block}
	widen := false
	switch w.DType {
	case F8E4M3:
		m.block = min(w.BlockIn, m.in)
		if m.block%step != 0 { // no release has such blocks
			m.dtype, m.block, widen = F32, block, true
		}
	case MXFP4:
		m.block = mxBlock
	default: // blocks of their own choice
	}
	m.chunk = max(chunkInputs/m.block, 1) * m.block
	m.stride = m.dtype.bytes(m.in * panel)
	var err error
	if m.data, err = newMemory(m.panels * m.stride); err != nil {
		return nil, fmt.Errorf("pack %d x %d weights: %w", w.Out*len(sources), w.In, err)
	}
	m.bias = make([]float32, m.panels*panel)
	switch m.dtype {
	case F8E4M3:
		m.scales = make([]float32, m.panels*m.blocks()*panel)
	case MXFP4:
		m.exps = make([]byte, m.panels*m.blocks()*panel)
	default: // no scales
	}
	for p := range m.panels {
		if err := m.packPanel(p, sources, width, widen); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// packInputs is how many inputs of all a panel's outputs are packed together: enough to read rows in long pieces, while what is written stays in the
// second cache.
const packInputs = 1024

// packPanel packs the weights, scales and biases of one panel.
func (m *matrix) packPanel(p int, sources []source, width int, widen bool) error {
	to := m.data.bytes[p*m.stride : (p+1)*m.stride]
	for first := 0; first < sources[0].w.In; first += packInputs {
		for i, s := range sources {
			end := min(first+packInputs, s.w.In)
			for o := p * width; o < min((p+1)*width, s.w.Out); o++ {
				column := o%width + i*width
				switch {
				case widen:
					packWidened(to, s.w, o, column, first, end)
				case !packRow(to, s.w, o, column, first, end):
					return fmt.Errorf("%w: NaN among the f8_e4m3 weights of output %d", ErrWeights, o)
				}
			}
		}
	}
	for i, s := range sources {
		for o := p * width; o < min((p+1)*width, s.w.Out); o++ {
			column := o%width + i*width
			m.packScales(s.w, o, p, column)
			if s.bias != nil {
				m.bias[p*panel+column] = s.bias[o]
			}
		}
	}
	return nil
}

func (m *matrix) packScales(w *Weights, o, p, column int) {
	for b := range m.blocks() {
		at := (p*m.blocks()+b)*panel + column
		switch {
		case m.scales != nil:
			m.scales[at] = float32(w.Scales[o/w.BlockOut*w.ScaleStride+b] * consts.F8Scale)
		case m.exps != nil:
			m.exps[at] = w.Exponents[(w.Offset+o*w.StrideOut)/mxBlock+b]
		}
	}
}

// packRow puts inputs first to end of output o into a column of its panel; first is a multiple of 8. It returns false on a NaN where the panel
// cannot hold one.
func packRow(to []byte, w *Weights, o, column, first, end int) bool {
	from := w.Offset + o*w.StrideOut
	if w.DType == F8E4M3 && hasNaN(w, from, first, end) {
		return false
	}
	if w.StrideIn == 1 {
		src := w.Data[w.DType.bytes(from+first):]
		n := end - first
		switch w.DType {
		case F32:
			moveWords(to[4*(first*panel+column):], src, n)
			return true
		case BF16: // two inputs that lie together stay together
			moveWords(to[4*(first/2*panel+column):], src, n/2)
			first += n &^ 1
		case F16:
			moveHalves(to[2*(first*panel+column):], src, n)
			return true
		case F8E4M3:
			moveHalves(to[2*(first/2*panel+column):], src, n/2)
			first += n &^ 1
		default:
			// Eight inputs at a time, low half first: the even ones become the lower two bytes, the odd ones the upper two.
			for i := 0; i < n; i += 8 {
				q := binary.LittleEndian.Uint32(src[i/2:])
				even, odd := q&0x0f0f0f0f, q>>4&0x0f0f0f0f
				binary.LittleEndian.PutUint32(to[4*((first+i)/8*panel+column):], squeeze(even)|squeeze(odd)<<16)
			}
			return true
		}
	}
	size := w.DType.bytes(1)
	for i := first; i < end; i++ {
		at := i*panel + column
		if w.DType == BF16 || w.DType == F8E4M3 {
			at = i/2*2*panel + 2*column + i%2
		}
		copy(to[at*size:][:size], w.Data[(from+i*w.StrideIn)*size:])
	}
	return true
}

// hasNaN tells whether one of some float8 weights is NaN: inputs first to end of the output whose elements begin at from.
func hasNaN(w *Weights, from, first, end int) bool {
	for i := first; i < end; i++ {
		if w.Data[from+i*w.StrideIn]&0x7f == 0x7f {
			return true
		}
	}
	return false
}

// squeeze moves the lower halves of four bytes together.
func squeeze(q uint32) uint32 {
	q = (q | q>>4) & 0x00ff00ff
	return (q | q>>8) & 0xffff
}

// moveWords copies n words of 4 bytes to places that lie a row of a panel apart.
func moveWords(to, src []byte, n int) {
	for i := range n {
		binary.LittleEndian.PutUint32(to[4*panel*i:], binary.LittleEndian.Uint32(src[4*i:]))
	}
}

// moveHalves copies n words of 2 bytes to places that lie a row of a panel apart.
func moveHalves(to, src []byte, n int) {
	for i := range n {
		binary.LittleEndian.PutUint16(to[2*panel*i:], binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// packWidened puts inputs first to end of float8 weights with their scales into a column of a float32 panel, each product rounded once.
func packWidened(to []byte, w *Weights, o, column, first, end int) {
	for i := first; i < end; i++ {
		q := w.Data[w.Offset+o*w.StrideOut+i*w.StrideIn]
		v := float32(fromF16(uint16(q&0x80)<<8|uint16(q&0x7f)<<7) * consts.F8Scale)
		if q&0x7f == 0x7f {
			v = math.Float32frombits(canonicalNaN)
		}
		v = float32(v * w.Scales[o/w.BlockOut*w.ScaleStride+i/w.BlockIn])
		binary.LittleEndian.PutUint32(to[4*(i*panel+column):], math.Float32bits(v))
	}
}

// panelAt returns where the weights and scales of a panel begin, from block b on.
func (m *matrix) panelAt(p, b int) (w, s unsafe.Pointer) {
	w = unsafe.Pointer(&m.data.bytes[p*m.stride+m.dtype.bytes(b*m.block*panel)])
	at := (p*m.blocks() + b) * panel
	switch {
	case m.scales != nil:
		s = unsafe.Pointer(&m.scales[at])
	case m.exps != nil:
		s = unsafe.Pointer(&m.exps[at])
	}
	return w, s
}
