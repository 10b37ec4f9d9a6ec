package kernel

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// model is a random FFN and what its weights stand for.
type model struct {
	ffn            FFN
	gate, up, down [][]float64 // [out][in]
	hidden, inner  int
	gated          bool
}

// shape says what model newModel draws.
type shape struct {
	hidden, inner     int
	dtype             DType
	gated, bias       bool
	activation        Activation
	transposed        bool // stored with inputs outermost
	blockOut, blockIn int
}

func (s shape) limit() float32 {
	if s.activation == SwiGLUClamped {
		return 1.5
	}
	return 0
}

// weights draws a matrix whose elements are around the given size, stored with gaps and an offset.
func weights(rnd *rand.Rand, s shape, out, in int, size float64) (Weights, [][]float64) {
	w := Weights{DType: s.dtype, Out: out, In: in}
	switch {
	case s.dtype == MXFP4:
		w.Offset, w.StrideOut, w.StrideIn = 32, in+64, 1
	case s.transposed:
		w.Offset, w.StrideOut, w.StrideIn = 5, 2, 2*out+3
	default:
		w.Offset, w.StrideOut, w.StrideIn = 3, in+2, 1
	}
	elements := w.Offset + (out-1)*w.StrideOut + (in-1)*w.StrideIn + 1
	w.Data = make([]byte, w.DType.bytes(elements))
	values := make([][]float64, out)
	for o := range values {
		values[o] = make([]float64, in)
	}
	each := func(f func(index int, o, i int)) {
		for o := range out {
			for i := range in {
				f(w.Offset+o*w.StrideOut+i*w.StrideIn, o, i)
			}
		}
	}
	switch s.dtype {
	case F32:
		each(func(at, o, i int) {
			v := float32(rnd.NormFloat64() * size)
			binary.LittleEndian.PutUint32(w.Data[4*at:], math.Float32bits(v))
			values[o][i] = float64(v)
		})
	case BF16:
		each(func(at, o, i int) {
			v := roundBF16(float32(rnd.NormFloat64() * size))
			binary.LittleEndian.PutUint16(w.Data[2*at:], uint16(math.Float32bits(v)>>16))
			values[o][i] = float64(v)
		})
	case F16:
		each(func(at, o, i int) {
			h := uint16(rnd.IntN(1<<16)) &^ 0x4000 // below 2 in size
			binary.LittleEndian.PutUint16(w.Data[2*at:], h)
			values[o][i] = float64(fromF16(h))
		})
	case F8E4M3:
		w.BlockOut, w.BlockIn = s.blockOut, s.blockIn
		w.ScaleStride = (in-1)/w.BlockIn + 2
		w.Scales = make([]float32, ((out-1)/w.BlockOut+1)*w.ScaleStride)
		for i := range w.Scales {
			w.Scales[i] = float32(rnd.Float64() * size / 100)
		}
		each(func(at, o, i int) {
			q := byte(rnd.IntN(256))
			if q&0x7f == 0x7f {
				q--
			}
			w.Data[at] = q
			e, m := int(q>>3&15), float64(q&7)/8
			v := math.Ldexp(m, -6)
			if e > 0 {
				v = math.Ldexp(1+m, e-7)
			}
			if q&0x80 != 0 {
				v = -v
			}
			values[o][i] = v * float64(w.Scales[o/w.BlockOut*w.ScaleStride+i/w.BlockIn])
		})
	default:
		w.Exponents = make([]byte, (elements+31)/32)
		for i := range w.Exponents {
			w.Exponents[i] = byte(127 + math.Ilogb(size) + rnd.IntN(3) - 2)
		}
		each(func(at, o, i int) {
			q := byte(rnd.IntN(16))
			w.Data[at/2] |= q << (at % 2 * 4)
			v := []float64{0, .5, 1, 1.5, 2, 3, 4, 6}[q&7]
			if q&8 != 0 {
				v = -v
			}
			values[o][i] = math.Ldexp(v, int(w.Exponents[at/32])-127)
		})
	}
	return w, values
}

