package kernel

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// vectors are what an Intel CPU's instructions made of random numbers; see testdata/README.md.
type vectors struct {
	cases   int
	a, b    []uint16 // bf16
	c, want []float32
}

func readVectors(t testing.TB, name string) vectors {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name + ".safetensors")
	require.NoError(t, err)
	size := binary.LittleEndian.Uint64(raw)
	var header map[string]struct {
		Shape       []int
		DataOffsets [2]int `json:"data_offsets"`
	}
	require.NoError(t, json.Unmarshal(raw[8:8+size], &header))
	data := func(key string) []byte { return raw[8+size:][header[key].DataOffsets[0]:header[key].DataOffsets[1]] }
	var v vectors
	v.cases = header["a"].Shape[0]
	for _, to := range []struct {
		key string
		to  *[]uint16
	}{{"a", &v.a}, {"b", &v.b}} {
		for d := data(to.key); len(d) > 0; d = d[2:] {
			*to.to = append(*to.to, binary.LittleEndian.Uint16(d))
		}
	}
	for _, to := range []struct {
		key string
		to  *[]float32
	}{{"c", &v.c}, {"d", &v.want}} {
		for d := data(to.key); len(d) > 0; d = d[4:] {
			*to.to = append(*to.to, math.Float32frombits(binary.LittleEndian.Uint32(d)))
		}
	}
	return v
}

// flushed returns c as the instructions take it.
func flushed(c []float32) []float32 {
	out := make([]float32, len(c))
	for i, v := range c {
		out[i] = flush(v)
	}
	return out
}

// activationsOf lays bf16 numbers out as a product takes them: flushed, since activations were rounded by roundBF16.
func activationsOf(a []uint16, pairs bool) []byte {
	var out []byte
	for _, h := range a {
		b := math.Float32bits(flush(math.Float32frombits(uint32(h) << 16)))
		if pairs {
			out = binary.LittleEndian.AppendUint16(out, uint16(b>>16))
		} else {
			out = binary.LittleEndian.AppendUint32(out, b)
		}
	}
	return out
}

func requireSameBits(t testing.TB, want, got []float32, format string, args ...any) {
	t.Helper()
	for i := range want {
		if math.Float32bits(want[i]) != math.Float32bits(got[i]) && (want[i] == want[i] || got[i] == got[i]) {
			require.Failf(t, "other bits", "%d: %x, want %x: "+format, append([]any{i, got[i], want[i]}, args...)...)
		}
	}
}

// Every case of the vectors is a product of one step of k by one row (dot) or 16 rows (tile) and 16 columns; a panel's other columns are zero.
func TestProducts_AgreeWithTheInstructionsOfIntel(t *testing.T) {
	for _, path := range Paths() {
		k := kernelsFor(path)
		t.Run(path.String()+"/dot", func(t *testing.T) {
			v, p := readVectors(t, "dot"), &k.products[Dot][BF16]
			for i := range v.cases {
				// A column has a pair of its own in a and b; the product takes one row of activations for all. So each column is a
				// call of its own, with zeros for the other inputs: fma(0, 0, c) is c, but for a c of -0, which becomes +0.
				for n := range 16 {
					pair := append(append([]uint16{}, v.a[i*32+2*n:i*32+2*n+2]...), make([]uint16, step-2)...)
					w := make([]uint16, step*panel)
					copy(w[2*n:], v.b[i*32+2*n:i*32+2*n+2])
					c := flushed(append([]float32{}, v.c[i*16:(i+1)*16]...))
					c = append(c, make([]float32, 16)...)
					x := activationsOf(pair, p.pairs)
					p.rows[0](unsafe.Pointer(&c[0]), unsafe.Pointer(&x[0]), unsafe.Pointer(&w[0]), nil, nil, nil, len(x), 1, 1)
					want := v.want[i*16+n]
					if want == 0 {
						want, c[n] = 0, c[n]+0
					}
					requireSameBits(t, []float32{want}, c[n:n+1], "case %d, column %d", i, n)
				}
			}
		})
		t.Run(path.String()+"/tile", func(t *testing.T) {
			v, p := readVectors(t, "tile"), &k.products[Tile][BF16]
			for i := range v.cases {
				w := make([]uint16, step*panel)
				for pair := range 16 {
					copy(w[pair*2*panel:], v.b[(i*16+pair)*32:(i*16+pair+1)*32])
				}
				for r := 0; r < 16; {
					rows := min(p.most, 16-r)
					c := make([]float32, rows*panel)
					for j := range rows {
						copy(c[j*panel:], flushed(v.c[(i*16+r+j)*16:(i*16+r+j+1)*16]))
					}
					x := activationsOf(v.a[(i*16+r)*32:(i*16+r+rows)*32], p.pairs)
					p.rows[rows-1](unsafe.Pointer(&c[0]), unsafe.Pointer(&x[0]), unsafe.Pointer(&w[0]), nil, nil, nil, len(x)/rows, 1, 1)
					for j := range rows {
						requireSameBits(t, v.want[(i*16+r+j)*16:(i*16+r+j+1)*16], c[j*panel:j*panel+16], "case %d, row %d", i, r+j)
					}
					r += rows
				}
			}
		})
	}
}
