package checkpoint

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// FuzzReadHeader: whatever a file holds, reading its header neither panics nor takes more than a multiple of the file's size,
// and what it accepts lies within the file.
func FuzzReadHeader(f *testing.F) {
	file := func(header string, data int) []byte {
		raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		return append(append(raw, header...), make([]byte, data)...)
	}
	f.Add(file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}`, 9))
	f.Add(file(`{"__metadata__":{"a":"b"},"a":{"dtype":"I64","shape":[0,1],"data_offsets":[0,0]}} `, 0))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63))
	f.Add(file(strings.Repeat("[", 100), 0))
	f.Fuzz(func(t *testing.T, content []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		tensors, err := readHeader(bytes.NewReader(content), int64(len(content)))
		runtime.ReadMemStats(&after)
		// An entry of 50 bytes becomes a map's slot, a shape and what the JSON decoder leaves behind.
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<10+40*len(content)))
		if err != nil {
			return
		}
		var covered int64
		for name, info := range tensors {
			require.True(t, lengthSize <= info.begin && info.begin <= info.end && info.end <= int64(len(content)), name)
			covered += info.size()
		}
		require.LessOrEqual(t, covered, int64(len(content)), "no byte belongs to two tensors")
	})
}

// FuzzOpen: whatever a directory's files hold, opening it and reading experts out of it gives experts or an error.
func FuzzOpen(f *testing.F) {
	pool := kernel.NewPool(1)
	f.Cleanup(pool.Close)
	seed := func(config string, tensors ...checkpointtest.Tensor) {
		var b bytes.Buffer
		for i, t := range tensors {
			n := int(elementBits[t.DType] / 8)
			for _, length := range t.Shape {
				n *= length
			}
			tensors[i].Data = make([]byte, n)
		}
		checkpointtest.Write(f, &b, tensors)
		f.Add([]byte(config), b.Bytes())
	}
	t := func(name, dtype string, shape ...int) checkpointtest.Tensor {
		return checkpointtest.Tensor{Name: name, DType: dtype, Shape: shape}
	}
	seed(`{"hidden_size":2}`, t("l.0.m.gate.weight", "F32", 1, 2), t("l.0.m.experts.0.w1.weight", "BF16", 3, 2),
		t("l.0.m.experts.0.w2.weight", "BF16", 2, 3), t("l.0.m.experts.0.w3.weight", "BF16", 3, 2))
	seed(`{"quantization_config":{"weight_block_size":[2,2]}}`,
		t("l.1.m.experts.0.gate_proj.weight", "F8_E4M3", 3, 2), t("l.1.m.experts.0.gate_proj.weight_scale_inv", "F32", 2, 1),
		t("l.1.m.experts.0.up_proj.weight", "F8_E4M3", 3, 2), t("l.1.m.experts.0.up_proj.weight_scale_inv", "F32", 2, 1),
		t("l.1.m.experts.0.down_proj.weight", "F8_E4M3", 2, 3), t("l.1.m.experts.0.down_proj.weight_scale_inv", "F32", 1, 2))
	seed(`{"num_hidden_layers":3}`, t("l.2.m.experts.gate_up_proj_blocks", "U8", 2, 64, 1, 16), t("l.2.m.experts.gate_up_proj_scales", "U8", 2, 64, 1),
		t("l.2.m.experts.gate_up_proj_bias", "F32", 2, 64), t("l.2.m.experts.down_proj_bias", "F32", 2, 32),
		t("l.2.m.experts.down_proj_blocks", "U8", 2, 32, 1, 16), t("l.2.m.experts.down_proj_scales", "U8", 2, 32, 1))
	seed(`{}`, t("b.0.f.experts.mlp.w1", "F16", 6, 2), t("b.0.f.experts.mlp.v1", "F16", 6, 2), t("b.0.f.experts.mlp.w2", "F16", 6, 2),
		t("b.0.f.router.layer.weight", "F16", 2, 2))
	f.Fuzz(func(t *testing.T, config, content []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, singleName), content, 0o600))
		c, err := Open(dir)
		if err != nil {
			return
		}
		defer c.Close()
		for _, l := range c.Layers() {
			for index := range min(l.Experts, 2) {
				if one, err := l.Load(t.Context(), index, expert.Engine{Pool: pool}, nil); err == nil {
					require.Equal(t, l.Function.Hidden, one.Spec().Hidden)
				}
			}
			_, _ = l.Router()
			_, _ = l.LoadShared(t.Context(), expert.Engine{Pool: pool})
		}
	})
}

// FuzzParseConfig: whatever config.json holds, nothing panics, and an answer is an error or a value.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"model_type":"mixtral","hidden_size":8,"num_hidden_layers":2,"hidden_act":"silu"}`))
	f.Add([]byte(`{"text_config":{"hidden_size":8.0,"x":[1,2]},"quantization_config":{"weight_block_size":[16,32]},"architectures":["A"]}`))
	f.Add([]byte(`{"a":[NaN,-Infinity,Infinity],"b":"NaN \\" Infinity","ffn_config":{"ffn_act_fn":{"name":"silu"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig("config.json", data)
		if err != nil {
			return
		}
		_, _ = c.activation("silu")
		_, _ = c.weightBlock()
		_, _ = c.IntAt(1, 0, "x", "hidden_size")
		_, _ = c.Float(1, "hidden_size")
		_, _ = c.Bool(true, "hidden_size")
		require.NotEmpty(t, c.Architecture())
		_ = c.IsNull("x")
	})
}
