package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Layer is a MoE layer of a checkpoint: a block of experts with its router.
type Layer struct {
	// Name is LAYER in an expert's name: the checkpoint's number, or the module's dotted path in encoder-decoder models.
	Name string
	// Experts is how many the router chooses from.
	Experts int
	// Function is what each expert computes; its sizes and dtype are those of the stored tensors.
	Function expert.Function
	// ExpertBytes is what one expert takes in the files, and about what it takes in memory.
	ExpertBytes int64
	// Err says why the layer can't be used, such as a file that is missing; the other fields but Name are then zero.
	Err error

	checkpoint *Checkpoint
	net        network
}

// Load reads one expert and packs its weights. Of the others' bytes none are read. progress may be nil.
func (l *Layer) Load(ctx context.Context, index int, engine expert.Engine, progress Progress) (*expert.FFN, error) {
	if l.Err != nil {
		return nil, l.Err
	}
	if index < 0 || index >= l.Experts {
		return nil, fmt.Errorf("%s: layer %s has experts 0 to %d, not %d", l.checkpoint.dir, l.Name, l.Experts-1, index)
	}
	return l.net.load(ctx, index, engine, &l.checkpoint.buffers, progress)
}

// Router is what a layer chooses its experts by, widened to float32.
type Router struct {
	Weight     []float32 // [experts, hidden]
	Bias       []float32 // [experts]; added to the logits; nil: none
	ChoiceBias []float32 // [experts]; added to the scores for the choice only; nil: none
	SharedGate []float32 // [hidden]; its product with a row gates the shared expert's output; nil: none
}

// The names below the block that families have for the router's tensors. One family has at most one of each list.
var (
	routerNames     = []string{"gate.weight", "gate.wg.weight", "router.weight", "router.layer.weight", "router.classifier.weight"}
	routerBiasNames = []string{"gate.bias", "gate.wg.bias", "router.bias", "router.layer.bias", "router.classifier.bias"}
	choiceBiasNames = []string{"gate.e_score_correction_bias", "moe_statics.e_score_correction_bias", "e_score_correction_bias"}
	sharedGateNames = []string{"shared_expert_gate.weight"}
)

// firstOf returns the first of the names that the block has, or the first of all.
func firstOf(src *source, prefix string, names []string) string {
	for _, name := range names {
		if src.has(prefix + name) {
			return name
		}
	}
	return names[0]
}

// Router reads the layer's router.
func (l *Layer) Router() (*Router, error) {
	if l.Err != nil {
		return nil, l.Err
	}
	var r Router
	var errs [4]error
	r.Weight, errs[0] = l.floats(routerNames, true, l.Experts, l.Function.Hidden)
	r.Bias, errs[1] = l.floats(routerBiasNames, false, l.Experts)
	r.ChoiceBias, errs[2] = l.floats(choiceBiasNames, false, l.Experts)
	r.SharedGate, errs[3] = l.floats(sharedGateNames, false, l.Function.Hidden)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return &r, nil
}

// floats reads the first of the tensors that is there; axes of length 1 before the expected shape are fine.
func (l *Layer) floats(names []string, needed bool, shape ...int) ([]float32, error) {
	name := l.net.prefix + firstOf(l.net.src, l.net.prefix, names)
	if !needed && !l.net.src.has(name) {
		return nil, nil
	}
	t, err := l.net.src.find(name)
	if err != nil {
		return nil, err
	}
	found := t.Shape
	for len(found) > len(shape) && found[0] == 1 {
		found = found[1:]
	}
	if fmt.Sprint(found) != fmt.Sprint(shape) {
		return nil, t.errorf("expected %v, found %s", shape, t.found())
	}
	values, _, err := t.float32s()
	return values, err
}

// LoadShared reads the layer's shared expert; nil and no error where it has none. Several shared experts are published as one
// network of their inner sizes' sum.
func (l *Layer) LoadShared(ctx context.Context, engine expert.Engine) (*expert.FFN, error) {
	prefix := l.sharedPrefix()
	if l.Err != nil || prefix == "" {
		return nil, l.Err
	}
	c := l.checkpoint
	n := network{
		src: c.src, prefix: prefix,
		layout: &layout{families: "shared experts", kind: expert.KindGLU, activation: expert.ActivationSiLU, parts: projections("")},
	}
	if err := c.configure(&n); err != nil {
		return nil, err
	}
	n.sizes.hidden = l.Function.Hidden
	if err := n.measure(); err != nil {
		return nil, err
	}
	return n.load(ctx, 0, engine, &c.buffers, nil)
}

func (l *Layer) sharedPrefix() string {
	if l.Err != nil {
		return ""
	}
	for _, name := range sharedNames {
		prefix := l.net.prefix + name
		if l.net.src.has(prefix + "gate_proj.weight") {
			return prefix
		}
	}
	return ""
}
