package checkpoint_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
)

// copyOf copies a fixture's checkpoint, so that a test can spoil it.
func copyOf(t testing.TB, name string) string {
	dir := t.TempDir()
	entries, err := os.ReadDir(filepath.Join(fixtures, name))
	require.NoError(t, err)
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(fixtures, name, e.Name()))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, e.Name()), raw, 0o600))
	}
	return dir
}

// editJSON changes an object in a file.
func editJSON(t testing.TB, path string, edit func(map[string]any)) {
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var object map[string]any
	require.NoError(t, json.Unmarshal(raw, &object))
	edit(object)
	raw, err = json.Marshal(object)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, raw, 0o600))
}

// editTensors changes the tensors of a safetensors file, by name.
func editTensors(t testing.TB, path string, edit func(map[string]checkpointtest.Tensor)) {
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	n := binary.LittleEndian.Uint64(raw)
	var header map[string]struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	require.NoError(t, json.Unmarshal(raw[8:8+n], &header))
	data, tensors := raw[8+n:], map[string]checkpointtest.Tensor{}
	for name, h := range header {
		if name != "__metadata__" {
			tensors[name] = checkpointtest.Tensor{Name: name, DType: h.DType, Shape: h.Shape, Data: data[h.Offsets[0]:h.Offsets[1]]}
		}
	}
	edit(tensors)
	ordered := make([]checkpointtest.Tensor, 0, len(tensors))
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		ordered = append(ordered, tensors[name])
	}
	checkpointtest.WriteFile(t, path, ordered)
}

// loadAll opens a checkpoint and loads every expert, router and shared expert of it; it returns the first error.
func loadAll(t testing.TB, dir string) error {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	choices, _, err := c.Select(nil, nil)
	if err != nil {
		return err
	}
	e := engine(t)
	for _, choice := range choices {
		if _, err := choice.Layer.Load(t.Context(), choice.Index, e, nil); err != nil {
			return err
		}
	}
	for _, l := range c.Layers() {
		if _, err := l.Router(); err != nil {
			return err
		}
		if _, err := l.LoadShared(t.Context(), e); err != nil {
			return err
		}
	}
	return nil
}

