package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/demo"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/npy"
)

// goldenLayer is a MoE layer of a fixture with its golden values.
type goldenLayer struct {
	name    string // MODEL/LAYER
	prefix  string
	tensors map[string]npyArray
}

// goldenLayers returns the layers of every fixture in dirs.
func goldenLayers(t testing.TB, dirs []string) []goldenLayer {
	t.Helper()
	var list []goldenLayer
	for _, dir := range dirs {
		tensors := golden(t, filepath.Join(dir, "golden.safetensors"))
		for _, l := range checkpointtest.ReadGolden(t, dir).Layers {
			list = append(list, goldenLayer{filepath.Base(dir) + "/" + l.Layer, l.Golden, tensors})
		}
	}
	return list
}

// fixtureDirs returns the absolute paths of the fixtures that match patterns.
func fixtureDirs(t testing.TB, patterns ...string) []string {
	t.Helper()
	var dirs []string
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(fixtures, p))
		require.NoError(t, err)
		require.NotEmpty(t, found, p)
		for _, d := range found {
			d, err = filepath.Abs(d)
			require.NoError(t, err)
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// configFile writes a configuration whose list under key holds one entry for each directory, with more behind its checkpoint.
func configFile(t testing.TB, key string, dirs []string, more string) string {
	t.Helper()
	lines := []string{key + ":"}
	for _, d := range dirs {
		lines = append(lines, "  - {checkpoint: "+d+more+"}")
	}
	path := filepath.Join(t.TempDir(), "kwaaid.yaml")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
	return path
}

// spread is a swarm that hosts the layers of fixtures: 4 hosts with each expert on two of them, and a node that has only the gates.
type spread struct {
	hosts  []*demo.Host
	caller *demo.Host
}

const spreadHosts = 4

func startSpread(t testing.TB, dirs []string) spread {
	t.Helper()
	var s spread
	for n := range spreadHosts {
		var mine []string
		for e := range 64 {
			if e%spreadHosts == n || (e+1)%spreadHosts == n {
				mine = append(mine, strconv.Itoa(e))
			}
		}
		args := []string{"--config", configFile(t, "experts", dirs, `, experts: "`+strings.Join(mine, ",")+`"`)}
		if n > 0 {
			args = append(args, "--bootstrap", s.hosts[0].Addrs[0])
		}
		s.hosts = append(s.hosts, launchNode(t, args...))
	}
	s.caller = launchNode(t, "--config", configFile(t, "layers", dirs, ""), "--bootstrap", s.hosts[0].Addrs[0])
	for _, h := range append(slices.Clone(s.hosts), s.caller) {
		require.NoError(t, h.WaitReady(t.Context()))
	}
	return s
}

// writeRows writes an input file.
func writeRows(t testing.TB, values []float32, shape ...int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.npy")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, npy.Write(f, shape, values))
	require.NoError(t, f.Close())
	return path
}

// manyRows makes n rows of some, each a little different.
func manyRows(some []float32, n, hidden int) []float32 {
	out := make([]float32, 0, n*hidden)
	for r := range n {
		scale := 1 - float32(r)/2048
		for _, v := range some[(r*hidden)%len(some):][:hidden] {
			out = append(out, scale*v)
		}
	}
	return out
}

func TestLayers_EveryFamilySpreadOverFourHostsGivesTheGoldenOutputAndTheBitsOfOneHost(t *testing.T) {
	dirs := fixtureDirs(t, "moe/*", "more/*")
	s := startSpread(t, dirs)
	alone := startNode(t, "--config", configFile(t, "experts", dirs, ""))
	for _, l := range goldenLayers(t, dirs) {
		t.Run(l.name, func(t *testing.T) {
			call := func(h *demo.Host, x *tensor.Dense) (api.LayerResult, []float32) {
				res, out, err := h.Client.CallLayer(t.Context(), api.LayerRequest{Name: l.name, Input: x, Timeout: commandTimeout})
				require.NoError(t, err)
				require.Empty(t, res.MissingExperts)
				return res, out.HiddenStates.Float32s()
			}
			x17 := l.tensors[l.prefix+".rows17.input"]
			hidden := x17.shape[1]
			inputs := map[string]npyArray{
				"rows1":   l.tensors[l.prefix+".rows1.input"],
				"rows17":  x17,
				"rows512": {[]int{512, hidden}, manyRows(x17.data, 512, hidden)},
			}
			for rows, in := range inputs {
				x := tensor.New(tensor.WithShape(in.shape...), tensor.WithBacking(in.data))
				far, y := call(s.caller, x)
				here, same := call(alone, x)
				require.Equal(t, here.SHA256, far.SHA256, "%s: other bits than one host computes", rows)
				require.Equal(t, here.Digest, far.Digest, rows)
				require.Equal(t, same, y)
				sum, out, err := s.caller.Client.CallLayer(t.Context(), api.LayerRequest{Name: l.name, Input: x, Combine: "peer", Timeout: commandTimeout})
				require.NoError(t, err)
				require.Equal(t, here.Digest, sum.Digest)
				checkpointtest.Near(t, same, out.HiddenStates.Float32s(), rows+", added up at the hosts")
				require.Equal(t, sum.Numerics != here.Numerics, strings.HasSuffix(sum.Numerics, ","+expert.SumNumerics), sum.Numerics)
				if want, ok := l.tensors[l.prefix+"."+rows+".block_output"]; ok {
					checkpointtest.Near(t, want.data, y, rows)
				}
				for _, by := range far.AnsweredBy {
					require.Equal(t, api.WhereRemote, by.Where)
				}
			}

			out := filepath.Join(t.TempDir(), "y.npy")
			o := kwaaid(t, "call", l.name, "--input", writeRows(t, x17.data, x17.shape...), "--output", out, "--json", "--api", s.caller.API).ok(t)
			res := decode[api.LayerResult](t, o)
			require.Equal(t, x17.shape, res.Shape)
			f, err := os.Open(out)
			require.NoError(t, err)
			_, y, err := npy.Read(f, maxInput)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.Equal(t, res.SHA256, api.HashOutput(y))
			checkpointtest.Near(t, l.tensors[l.prefix+".rows17.block_output"].data, y, "rows17 by the command")
		})
	}
}

func TestLayers_NoCallFailsWhileAHostOfReplicasEnds(t *testing.T) {
	const calls, clients = 200, 4
	dirs := fixtureDirs(t, "moe/qwen2_moe-f32")
	layers := goldenLayers(t, dirs)
	alone := startNode(t, "--config", configFile(t, "experts", dirs, ""))
	for name, strike := range map[string]func(*demo.Host){
		"killed": func(h *demo.Host) { h.Kill() },
		"frozen": func(h *demo.Host) { _ = h.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			s := startSpread(t, dirs)
			var g errgroup.Group
			for c := range clients {
				g.Go(func() error {
					for i := range calls / clients {
						if c == 0 && i == calls/clients/4 {
							go strike(s.hosts[1])
						}
						l := layers[i%len(layers)]
						req := api.LayerRequest{Name: l.name, Rows: 1 + i%5, Seed: uint64(i), Timeout: 20 * time.Second}
						want, same, err := alone.Client.CallLayer(t.Context(), req)
						if err != nil {
							return err
						}
						got, _, err := s.caller.Client.CallLayer(t.Context(), req)
						if err != nil {
							return fmt.Errorf("call %d of client %d: %w", i, c, err)
						}
						if got.SHA256 != want.SHA256 {
							return fmt.Errorf("call %d of client %d: wrong bits", i, c)
						}
						req.Combine = "peer"
						_, sum, err := s.caller.Client.CallLayer(t.Context(), req)
						if err != nil {
							return fmt.Errorf("call %d of client %d, added up at the hosts: %w", i, c, err)
						}
						checkpointtest.Near(t, same.HiddenStates.Float32s(), sum.HiddenStates.Float32s(), "added up at the hosts")
					}
					return nil
				})
			}
			require.NoError(t, g.Wait())
		})
	}
}

