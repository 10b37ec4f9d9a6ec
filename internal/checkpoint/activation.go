package checkpoint

import (
	"fmt"
	"strings"

	"github.com/kwaai/kwaaid/internal/expert"
)

const (
	swigluClamped = expert.ActivationSwiGLUClamped
	// defaultSwigluLimit is what transformers takes for gpt-oss where config.json has none.
	defaultSwigluLimit = 7
)

// activations maps the names that transformers has for activations to ours; names that mean the same function stand side by side.
var activations = map[string]string{
	"silu": expert.ActivationSiLU, "swish": expert.ActivationSiLU,
	"gelu": expert.ActivationGELU, "gelu_python": expert.ActivationGELU,
	"gelu_new": expert.ActivationGELUTanh, "gelu_pytorch_tanh": expert.ActivationGELUTanh, "gelu_tanh": expert.ActivationGELUTanh,
	"relu": expert.ActivationReLU,
}

// activation returns the function that config.json names, else the layout's.
func (c *Config) activation(layouts string) (string, error) {
	if layouts == swigluClamped { // transformers runs it whatever hidden_act says
		return layouts, nil
	}
	name, err := c.String("", "hidden_act", "hidden_activation", "dense_act_fn")
	if err == nil && name == "" {
		name, err = c.Section("ffn_config").Section("ffn_act_fn").String("", "name") // dbrx
	}
	if err == nil && name == "" {
		name, err = c.String("", "feed_forward_proj") // switch_transformers; "gated-" would be another layout
	}
	if err != nil || name == "" {
		return layouts, err
	}
	ours, ok := activations[strings.ToLower(name)]
	if !ok {
		return "", fmt.Errorf("%s: the activation %q is not known", c.path, name)
	}
	return ours, nil
}

// weightBlock returns the rows and columns of a float8 block; zeros where config.json has none.
func (c *Config) weightBlock() (block [2]int, err error) {
	for _, section := range []*Config{c.Section("quantization_config"), c.top().Section("quantization_config")} {
		sizes, err := section.Ints("weight_block_size")
		if err != nil {
			return block, err
		}
		if len(sizes) == 2 {
			return [2]int(sizes), nil
		}
	}
	return block, nil
}

// top returns the same file with its keys looked up outside the text model's section.
func (c *Config) top() *Config { return &Config{path: c.path, root: c.root, text: c.root} }
