package demo

import (
	"context"
	"embed"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// SwarmName is the demo's swarm: nobody else's.
const SwarmName = "kwaai-demo"

// modelName is what the built-in model is called in the demo's swarm.
const modelName = "tiny-mixtral-text"

// model is a Mixtral of 1.4 million parameters that models text byte by byte: 3 layers of 8 experts.
//
//go:embed model
var model embed.FS

// unpackModel writes the built-in model to a directory and returns that.
func unpackModel(dir string) (string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	files, err := model.ReadDir("model")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		data, err := model.ReadFile("model/" + f.Name())
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name()), data, 0o600); err != nil {
			return "", fmt.Errorf("unpacking the built-in model: %w", err)
		}
	}
	return dir, nil
}

// modelExperts is how many experts a layer of the built-in model has.
const modelExperts = 8

// nodeConfig returns the configuration of host n: of each expert, `replicas` neighbouring hosts have a copy.
func nodeConfig(model string, n, nodes int) string {
	var experts []string
	for e := range modelExperts {
		if (n-e%nodes+nodes)%nodes < replicas {
			experts = append(experts, fmt.Sprint(e))
		}
	}
	if len(experts) == 0 { // more hosts than experts need
		return "experts: []\n"
	}
	return fmt.Sprintf("experts:\n  - checkpoint: %q\n    model: %s\n    experts: %q\n", model, modelName, strings.Join(experts, ","))
}

// known is a call whose right answer is known.
type known struct {
	name   string
	input  *tensor.Dense
	sha256 string // of the output
}

// rowsPerCall is how many tokens a call of the demo carries.
const rowsPerCall = 4

// computeTruth computes in this process what every expert of the model answers to some rows.
func computeTruth(ctx context.Context, dir string) ([]known, error) {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // only read from
	pool := kernel.NewPool(runtime.GOMAXPROCS(0))
	defer pool.Close()
	dice := rand.New(rand.NewPCG(0, 0))
	var truth []known
	for _, l := range c.Layers() {
		layer, err := expert.NewLayerName(modelName, "", l.Name)
		if err != nil {
			return nil, err
		}
		for i := range l.Experts {
			e, err := l.Load(ctx, i, expert.Engine{Pool: pool}, nil)
			if err != nil {
				return nil, err
			}
			rows := make([]float32, rowsPerCall*l.Function.Hidden)
			for i := range rows {
				rows[i] = float32(dice.NormFloat64())
			}
			x := expert.NewRows(rows, l.Function.Hidden)
			y, err := e.Forward(ctx, x)
			if err != nil {
				return nil, err
			}
			values, err := expert.Rows(y, l.Function.Hidden)
			if err != nil {
				return nil, err
			}
			truth = append(truth, known{layer.Expert(i).String(), x, api.HashOutput(values)})
		}
	}
	return truth, nil
}