func TestLayers_WhatNobodyHostsFailsTheCallOrIsSkippedByName(t *testing.T) {
	dirs := fixtureDirs(t, "moe/mixtral-f32")
	l := goldenLayers(t, dirs)[0]
	x := l.tensors[l.prefix+".rows17.input"]
	in := writeRows(t, x.data, x.shape...)
	low := startNode(t, "--config", configFile(t, "experts", dirs, `, experts: "0-3"`))
	high := startNode(t, "--config", configFile(t, "experts", dirs, `, experts: "4-63"`), "--bootstrap", low.Addrs[0])
	caller := startNode(t, "--config", configFile(t, "layers", dirs, ""), "--bootstrap", low.Addrs[0])
	whole := decode[api.LayerResult](t, kwaaid(t, "call", l.name, "--input", in, "--json", "--api", caller.API).ok(t))
	high.Kill()

	o := kwaaid(t, "call", l.name, "--input", in, "--json", "--api", caller.API)
	require.Equal(t, exitFailed, o.code)
	failed := decode[api.Error](t, o)
	require.NotEmpty(t, failed.Body.Code)
	require.Contains(t, failed.Body.Message, l.name)

	skipped := decode[api.LayerResult](t, kwaaid(t, "call", l.name, "--input", in, "--policy", "skip", "--json", "--api", caller.API).ok(t))
	require.NotEmpty(t, skipped.MissingExperts)
	require.Len(t, skipped.MissingNames, len(skipped.MissingExperts))
	require.Equal(t, len(whole.AnsweredBy), len(skipped.AnsweredBy)+len(skipped.MissingExperts))
	for _, by := range skipped.AnsweredBy {
		require.Less(t, by.Index, 4)
	}
	for _, name := range skipped.MissingNames {
		require.True(t, strings.HasPrefix(name, l.name+"/"), name)
	}
}

