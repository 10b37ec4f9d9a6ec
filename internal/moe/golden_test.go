package moe_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
	"github.com/kwaai/kwaaid/internal/moe"
)

const fixtures = "../../testdata/fixtures"

// more lets a developer try checkpoints of other seeds and sizes.
var more = flag.String("fixtures", "", "a pattern of directories with further golden checkpoints")

// layer is a MoE layer with all its experts at hand.
type layer struct {
	gate    *moe.Gate
	experts []*expert.FFN
	shared  *expert.FFN
	golden  *checkpoint.File
	prefix  string // of the golden tensors
}

// eachLayer runs a test for every MoE layer of every checkpoint with golden values.
func eachLayer(t *testing.T, run func(t *testing.T, l layer)) {
	pool := kernel.NewPool(2)
	t.Cleanup(pool.Close)
	engine := expert.Engine{Pool: pool}
	checkpointtest.EachGolden(t, fixtures, *more, func(t *testing.T, f checkpointtest.Golden) {
		golden, err := checkpoint.OpenFile(filepath.Join(f.Dir, "golden.safetensors"))
		require.NoError(t, err)
		defer golden.Close()
		c, err := checkpoint.Open(f.Dir)
		require.NoError(t, err)
		defer c.Close()
		for _, at := range f.Layers {
			from := c.Layer(at.Layer)
			l := layer{golden: golden, prefix: at.Golden}
			l.gate, err = moe.LoadGate(c, from)
			require.NoError(t, err)
			for e := range from.Experts {
				one, err := from.Load(t.Context(), e, engine, nil)
				require.NoError(t, err)
				l.experts = append(l.experts, one)
			}
			l.shared, err = from.LoadShared(t.Context(), engine)
			require.NoError(t, err)
			run(t, l)
		}
	})
}

// floats reads a golden tensor.
func (l layer) floats(t *testing.T, name string) []float32 {
	values, _, err := l.golden.Float32s(l.prefix + "." + name)
	require.NoError(t, err)
	return values
}

// near compares with a golden tensor.
func (l layer) near(t *testing.T, name string, got []float32) {
	t.Helper()
	checkpointtest.Near(t, l.floats(t, name), got, l.prefix+"."+name)
}

// forward computes the whole layer from the parts of this package and the experts at hand.
func (l layer) forward(t *testing.T, x []float32, routing *moe.Routing) []float32 {
	hidden := l.gate.Hidden()
	groups := routing.Groups(l.gate.Rule().ScaleInput)
	y := make([]float32, len(x))
	moe.Combine(y, hidden, groups, l.outputs(t, x, groups))
	if l.shared != nil {
		shared := make([]float32, len(x))
		require.NoError(t, l.shared.ForwardRows(t.Context(), shared, x))
		moe.AddShared(y, shared, hidden, l.gate.SharedScale(x))
	}
	return y
}

// outputs runs each group through its expert.
func (l layer) outputs(t *testing.T, x []float32, groups []moe.Group) [][]float32 {
	hidden := l.gate.Hidden()
	batch, rows := x, make([][]int32, len(groups))
	for i, g := range groups {
		rows[i] = g.Rows
	}
	if l.gate.Rule().ScaleInput {
		batch, rows = moe.Scaled(x, hidden, groups)
	}
	outputs := make([][]float32, len(groups))
	for i, g := range groups {
		var in []float32
		for _, r := range rows[i] {
			in = append(in, batch[int(r)*hidden:(int(r)+1)*hidden]...)
		}
		outputs[i] = make([]float32, len(in))
		require.NoError(t, l.experts[g.Expert].ForwardRows(t.Context(), outputs[i], in))
	}
	return outputs
}

func TestLayer_GivesTheGoldenValuesOfEveryFamily(t *testing.T) {
	eachLayer(t, func(t *testing.T, l layer) {
		for _, rows := range []string{"rows17", "rows1"} {
			x := l.floats(t, rows+".input")
			routing := l.gate.Route(x, len(x)/l.gate.Hidden())
			l.near(t, rows+".router_logits", routing.Logits)
			l.near(t, rows+".weights", routing.Weights)
			want, _, err := l.golden.Int64s(l.prefix + "." + rows + ".indices")
			require.NoError(t, err)
			got := make([]int64, len(routing.Indices))
			for i, e := range routing.Indices {
				got[i] = int64(e)
			}
			require.Equal(t, want, got, "%s.%s", l.prefix, rows)
			l.near(t, rows+".block_output", l.forward(t, x, routing))

			// A caller who routes himself gets the same.
			chosen, err := moe.Chosen(want, routing.Weights, routing.Rows, routing.Experts)
			require.NoError(t, err)
			require.Equal(t, l.forward(t, x, routing), l.forward(t, x, chosen))
		}
	})
}

func TestRoute_ARowDoesNotDependOnItsNeighbours(t *testing.T) {
	eachLayer(t, func(t *testing.T, l layer) {
		if l.gate.Rule().Capacity > 0 {
			t.Skip("an expert's capacity makes rows of a sequence depend on each other")
		}
		x, hidden := l.floats(t, "rows17.input"), l.gate.Hidden()
		all := l.gate.Route(x, len(x)/hidden)
		tail := l.gate.Route(x[hidden:], len(x)/hidden-1)
		require.Equal(t, all.Indices[all.K:], tail.Indices)
		require.Equal(t, all.Weights[all.K:], tail.Weights)
		require.Equal(t, l.forward(t, x, all)[hidden:], l.forward(t, x[hidden:], tail))
	})
}
