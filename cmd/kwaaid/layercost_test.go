package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/demo"
)

// What a layer costs whose experts are at four hosts, beside the same layer at one: `make layers`. The layer is of Qwen3-30B-A3B's
// shape but for its number of experts, 600 MB of bf16.
const (
	costExperts, costTopK    = 64, 8
	costHidden, costInner    = 2048, 768
	costHosts, costName      = 4, "drawn/0"
	costRounds, costWarmings = 8, 20
)

// drawLayer writes a checkpoint of one MoE layer with drawn weights, and returns its directory.
func drawLayer(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "drawn")
	require.NoError(t, os.Mkdir(dir, 0o700))
	config, err := json.Marshal(map[string]any{
		"architectures": []string{"Qwen3MoeForCausalLM"}, "model_type": "qwen3_moe", "hidden_act": "silu", "torch_dtype": "bfloat16",
		"hidden_size": costHidden, "moe_intermediate_size": costInner, "num_experts": costExperts, "num_experts_per_tok": costTopK,
		"norm_topk_prob": true, "num_hidden_layers": 1, "decoder_sparse_step": 1,
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
	dice := rand.New(rand.NewPCG(1, 2))
	draw := func(name string, out, in int) checkpointtest.Tensor {
		values, data := make([]float32, out*in), make([]byte, 2*out*in)
		for i := range values {
			values[i] = (2*dice.Float32() - 1) / 32 // results stay near the inputs' size
		}
		codec.Encode(data, codec.BF16, values)
		return checkpointtest.Tensor{Name: "model.layers.0.mlp." + name + ".weight", DType: "BF16", Shape: []int{out, in}, Data: data}
	}
	tensors := []checkpointtest.Tensor{draw("gate", costExperts, costHidden)}
	for e := range costExperts {
		of := fmt.Sprintf("experts.%d.", e)
		tensors = append(tensors,
			draw(of+"gate_proj", costInner, costHidden), draw(of+"up_proj", costInner, costHidden), draw(of+"down_proj", costHidden, costInner))
	}
	checkpointtest.WriteFile(t, filepath.Join(dir, "model.safetensors"), tensors)
	return dir
}

func TestMeasureLayer_FourHostsBesideOne(t *testing.T) {
	measured(t)
	dirs := []string{drawLayer(t)}
	alone := startNode(t, "--config", configFile(t, "experts", dirs, ""))
	hosts := make([]*demo.Host, 0, costHosts)
	for n := range costHosts {
		var mine []string
		for e := n; e < costExperts; e += costHosts {
			mine = append(mine, strconv.Itoa(e))
		}
		args := []string{"--config", configFile(t, "experts", dirs, `, experts: "`+strings.Join(mine, ",")+`"`)}
		if n > 0 {
			args = append(args, "--bootstrap", hosts[0].Addrs[0])
		}
		hosts = append(hosts, startNode(t, args...))
	}
	caller := startNode(t, "--config", configFile(t, "layers", dirs, ""), "--bootstrap", hosts[0].Addrs[0])

	bench := func(h *demo.Host, rows, calls int, codec string, seed uint64) api.BenchResult {
		res, err := h.Client.Bench(t.Context(), api.BenchRequest{
			Names: []string{costName}, Rows: rows, Clients: 1, Calls: calls, Codec: codec, Seed: seed,
		}, nil)
		require.NoError(t, err)
		require.Zero(t, res.Errors, res.FirstError)
		return res
	}
	for seed := range uint64(costRounds) {
		bench(alone, 128, 1, "", seed)
		bench(caller, 128, costWarmings, "", seed)
	}
	median := func(values []float64) float64 {
		slices.Sort(values)
		return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
	}

	t.Run("1 row", func(t *testing.T) {
		const calls, counted = 300, 20
		var far, here, more, peers, bareFar, bareHere []float64
		bare := newBareLayer(t, dirs[0])
		for seed := range uint64(costRounds) {
			req := api.LayerRequest{Name: costName, Rows: 1, Seed: seed, Timeout: commandTimeout}
			before := scrape(t, caller.API)
			var res api.LayerResult
			for range counted {
				var err error
				res, _, err = caller.Client.CallLayer(t.Context(), req)
				require.NoError(t, err)
			}
			after := scrape(t, caller.API)
			of := func(name string) float64 { return total(after, name) - total(before, name) }
			same, _, err := alone.Client.CallLayer(t.Context(), req)
			require.NoError(t, err)
			require.Equal(t, same.SHA256, res.SHA256)
			used := map[string]bool{}
			for _, by := range res.AnsweredBy {
				used[by.Peer] = true
			}
			require.Zero(t, of("kwaai_dispatch_lookups_total"), "a warm call asks the DHT")
			require.InDelta(t, counted*len(used), of("kwaai_rpc_exchanges_total"), 0, "a frame for each peer that is used, no other")
			peers = append(peers, float64(len(used)))
			h, f := bench(alone, 1, calls, "", seed), bench(caller, 1, calls, "", seed)
			far, here, more = append(far, f.P50MS), append(here, h.P50MS), append(more, f.P50MS-h.P50MS)
			bh, bf := bare.measure(t, calls)
			bareFar, bareHere = append(bareFar, bf), append(bareHere, bh)
			t.Logf("seed %d: %.3f ms, at one host %.3f, %d hedges; over bare TCP %.3f, in one process %.3f", seed, f.P50MS, h.P50MS, f.Hedges, bf, bh)
		}
		t.Logf("1 row: p50 %.3f ms, at one host %.3f: %.3f more (at most 0.5); a frame to each of %.1f peers",
			median(far), median(here), median(more), median(peers))
		t.Logf("1 row: the same experts in four processes over bare TCP %.3f ms, in one %.3f: %.3f more",
			median(bareFar), median(bareHere), median(bareFar)-median(bareHere))
	})
	for codec, limit := range map[string]float64{"f32": 0.65, "bf16": 0.75} {
		t.Run("128 rows, "+codec, func(t *testing.T) {
			const calls = 10
			var share []float64
			for seed := range uint64(costRounds) {
				h, f := bench(alone, 128, calls, codec, seed), bench(caller, 128, calls, codec, seed)
				share = append(share, f.SamplesPerS/h.SamplesPerS)
				t.Logf("seed %d: %.0f rows/s, at one host %.0f", seed, f.SamplesPerS, h.SamplesPerS)
			}
			t.Logf("128 rows, %s: %.2f of one host's rows/s (at least %.2f)", codec, median(share), limit)
		})
	}
	t.Run("added up at the hosts", func(t *testing.T) {
		for _, rows := range []int{1, 128} {
			of := func(combine string) api.BenchResult {
				res, err := caller.Client.Bench(t.Context(), api.BenchRequest{Names: []string{costName}, Rows: rows, Clients: 1, Calls: 100, Combine: combine}, nil)
				require.NoError(t, err)
				require.Zero(t, res.Errors, res.FirstError)
				return res
			}
			at, peers := of("caller"), of("peer")
			t.Logf("%d rows: %.0f bytes a call and p50 %.3f ms added up at the hosts, %.0f bytes and %.3f ms at the caller: %.2f of the bytes",
				rows, peers.BytesPerCall, peers.P50MS, at.BytesPerCall, at.P50MS, peers.BytesPerCall/at.BytesPerCall)
		}
	})
}