func newModel(rnd *rand.Rand, s shape) *model {
	if s.dtype == F8E4M3 && s.blockIn == 0 {
		s.blockOut, s.blockIn = 128, 128
	}
	m := &model{hidden: s.hidden, inner: s.inner, gated: s.gated}
	m.ffn.Activation, m.ffn.Limit = s.activation, s.limit()
	bias := func(n int) []float32 {
		if !s.bias {
			return nil
		}
		b := make([]float32, n)
		for i := range b {
			b[i] = float32(rnd.NormFloat64())
		}
		return b
	}
	in, mid := 1/math.Sqrt(float64(s.hidden)), 1/math.Sqrt(float64(s.inner))
	if s.gated {
		m.ffn.Gate, m.gate = weights(rnd, s, s.inner, s.hidden, in)
		m.ffn.GateBias = bias(s.inner)
	}
	m.ffn.Up, m.up = weights(rnd, s, s.inner, s.hidden, in)
	m.ffn.UpBias = bias(s.inner)
	m.ffn.Down, m.down = weights(rnd, s, s.hidden, s.inner, mid)
	m.ffn.DownBias = bias(s.hidden)
	return m
}

func (m *model) pack(t testing.TB) *PackedFFN {
	t.Helper()
	p, err := Pack(m.ffn)
	require.NoError(t, err)
	return p
}

// forward is the whole in float64, and the sum of the sizes of what each output is a sum of: what rounding errors are measured by.
func (m *model) forward(x []float32) (y, size []float64) {
	product := func(w [][]float64, x []float64, bias []float32) (y, size []float64) {
		y, size = make([]float64, len(w)), make([]float64, len(w))
		for o := range w {
			for i, v := range w[o] {
				y[o] += v * x[i]
				size[o] += math.Abs(v * x[i])
			}
			if bias != nil {
				y[o] += float64(bias[o])
				size[o] += math.Abs(float64(bias[o]))
			}
		}
		return y, size
	}
	act := func(v float64) float64 {
		switch m.ffn.Activation {
		case SiLU:
			return v / (1 + math.Exp(-v))
		case GELU:
			return v * math.Erfc(-v/math.Sqrt2) / 2
		case GELUTanh:
			return 0.5 * v * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+0.044715*v*v*v)))
		default:
			return math.Max(v, 0)
		}
	}
	row := make([]float64, len(x))
	for i, v := range x {
		row[i] = float64(v)
	}
	h, _ := product(m.up, row, m.ffn.UpBias)
	if m.gated {
		g, _ := product(m.gate, row, m.ffn.GateBias)
		for i, up := range h {
			if m.ffn.Activation == SwiGLUClamped {
				limit := float64(m.ffn.Limit)
				gate := math.Min(g[i], limit)
				up = math.Max(-limit, math.Min(limit, up))
				h[i] = (up + 1) * gate / (1 + math.Exp(-1.702*gate))
			} else {
				h[i] = act(g[i]) * up
			}
		}
	} else {
		for i := range h {
			h[i] = act(h[i])
		}
	}
	return product(m.down, h, m.ffn.DownBias)
}

func randomRows(rnd *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rnd.NormFloat64())
	}
	return x
}

func bitsOf(x []float32) []uint32 {
	b := make([]uint32, len(x))
	for i, v := range x {
		b[i] = math.Float32bits(v)
	}
	return b
}

func newTestPool(t testing.TB, threads int) *Pool {
	t.Helper()
	return newTestPoolOf(t, threads, PathAuto)
}

// newTestPoolOf makes a pool that computes in one given way.
func newTestPoolOf(t testing.TB, threads int, path Path) *Pool {
	t.Helper()
	p := newPool(threads, path)
	t.Cleanup(p.Close)
	return p
}
