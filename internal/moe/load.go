package moe

import (
	"fmt"
	"strconv"

	"github.com/kwaai/kwaaid/internal/checkpoint"
)

// LoadGate reads a layer's router from its checkpoint and its rule from config.json.
func LoadGate(c *checkpoint.Checkpoint, l *checkpoint.Layer) (*Gate, error) {
	layer, err := strconv.Atoi(l.Name)
	if err != nil {
		layer = 0 // a module's path; no family with such has a key with one value per layer
	}
	rule, err := RuleOf(c.Config(), layer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Dir(), err)
	}
	r, err := l.Router()
	if err != nil {
		return nil, err
	}
	gate, err := NewGate(rule, Tensors{Weight: r.Weight, Bias: r.Bias, ChoiceBias: r.ChoiceBias, SharedGate: r.SharedGate}, l.Function.Hidden)
	if err != nil {
		return nil, fmt.Errorf("%s: layer %s: %w", c.Dir(), l.Name, err)
	}
	return gate, nil
}
