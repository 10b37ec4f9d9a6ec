package demo

import (
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
	"github.com/kwaai/kwaaid/internal/moe"
)

// SwarmName is the demo's swarm: nobody else's.
const SwarmName = "kwaai-demo"

// ModelName is what the built-in model is called in the demo's swarm.
const ModelName = "tiny-mixtral-text"

// model is a Mixtral of 1.4 million parameters that models text byte by byte: 3 layers of 8 experts, of which each byte takes 2. Beside
// it lies what its layers are given when it reads a piece of Python.
//
//go:embed model
var model embed.FS

// activations is the file with what the layers are given: `layers.<L>.rows17.input`, 17 bytes of text.
const activations = "golden.safetensors"

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
		to := filepath.Join(dir, f.Name())
		if f.Name() == activations {
			to = activationsPath(dir)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return "", fmt.Errorf("unpacking the built-in model: %w", err)
		}
	}
	return dir, nil
}

// activationsPath is beside the model's directory: all safetensors within that are the model.
func activationsPath(dir string) string { return dir + "-" + activations }

// The sizes of the built-in model.
const (
	modelExperts = 8
	modelLayers  = 3
)

// nodeConfig returns the configuration of host n: of each expert, `replicas` neighbouring hosts have a copy.
func nodeConfig(model string, n, nodes int) string {
	var experts []string
	for e := range modelExperts {
		if (n-e%nodes+nodes)%nodes < replicas {
			experts = append(experts, strconv.Itoa(e))
		}
	}
	if len(experts) == 0 { // more hosts than experts need
		return "experts: []\n"
	}
	return fmt.Sprintf("experts:\n  - checkpoint: %q\n    model: %s\n    experts: %q\n", model, ModelName, strings.Join(experts, ","))
}

// known is a call whose right answer is known.
type known struct {
	layer  string
	input  *tensor.Dense
	sha256 string // of the output
}

// truth is what the model's layers answer to their activations, computed in this process: for every layer each row alone, and all
// together.
func truth(ctx context.Context, dir string) ([]known, error) {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // only read from
	given, err := checkpoint.OpenFile(activationsPath(dir))
	if err != nil {
		return nil, err
	}
	defer given.Close() //nolint:errcheck // only read from
	pool := kernel.NewPool(runtime.GOMAXPROCS(0))
	defer pool.Close()
	var all []known
	for _, l := range c.Layers() {
		name, err := expert.NewLayerName(ModelName, "", l.Name)
		if err != nil {
			return nil, err
		}
		layer := moe.Layer{Name: name}
		if layer.Gate, err = moe.LoadGate(c, l); err != nil { //nolint:contextcheck // a router is read in a moment
			return nil, err
		}
		here, err := loadHere(ctx, name, l, expert.Engine{Pool: pool})
		if err != nil {
			return nil, err
		}
		rows, _, err := given.Float32s("layers." + l.Name + ".rows17.input") //nolint:contextcheck // 8 KiB
		if err != nil {
			return nil, err
		}
		hidden := l.Function.Hidden
		inputs := []*tensor.Dense{expert.NewRows(rows, hidden)}
		for at := 0; at < len(rows); at += hidden {
			inputs = append(inputs, expert.NewRows(rows[at:at+hidden], hidden))
		}
		for _, x := range inputs {
			out, err := layer.Forward(ctx, here, moe.Call{X: x})
			if err != nil {
				return nil, err
			}
			all = append(all, known{name.String(), x, api.HashOutput(out.Y.Float32s())})
		}
	}
	return all, nil
}

// hereExperts are all experts of a layer in this process.
type hereExperts map[expert.ID]expert.Expert

func loadHere(ctx context.Context, name expert.LayerName, l *checkpoint.Layer, engine expert.Engine) (hereExperts, error) {
	here := hereExperts{}
	for i := range l.Experts {
		e, err := l.Load(ctx, i, engine, nil)
		if err != nil {
			return nil, err
		}
		here[name.Expert(i).ID()] = e
	}
	return here, nil
}

// Dispatch computes every pair's rows here.
func (h hereExperts) Dispatch(ctx context.Context, x *tensor.Dense, pairs []expert.Pair, _ func(int, bool)) ([]moe.Answer, error) {
	hidden := x.Shape()[1]
	values, err := expert.Rows(x, hidden)
	if err != nil {
		return nil, err
	}
	answers := make([]moe.Answer, len(pairs))
	for i, p := range pairs {
		rows := make([]float32, 0, len(p.Rows)*hidden)
		for _, r := range p.Rows {
			rows = append(rows, values[int(r)*hidden:(int(r)+1)*hidden]...)
		}
		answers[i].Output, answers[i].Err = h[p.Expert].Forward(ctx, expert.NewRows(rows, hidden))
	}
	return answers, nil
}
