package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/demo"
	"github.com/kwaai/kwaaid/internal/npy"
)

const fixtures = "../../testdata/fixtures"

// golden reads the float32 tensors of a golden file: this test's own reader, ten lines of the published format.
func golden(t testing.TB, path string) map[string]npyArray {
	t.Helper()
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	n := binary.LittleEndian.Uint64(raw)
	var header map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(raw[8:8+n], &header))
	out := map[string]npyArray{}
	for name, doc := range header {
		var e struct {
			DType   string `json:"dtype"`
			Shape   []int  `json:"shape"`
			Offsets [2]int `json:"data_offsets"`
		}
		if name == "__metadata__" || json.Unmarshal(doc, &e) != nil || e.DType != "F32" {
			continue
		}
		data := raw[8+int(n)+e.Offsets[0] : 8+int(n)+e.Offsets[1]]
		values := make([]float32, len(data)/4)
		for i := range values {
			values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		out[name] = npyArray{e.Shape, values}
	}
	return out
}

type npyArray struct {
	shape []int
	data  []float32
}

var goldenExpert = regexp.MustCompile(`^layers\.(.+)\.expert\.(\d+)\.output$`)

func TestFixtures_EveryFamilyHostedHereAnswersThereWithTheGoldenOutputs(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(fixtures, "moe", "*"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(dirs), 12)
	var specs []string
	for _, d := range dirs {
		specs = append(specs, "--expert", "checkpoint="+d)
	}
	host := startNode(t, specs...)
	caller := startNode(t, "--bootstrap", host.Addrs[0])
	for _, d := range dirs {
		t.Run(filepath.Base(d), func(t *testing.T) {
			tensors := golden(t, filepath.Join(d, "golden.safetensors"))
			tried := 0
			for name, want := range tensors {
				m := goldenExpert.FindStringSubmatch(name)
				if m == nil {
					continue
				}
				tried++
				x := tensors["layers."+m[1]+".rows17.input"]
				rows, hidden := want.shape[0], want.shape[1]
				expertName := fmt.Sprintf("%s/%s/%s", filepath.Base(d), m[1], m[2])
				call := callThroughClient
				if tried == 1 { // a process each would take minutes for all of them
					call = callThroughCommand
				}
				res, shape, got := call(t, caller, expertName, []int{rows, hidden}, x.data[:rows*hidden])
				require.Equal(t, host.Peer, res.AnsweredBy.Peer)
				require.Equal(t, api.WhereRemote, res.AnsweredBy.Where)
				require.Equal(t, want.shape, shape)
				largest, worst := 0.0, 0.0
				for i, w := range want.data {
					largest = max(largest, math.Abs(float64(w)))
					worst = max(worst, math.Abs(float64(w)-float64(got[i])))
				}
				require.LessOrEqual(t, worst, 1e-5*largest, "%s: off by %g of the largest value", name, worst/largest)
			}
			require.NotZero(t, tried)
		})
	}
}

// callThroughCommand calls as a user does: `kwaaid call NAME --input x.npy --output y.npy`.
func callThroughCommand(t *testing.T, at *demo.Host, name string, shape []int, x []float32) (api.CallResult, []int, []float32) {
	t.Helper()
	in, out := filepath.Join(t.TempDir(), "x.npy"), filepath.Join(t.TempDir(), "y.npy")
	f, err := os.Create(in)
	require.NoError(t, err)
	require.NoError(t, npy.Write(f, shape, x))
	require.NoError(t, f.Close())
	res := decode[api.CallResult](t, kwaaid(t, "call", name, "--input", in, "--output", out, "--json", "--api", at.API).ok(t))
	f, err = os.Open(out)
	require.NoError(t, err)
	gotShape, got, err := npy.Read(f, maxInput)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return res, gotShape, got
}

// callThroughClient is what the command does, without a process for it.
func callThroughClient(t *testing.T, at *demo.Host, name string, shape []int, x []float32) (api.CallResult, []int, []float32) {
	t.Helper()
	res, y, err := at.Client.Call(t.Context(), api.CallRequest{Name: name, Input: tensor.New(tensor.WithShape(shape...), tensor.WithBacking(x))})
	require.NoError(t, err)
	return res, y.Shape(), y.Float32s()
}