func TestLayers_RefuseWhatNoExpertShouldSee(t *testing.T) {
	dirs := fixtureDirs(t, "moe/mixtral-f32")
	l := goldenLayers(t, dirs)[0]
	h := startNode(t, "--config", configFile(t, "experts", dirs, ""))
	x := l.tensors[l.prefix+".rows1.input"]
	nan := slices.Clone(x.data)
	nan[3] = float32(math.NaN())
	for name, c := range map[string]struct {
		args []string
		code string
	}{
		"NaN":           {[]string{l.name, "--input", writeRows(t, nan, x.shape...)}, "INVALID_ARGUMENT"},
		"other width":   {[]string{l.name, "--input", writeRows(t, nan[:5], 1, 5)}, "INVALID_ARGUMENT"},
		"too many to k": {[]string{l.name, "--top-k", "100"}, "INVALID_ARGUMENT"},
		"no such layer": {[]string{"mixtral-f32/77"}, "NOT_FOUND"},
		"no such model": {[]string{"other/0"}, "NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			o := kwaaid(t, append([]string{"call", "--json", "--api", h.API}, c.args...)...)
			require.Equal(t, exitFailed, o.code, o.stdout)
			require.Equal(t, c.code, decode[api.Error](t, o).Body.Code, o.stdout)
		})
	}
	kwaaid(t, "call", l.name, "--api", h.API).ok(t)
}

func TestLayers_OfAnUnknownRuleAreToldOfInOneWay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "strange")
	require.NoError(t, os.CopyFS(dir, os.DirFS("../../testdata/fixtures/moe/mixtral-f32")))
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	require.NoError(t, err)
	config = bytes.ReplaceAll(bytes.ReplaceAll(config, []byte(`"mixtral"`), []byte(`"strange"`)), []byte("Mixtral"), []byte("Strange"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
	h := startNode(t, "--expert", "checkpoint="+dir)
	kwaaid(t, "call", "strange/0/1", "--api", h.API).ok(t) // the experts themselves are well

	o := kwaaid(t, "call", "strange/0", "--json", "--api", h.API)
	require.Equal(t, exitFailed, o.code)
	called := decode[api.Error](t, o).Body
	require.Equal(t, "UNIMPLEMENTED", called.Code)
	require.Contains(t, called.Message, `"strange"`)

	resp, err := http.Get("http://" + h.API + "/v2/models/strange/0")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusNotImplemented, resp.StatusCode)
	var described struct{ Error, Code string }
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&described))
	require.Equal(t, called.Code, described.Code)
	require.Contains(t, called.Message, described.Error)
}

func TestCall_HasTheTimeThatItIsGiven(t *testing.T) {
	dirs := fixtureDirs(t, "moe/mixtral-f32")
	host := startNode(t, "--config", configFile(t, "experts", dirs, ""))
	t.Setenv("KWAAI_CALLS__TIMEOUT", "100ms")
	caller := startNode(t, "--config", configFile(t, "layers", dirs, ""), "--bootstrap", host.Addrs[0])
	for _, name := range []string{"mixtral-f32/0", "mixtral-f32/0/3"} {
		kwaaid(t, "call", name, "--api", caller.API).ok(t)
	}
	require.NoError(t, host.Freeze())
	for _, name := range []string{"mixtral-f32/0", "mixtral-f32/0/3"} {
		began := time.Now()
		o := kwaaid(t, "call", name, "--timeout", "1s", "--json", "--api", caller.API)
		require.Equal(t, exitFailed, o.code)
		require.Equal(t, "DEADLINE_EXCEEDED", decode[api.Error](t, o).Body.Code)
		require.GreaterOrEqual(t, time.Since(began), time.Second, "calls.timeout is for those who give none")
	}
}

