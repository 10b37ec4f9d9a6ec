package checkpointtest

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Golden is a checkpoint with golden values of its experts and layers, which stand in golden.safetensors: what its fixture.json says.
type Golden struct {
	Dir    string `json:"-"`
	Family string `json:"family"`
	Dims   struct {
		Hidden  int `json:"hidden"`
		Inner   int `json:"expert_intermediate"`
		Experts int `json:"experts"`
		Shared  int `json:"shared_expert_intermediate"`
	} `json:"dims"`
	Layers []struct {
		Layer  string `json:"layer"`
		Golden string `json:"golden_prefix"` // of the names of its values
	} `json:"moe_layers"`
}

// ReadGolden reads the fixture.json of a checkpoint.
func ReadGolden(t testing.TB, dir string) Golden {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "fixture.json"))
	require.NoError(t, err)
	g := Golden{Dir: dir}
	require.NoError(t, json.Unmarshal(raw, &g))
	return g
}

// EachGolden runs a test for every checkpoint with golden values in a directory of fixtures, and for those that match another pattern.
func EachGolden(t *testing.T, fixtures, more string, run func(t *testing.T, g Golden)) {
	t.Helper()
	dirs := []string{fixtures + "/tiny-mixtral-text"}
	for _, pattern := range []string{fixtures + "/moe/*", fixtures + "/more/*", more} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		dirs = append(dirs, found...)
	}
	require.GreaterOrEqual(t, len(dirs), 1+12+11)
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) { run(t, ReadGolden(t, dir)) })
	}
}

// Near compares with golden values, to 1e-5 of the largest of them.
func Near(t testing.TB, want, got []float32, name string) {
	t.Helper()
	require.Len(t, got, len(want), name)
	var largest, worst float64
	for i, v := range want {
		largest = max(largest, math.Abs(float64(v)))
		worst = max(worst, math.Abs(float64(v)-float64(got[i])))
	}
	require.LessOrEqual(t, worst, 1e-5*largest, "%s: off by %g of the largest value", name, worst/largest)
}