func TestOpen_SaysWhatIsWrongWithADirectory(t *testing.T) {
	const index = "model.safetensors.index.json"
	for name, c := range map[string]struct {
		fixture string
		spoil   func(t *testing.T, dir string)
		says    []string
	}{
		"no config": {
			"moe/mixtral-f32", func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir+"/config.json")) },
			[]string{"config.json", "no such file"},
		},
		"no weights": {
			"moe/mixtral-f32", func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir+"/model.safetensors")) },
			[]string{"expected model.safetensors or model.safetensors.index.json"},
		},
		"bad config": {
			"moe/mixtral-f32", func(t *testing.T, dir string) {
				require.NoError(t, os.WriteFile(dir+"/config.json", []byte("{"), 0o600))
			},
			[]string{"config.json", "unexpected EOF"},
		},
		"a config of another type": {
			"moe/mixtral-f32", func(t *testing.T, dir string) {
				editJSON(t, dir+"/config.json", func(c map[string]any) { c["hidden_size"] = "32" })
			},
			[]string{"config.json: hidden_size: expected a whole number, found 32"},
		},
		"a hidden size that the tensors do not have": {
			"moe/mixtral-f32", func(t *testing.T, dir string) {
				editJSON(t, dir+"/config.json", func(c map[string]any) { c["hidden_size"] = 64 })
			},
			[]string{"model.safetensors", "block_sparse_moe.gate.weight", "expected [experts 64] (experts, hidden), found [8 32]"},
		},
		"an activation that nobody knows": {
			"moe/mixtral-f32", func(t *testing.T, dir string) {
				editJSON(t, dir+"/config.json", func(c map[string]any) { c["hidden_act"] = "mish" })
			},
			[]string{`the activation "mish" is not known`},
		},
		"cut short": {
			"moe/mixtral-f32", func(t *testing.T, dir string) { require.NoError(t, os.Truncate(dir+"/model.safetensors", 200_000)) },
			[]string{"model.safetensors: tensor", "cut short", "the file has"},
		},
		"a missing shard": {
			"moe/mixtral-f32-sharded", func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir+"/model-00003-of-00004.safetensors")) },
			[]string{"model-00003-of-00004.safetensors", "missing", "layers.1.block_sparse_moe.experts"},
		},
		"no shard at all": {
			"moe/mixtral-f32-sharded", func(t *testing.T, dir string) {
				shards, err := filepath.Glob(dir + "/model-*.safetensors")
				require.NoError(t, err)
				for _, shard := range shards {
					require.NoError(t, os.Remove(shard))
				}
			},
			[]string{"none of the 4 files", "no such file"},
		},
		"a shard in another directory": {
			"moe/mixtral-f32-sharded", func(t *testing.T, dir string) {
				editJSON(t, dir+"/"+index, func(c map[string]any) {
					c["weight_map"].(map[string]any)["lm_head.weight"] = "../model-00001-of-00004.safetensors"
				})
			},
			[]string{index, "lm_head.weight", `found "../model-00001-of-00004.safetensors"`},
		},
		"a shard with an absolute path": {
			"moe/mixtral-f32-sharded", func(t *testing.T, dir string) {
				editJSON(t, dir+"/"+index, func(c map[string]any) { c["weight_map"].(map[string]any)["lm_head.weight"] = "/etc/passwd" })
			},
			[]string{`found "/etc/passwd"`},
		},
		"a shard that is a directory": {
			"moe/mixtral-f32-sharded", func(t *testing.T, dir string) {
				require.NoError(t, os.Mkdir(dir+"/sub", 0o700))
				editJSON(t, dir+"/"+index, func(c map[string]any) { c["weight_map"].(map[string]any)["lm_head.weight"] = "sub" })
			},
			[]string{"sub: expected a file"},
		},
		"an empty index": {
			"moe/mixtral-f32-sharded", func(t *testing.T, dir string) { require.NoError(t, os.WriteFile(dir+"/"+index, []byte("{}"), 0o600)) },
			[]string{index, "expected a weight_map"},
		},
		"an index that is wrong": {
			"moe/mixtral-f32-sharded", func(t *testing.T, dir string) {
				editJSON(t, dir+"/"+index, func(c map[string]any) {
					c["weight_map"].(map[string]any)["model.layers.0.block_sparse_moe.experts.3.w2.weight"] = "model-00004-of-00004.safetensors"
				})
			},
			[]string{"model-00004-of-00004.safetensors", "experts.3.w2.weight", "though model.safetensors.index.json says so"},
		},
		"an expert of another shape": {
			"moe/mixtral-f32", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
					w := ts["model.layers.1.block_sparse_moe.experts.5.w2.weight"]
					w.Shape = []int{24, 32}
					ts[w.Name] = w
				})
			},
			[]string{"model.safetensors", "layers.1.block_sparse_moe.experts.5.w2.weight", "expected [32 24] (hidden, inner), found [24 32]"},
		},
		"an expert of another dtype": {
			"moe/mixtral-f32", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
					w := ts["model.layers.0.block_sparse_moe.experts.2.w3.weight"]
					w.DType, w.Data = "BF16", w.Data[:len(w.Data)/2]
					ts[w.Name] = w
				})
			},
			[]string{"experts.2.w3.weight", "expected f32 as the other matrices of the expert, found bf16"},
		},
		"an expert of integers": {
			"moe/mixtral-f32", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
					w := ts["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
					w.DType = "I32"
					ts[w.Name] = w
				})
			},
			[]string{"experts.0.w1.weight", "expected F32, BF16, F16, or F8_E4M3 with block scales, found I32 [24 32]"},
		},
		"a missing expert": {
			"moe/qwen3_moe-f32", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
					delete(ts, "model.layers.0.mlp.experts.7.up_proj.weight")
				})
			},
			[]string{`no tensor "model.layers.0.mlp.experts.7.up_proj.weight"`},
		},
		"a missing router": {
			"moe/qwen3_moe-f32", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) { delete(ts, "model.layers.0.mlp.gate.weight") })
			},
			[]string{`no tensor "model.layers.0.mlp.gate.weight"`},
		},
		"a tensor without a part": {
			"moe/qwen3_moe-f32", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
					ts["model.layers.0.mlp.experts.0.up_proj.input_scale"] = checkpointtest.Tensor{
						Name: "model.layers.0.mlp.experts.0.up_proj.input_scale", DType: "F32", Data: make([]byte, 4),
					}
				})
			},
			[]string{"up_proj.input_scale", "has no part in the layout"},
		},
		"float8 without blocks in the config": {
			"moe/deepseek_v3_fp8-bf16", func(t *testing.T, dir string) {
				editJSON(t, dir+"/config.json", func(c map[string]any) { delete(c, "quantization_config") })
			},
			[]string{"experts.0.gate_proj.weight", "weight_block_size"},
		},
		"float8 with other blocks": {
			"moe/deepseek_v3_fp8-bf16", func(t *testing.T, dir string) {
				editJSON(t, dir+"/config.json", func(c map[string]any) {
					c["quantization_config"].(map[string]any)["weight_block_size"] = []int{128, 128}
				})
			},
			[]string{"gate_proj.weight_scale_inv", "expected F32 [1 1]", "found F32 [6 2]"},
		},
		"float8 without scales": {
			"moe/deepseek_v3_fp8-bf16", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
					delete(ts, "model.layers.1.mlp.experts.4.up_proj.weight_scale_inv")
				})
			},
			[]string{`no tensor "model.layers.1.mlp.experts.4.up_proj.weight_scale_inv"`},
		},
		"mxfp4 with other exponents": {
			"moe/gpt_oss_mxfp4-bf16", func(t *testing.T, dir string) {
				editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
					w := ts["model.layers.0.mlp.experts.down_proj_scales"]
					w.Shape = []int{8, 3, 64}
					ts[w.Name] = w
				})
			},
			[]string{"down_proj_scales", "expected U8 [8 64 3]"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyOf(t, c.fixture)
			c.spoil(t, dir)
			err := loadAll(t, dir)
			require.Error(t, err)
			require.ErrorContains(t, err, dir, "it names the file")
			for _, part := range c.says {
				require.ErrorContains(t, err, part)
			}
		})
	}
}