func TestBench_SaysWhatItCannotCall(t *testing.T) {
	h := startNode(t, "--expert", "checkpoint=../../testdata/fixtures/moe/mixtral-f32")
	o := kwaaid(t, "bench", "mixtral-f32/0", "expert-7", "--json", "--api", h.API)
	require.Equal(t, 1, o.code)
	failed := decode[api.Error](t, o)
	require.Equal(t, "NOT_FOUND", failed.Body.Code)
	require.Equal(t, "expert-7", failed.Expert)
	require.Contains(t, failed.Body.Message, "expert-7")
	// So many rows of 32 elements that their number fits no integer.
	o = kwaaid(t, "bench", "mixtral-f32/0", "--rows", strconv.Itoa(1<<59), "--json", "--api", h.API)
	require.Equal(t, 1, o.code)
	require.Equal(t, "RESOURCE_EXHAUSTED", decode[api.Error](t, o).Body.Code, o.stdout)
}

func TestBench_TakesLayers(t *testing.T) {
	dirs := fixtureDirs(t, "moe/qwen2_moe-f32")
	l := goldenLayers(t, dirs)[0]
	s := startSpread(t, dirs)
	res := decode[api.BenchResult](t, kwaaid(t, "bench", l.name, "--rows", "4", "--clients", "2", "--calls", "10", "--json", "--api", s.caller.API).ok(t))
	require.Equal(t, 20, res.Calls)
	require.Zero(t, res.Errors, res.FirstError)
	require.Positive(t, res.BytesPerCall)
	sum := decode[api.BenchResult](t, kwaaid(t, "bench", l.name, "--rows", "4", "--calls", "10", "--combine", "peer", "--json", "--api", s.caller.API).ok(t))
	require.Zero(t, sum.Errors, sum.FirstError)
	require.Positive(t, sum.BytesPerCall)
	layers, err := s.caller.Client.Layers(t.Context())
	require.NoError(t, err)
	total := 0
	for _, n := range layers[0].RowsPerExpert {
		total += n
	}
	require.Equal(t, (20+10)*4*layers[0].TopK, total)
	require.InDelta(t, float64(slices.Max(layers[0].RowsPerExpert)*layers[0].Experts)/float64(total), layers[0].Balance, 1e-9)

	// People see it by `experts`, Prometheus by /metrics.
	shown := kwaaid(t, "experts", "--api", s.caller.API).ok(t).stdout
	require.Regexp(t, fmt.Sprintf(`(?m)^%s +\d+ +%d +%d +%d +%.2f `, l.name, layers[0].Experts, layers[0].TopK, total, layers[0].Balance), shown)
	byIndex := map[string]string{}
	for _, m := range scrape(t, s.caller.API) {
		switch {
		case m.labels["layer"] != l.name:
		case m.name == "kwaai_moe_expert_rows_total":
			byIndex[m.labels["index"]] = m.value
		case m.name == "kwaai_moe_balance":
			require.Equal(t, strconv.FormatFloat(layers[0].Balance, 'g', -1, 64), m.value)
		}
	}
	require.Len(t, byIndex, layers[0].Experts)
	for i, n := range layers[0].RowsPerExpert {
		require.Equal(t, strconv.Itoa(n), byIndex[strconv.Itoa(i)])
	}

	// What the experts did, their hosts know, and the caller how fast its peers answered.
	var computed uint64
	for _, h := range s.hosts {
		status, err := h.Client.Status(t.Context())
		require.NoError(t, err)
		computed += status.Load.Rows
		experts, err := h.Client.Experts(t.Context())
		require.NoError(t, err)
		var own uint64
		for _, e := range experts {
			own += e.Rows
		}
		require.Equal(t, status.Load.Rows, own)
	}
	require.GreaterOrEqual(t, computed, uint64(total))
	peers, err := s.caller.Client.Peers(t.Context())
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(peers, func(p api.Peer) bool { return p.LatencyMS != nil }))

	o := kwaaid(t, "bench", l.name, "--local", "--json", "--api", s.caller.API)
	require.Equal(t, exitFailed, o.code)
	require.Equal(t, "NOT_FOUND", decode[api.Error](t, o).Body.Code)
	require.Equal(t, exitUsage, kwaaid(t, "bench", l.name, "--bootstrap", s.hosts[0].Addrs[0]).code)

	alone := startNode(t, "--config", configFile(t, "experts", dirs, ""))
	res = decode[api.BenchResult](t, kwaaid(t, "bench", l.name, "--local", "--calls", "10", "--json", "--api", alone.API).ok(t))
	require.Zero(t, res.Errors, res.FirstError)
	require.NotNil(t, res.GFLOPS)
	require.Positive(t, *res.GFLOPS)
}
