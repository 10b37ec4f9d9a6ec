package checkpoint_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

// Models with more than text have other prefixes, and transformers 5 stacks experts in its own way: neither has a fixture, and
// neither needs a family of its own.
func TestOpen_KnowsLayoutsWhateverThePrefix(t *testing.T) {
	e := engine(t)
	original := open(t, fixtures+"/moe/qwen3_moe-f32")
	for _, prefix := range []string{"model.language_model.layers.", "thinker.model.layers.", "layers."} {
		for _, stacked := range []bool{false, true} {
			dir := copyOf(t, "moe/qwen3_moe-f32")
			editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
				for _, w := range slices.Collect(maps.Values(ts)) {
					delete(ts, w.Name)
					w.Name = strings.Replace(w.Name, "model.layers.", prefix, 1)
					ts[w.Name] = w
				}
				if stacked {
					stack(ts, prefix, original.Layers()[0])
				}
			})
			editJSON(t, dir+"/config.json", func(c map[string]any) {
				delete(c, "model_type")
				delete(c, "hidden_act")
				text := map[string]any{}
				for key, v := range c {
					text[key] = v
					delete(c, key)
				}
				c["text_config"] = text
			})
			c := open(t, dir)
			require.Len(t, c.Layers(), 2)
			for _, l := range c.Layers() {
				x := expert.NewRows(ramp(3*l.Function.Hidden), l.Function.Hidden)
				for index := range l.Experts {
					got, err := l.Load(t.Context(), index, e, nil)
					require.NoError(t, err)
					want, err := original.Layer(l.Name).Load(t.Context(), index, e, nil)
					require.NoError(t, err)
					require.Equal(t, stacked, got.Spec().Digest != want.Spec().Digest, "a slice that holds two parts is another slice")
					a, err := got.Forward(t.Context(), x)
					require.NoError(t, err)
					b, err := want.Forward(t.Context(), x)
					require.NoError(t, err)
					require.Equal(t, b.Float32s(), a.Float32s())
				}
			}
		}
	}
}

// Blocks need not divide the sizes: the last ones of a row or column are then smaller.
func TestLoad_Float8BlocksThatDoNotDivideTheSizes(t *testing.T) {
	e, block := engine(t), [2]int{16, 20}
	quantised, widened := copyOf(t, "moe/deepseek_v3-f32"), copyOf(t, "moe/deepseek_v3-f32")
	editJSON(t, quantised+"/config.json", func(c map[string]any) {
		c["quantization_config"] = map[string]any{"weight_block_size": block}
	})
	editTensors(t, quantised+"/model.safetensors", func(f8 map[string]checkpointtest.Tensor) {
		editTensors(t, widened+"/model.safetensors", func(f32 map[string]checkpointtest.Tensor) {
			for _, w := range slices.Collect(maps.Values(f8)) {
				if strings.Contains(w.Name, ".mlp.") && strings.HasSuffix(w.Name, "_proj.weight") {
					f8[w.Name], f8[w.Name+"_scale_inv"], f32[w.Name] = quantise(w, block)
				}
			}
		})
	})
	a, b := open(t, quantised).Layer("1"), open(t, widened).Layer("1")
	require.Equal(t, expert.DTypeF8E4M3, a.Function.DType)
	x := expert.NewRows(ramp(3*a.Function.Hidden), a.Function.Hidden)
	for index := range a.Experts {
		got, err := a.Load(t.Context(), index, e, nil)
		require.NoError(t, err)
		want, err := b.Load(t.Context(), index, e, nil)
		require.NoError(t, err)
		y, err := got.Forward(t.Context(), x)
		require.NoError(t, err)
		z, err := want.Forward(t.Context(), x)
		require.NoError(t, err)
		for i, v := range z.Float32s() {
			require.InDelta(t, v, y.Float32s()[i], 1e-4)
		}
	}
}

// quantise makes a float32 matrix float8 with a scale for each block, and returns what that means in float32 beside it.
func quantise(w checkpointtest.Tensor, block [2]int) (f8, scales, f32 checkpointtest.Tensor) {
	out, in := w.Shape[0], w.Shape[1]
	columns := (in + block[1] - 1) / block[1]
	grid := make([]float32, (out+block[0]-1)/block[0]*columns)
	for i := range grid {
		grid[i] = 0.125 + float32(i)/16
	}
	values := make([]float32, out*in)
	codec.DecodeF32(values, w.Data)
	stored, meant := make([]byte, out*in), make([]byte, 4*out*in)
	for i, v := range values {
		scale := grid[i/in/block[0]*columns+i%in/block[1]]
		stored[i] = codec.ToF8E4M3(v / scale)
		values[i] = codec.FromF8E4M3(stored[i]) * scale
	}
	codec.EncodeF32(meant, values)
	raw := make([]byte, 4*len(grid))
	codec.EncodeF32(raw, grid)
	return checkpointtest.Tensor{Name: w.Name, DType: "F8_E4M3", Shape: w.Shape, Data: stored},
		checkpointtest.Tensor{Name: w.Name + "_scale_inv", DType: "F32", Shape: []int{len(grid) / columns, columns}, Data: raw},
		checkpointtest.Tensor{Name: w.Name, DType: "F32", Shape: w.Shape, Data: meant}
}

// stack replaces the experts' tensors by gate_up_proj [experts, 2*inner, hidden] and down_proj [experts, hidden, inner].
func stack(ts map[string]checkpointtest.Tensor, prefix string, l *checkpoint.Layer) {
	inner, hidden := l.Function.Inner, l.Function.Hidden
	for layer := range 2 {
		block := fmt.Sprintf("%s%d.mlp.experts.", prefix, layer)
		gateUp := checkpointtest.Tensor{Name: block + "gate_up_proj", DType: "F32", Shape: []int{l.Experts, 2 * inner, hidden}}
		down := checkpointtest.Tensor{Name: block + "down_proj", DType: "F32", Shape: []int{l.Experts, hidden, inner}}
		for e := range l.Experts {
			for _, name := range []string{"gate_proj", "up_proj", "down_proj"} {
				full := fmt.Sprintf("%s%d.%s.weight", block, e, name)
				into := &gateUp
				if name == "down_proj" {
					into = &down
				}
				into.Data = append(into.Data, ts[full].Data...)
				delete(ts, full)
			}
		}
		ts[gateUp.Name], ts[down.Name] = gateUp, down
	}
}

// ramp returns n different numbers of moderate size.
func ramp(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(i%17)/8 - 1
	}
	return x
}

// BenchmarkLoad reads, hashes and packs an expert of 48 MiB from a file that lies in the page cache.
func BenchmarkLoad(b *testing.B) {
	p := expert.Params{Kind: "glu", Hidden: 2048, Inner: 4096, DType: "bf16", Init: &expert.Init{Seed: 1}}
	path := drawn(b, p, nil)
	e := engine(b)
	p.Init = nil
	b.SetBytes(3 * 2048 * 4096 * 2)
	for b.Loop() {
		_, err := checkpoint.LoadFile(b.Context(), path, p, e, nil)
		require.NoError(b, err)
	}
}