func TestSelect_LayersThatCanBeUsedComeBesideTheErrorOfThoseThatCannot(t *testing.T) {
	for name, spoil := range map[string]func(shard string) error{
		"missing":   os.Remove,
		"cut short": func(shard string) error { return os.Truncate(shard, 1000) },
		"no file":   func(shard string) error { return os.WriteFile(shard, []byte("nothing"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyOf(t, "moe/mixtral-f32-sharded")
			const shard = "model-00003-of-00004.safetensors" // of layer 1
			require.NoError(t, spoil(filepath.Join(dir, shard)))
			c, err := checkpoint.Open(dir)
			require.NoError(t, err)
			defer c.Close()
			choices, _, err := c.Select(nil, nil)
			require.ErrorContains(t, err, shard)
			require.ErrorContains(t, err, "model.layers.1.block_sparse_moe.experts")
			require.Len(t, choices, 8)
			for _, choice := range choices {
				require.Equal(t, "0", choice.Layer.Name)
				_, err := choice.Layer.Load(t.Context(), choice.Index, engine(t), nil)
				require.NoError(t, err)
			}
		})
	}
}

func TestOpen_NamesAnArchitectureThatItDoesNotKnow(t *testing.T) {
	dir := copyOf(t, "moe/mixtral-f32")
	editJSON(t, dir+"/config.json", func(c map[string]any) { c["architectures"] = []string{"NewMoeForCausalLM"} })
	editTensors(t, dir+"/model.safetensors", func(ts map[string]checkpointtest.Tensor) {
		for name, w := range ts {
			delete(ts, name)
			w.Name = strings.Replace(name, ".w1.weight", ".w1.qweight", 1)
			ts[w.Name] = w
		}
	})
	_, err := checkpoint.Open(dir)
	var unknown *checkpoint.UnknownError
	require.ErrorAs(t, err, &unknown)
	require.Equal(t, "NewMoeForCausalLM", unknown.Architecture)
	require.ErrorContains(t, err, "NewMoeForCausalLM")
	require.ErrorContains(t, err, "looked for tensors <block>.experts.0.w1.weight, <block>.experts.0.gate_proj.weight")
	require.ErrorContains(t, err, `it has "model.layers.0.block_sparse_moe.experts.0.w1.qweight" instead`)
}

func TestOpen_AMissingShardHarmsOnlyWhatLiesInIt(t *testing.T) {
	dir := copyOf(t, "moe/mixtral-f32-sharded")
	require.NoError(t, os.Remove(dir+"/model-00004-of-00004.safetensors")) // experts of layer 1
	c := open(t, dir)
	choices, _, err := c.Select(func(name string) bool { return name == "0" }, nil)
	require.NoError(t, err)
	require.Len(t, choices, 8)
	for _, choice := range choices {
		_, err := choice.Layer.Load(t.Context(), choice.Index, engine(t), nil)
		require.NoError(t, err)
	}
}

func TestOpen_LayersBeyondTheModelAreNoPartOfIt(t *testing.T) {
	for _, c := range []struct {
		fixture, key string
		layers       []string
	}{
		{"moe/mixtral-f32", "num_hidden_layers", []string{"0"}},
		{"more/dbrx-f32", "n_layers", []string{"0"}},
		{"more/switch_transformers-f32", "num_decoder_layers", []string{"encoder.block.1.layer.1"}},
		{"more/switch_transformers-f32", "num_layers", []string{"decoder.block.1.layer.2"}},
	} {
		dir := copyOf(t, c.fixture)
		editJSON(t, dir+"/config.json", func(config map[string]any) { config[c.key] = 1 })
		var names []string
		for _, l := range open(t, dir).Layers() {
			names = append(names, l.Name)
		}
		require.Equal(t, c.layers, names, c.fixture)
	}
}

func TestLoad_RefusesAnIndexThatIsNot(t *testing.T) {
	l := open(t, fixtures+"/moe/mixtral-f32").Layer("0")
	for _, index := range []int{-1, 8} {
		_, err := l.Load(t.Context(), index, engine(t), nil)
		require.ErrorContains(t, err, "experts 0 to 7")
	}
}

func TestLoad_AFileThatIsCutShortMeanwhileIsAnError(t *testing.T) {
	dir := copyOf(t, "moe/mixtral-f32")
	c := open(t, dir)
	require.NoError(t, os.Truncate(dir+"/model.safetensors", 100_000))
	var err error
	for index := 0; index < 8 && err == nil; index++ {
		_, err = c.Layer("1").Load(t.Context(), index, engine(t), nil)
	}
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorContains(t, err, dir)
}

func TestLoad_StopsWithTheCause(t *testing.T) {
	gone := errors.New("the operator gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	l := open(t, fixtures+"/tiny-mixtral-text").Layer("0")
	_, err := l.Load(ctx, 0, engine(t), func(int64) { cancel(gone) })
	require.ErrorIs(t, err, gone)
}

func TestSelect_ClipsAndWarns(t *testing.T) {
	c := open(t, fixtures+"/moe/deepseek_v3-f32") // layer 0 is dense
	some := func(first, last int) func(int) bool { return func(i int) bool { return first <= i && i <= last } }
	choices, warning, err := c.Select(nil, some(6, 900))
	require.NoError(t, err)
	require.Empty(t, warning)
	require.Len(t, choices, 2)
	require.Equal(t, "1", choices[0].Layer.Name)
	require.Equal(t, []int{6, 7}, []int{choices[0].Index, choices[1].Index})

	choices, warning, err = c.Select(func(name string) bool { return name == "0" }, nil)
	require.NoError(t, err)
	require.Empty(t, choices)
	require.Contains(t, warning, "nothing is selected: the checkpoint has layers 1 (experts 0-7)")
}
