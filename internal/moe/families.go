package moe

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kwaai/kwaaid/internal/checkpoint"
)

// configReader reads keys of a config.json and keeps the first error.
type configReader struct {
	*checkpoint.Config
	layer int // counts from 0; for keys with one value per layer
	err   error
}

func (c *configReader) int(otherwise int, keys ...string) int {
	v, err := c.Int(otherwise, keys...)
	c.err = errors.Join(c.err, err)
	return v
}

func (c *configReader) float(otherwise float64, keys ...string) float64 {
	v, err := c.Float(otherwise, keys...)
	c.err = errors.Join(c.err, err)
	return v
}

func (c *configReader) bool(otherwise bool, keys ...string) bool {
	v, err := c.Bool(otherwise, keys...)
	c.err = errors.Join(c.err, err)
	return v
}

func (c *configReader) string(otherwise string, keys ...string) string {
	v, err := c.String(otherwise, keys...)
	c.err = errors.Join(c.err, err)
	return v
}

// scale reads the factor by which the weights are multiplied.
func (c *configReader) scale(otherwise float64) float64 {
	v := c.float(otherwise, "routed_scaling_factor")
	if v == 0 {
		c.err = errors.Join(c.err, errors.New("routed_scaling_factor is 0: no expert would count"))
	}
	return v
}

func (c *configReader) section(key string) *configReader {
	return &configReader{Config: c.Section(key), layer: c.layer}
}

// families holds the rules by model_type: as transformers 5.23 computes them in evaluation mode, with its defaults where
// config.json has no such key.
var families = map[string]func(c *configReader) Rule{
	"mixtral":    softmaxThenTopK(2, true),
	"minimax":    softmaxThenTopK(2, true),
	"jamba":      softmaxThenTopK(2, false),
	"qwen2_moe":  softmaxNormIfAsked(4),
	"qwen3_moe":  softmaxNormIfAsked(8),
	"olmoe":      softmaxNormIfAsked(8),
	"gpt_oss":    topKThenSoftmax(4),
	"granitemoe": topKThenSoftmax(2),
	"hunyuan_v1_moe": func(c *configReader) Rule {
		k, err := c.IntAt(c.layer, 1, "moe_topk")
		c.err = errors.Join(c.err, err)
		return Rule{TopK: k, Norm: NormSum}
	},
	"deepseek_v2": deepseekV2,
	"deepseek_v3": sigmoidWithBias(8, 4, 2.5),
	"glm4_moe":    sigmoidWithBias(1, 1, 1),
	"ernie4_5_moe": func(c *configReader) Rule {
		return Rule{TopK: c.int(6, "moe_k"), Norm: NormSumMin, Floor: c.float(1e-12, "moe_norm_min")}
	},
	"phimoe": func(c *configReader) Rule {
		return Rule{TopK: c.int(2, "num_experts_per_tok"), Jitter: c.float(0.01, "router_jitter_noise")}
	},
	"dbrx": dbrx,
	"llama4": func(c *configReader) Rule {
		return Rule{TopK: c.int(1, "num_experts_per_tok"), Score: ScoreLogit, Weight: WeightSigmoid, ScaleInput: true}
	},
	"switch_transformers": func(c *configReader) Rule {
		return Rule{TopK: 1, Capacity: c.int(64, "expert_capacity")}
	},
}

func softmaxThenTopK(k int, normalise bool) func(c *configReader) Rule {
	return func(c *configReader) Rule {
		r := Rule{TopK: c.int(k, "num_experts_per_tok")}
		if normalise {
			r.Norm = NormSum
		}
		return r
	}
}

func softmaxNormIfAsked(k int) func(c *configReader) Rule {
	return func(c *configReader) Rule { return softmaxThenTopK(k, c.bool(false, "norm_topk_prob"))(c) }
}

func topKThenSoftmax(k int) func(c *configReader) Rule {
	return func(c *configReader) Rule {
		return Rule{TopK: c.int(k, "num_experts_per_tok", "experts_per_token"), Score: ScoreLogit, Weight: WeightChosenSoftmax}
	}
}

func deepseekV2(c *configReader) Rule {
	r := Rule{TopK: c.int(0, "num_experts_per_tok"), Scale: c.scale(1)}
	if r.TopK == 0 {
		c.err = errors.Join(c.err, errors.New("num_experts_per_tok is missing"))
	}
	switch method := c.string("greedy", "topk_method"); method {
	case "greedy":
	case "group_limited_greedy":
		r.Groups, r.KeptGroups, r.GroupScore = c.int(0, "n_group"), c.int(0, "topk_group"), GroupMax
		if r.Groups == 0 {
			c.err = errors.Join(c.err, errors.New("topk_method group_limited_greedy needs n_group and topk_group"))
		}
	default:
		c.err = errors.Join(c.err, fmt.Errorf("topk_method %q is not known: expected greedy or group_limited_greedy", method))
	}
	return r
}

func sigmoidWithBias(groups, kept int, scale float64) func(c *configReader) Rule {
	return func(c *configReader) Rule {
		r := Rule{
			TopK: c.int(8, "num_experts_per_tok"), Score: ScoreSigmoid,
			Groups: c.int(groups, "n_group"), KeptGroups: c.int(kept, "topk_group"), GroupScore: GroupTopTwo,
			Scale: c.scale(scale),
		}
		if c.bool(true, "norm_topk_prob") {
			r.Norm, r.Floor = NormSum, 1e-20
		}
		return r
	}
}

func dbrx(c *configReader) Rule {
	f := c.section("ffn_config")
	r := Rule{TopK: f.int(1, "moe_top_k"), Norm: NormPower, NormP: f.float(1, "moe_normalize_expert_weights")}
	if f.IsNull("moe_normalize_expert_weights") {
		r.Norm = NormNone
	}
	c.err = errors.Join(c.err, f.err)
	return r
}

// RuleOf reads the routing rule of a layer from config.json. layer is the layer's number from 0, for keys with one value per layer. The
// error matches ErrRouting; it names the model type where its rule is not known.
func RuleOf(config *checkpoint.Config, layer int) (Rule, error) {
	family, known := families[config.ModelType()]
	if !known {
		return Rule{}, fmt.Errorf("%w: the routing rule of model_type %q (%s) is not known: known are %s", ErrRouting,
			config.ModelType(), config.Architecture(), strings.Join(slices.Sorted(maps.Keys(families)), ", "))
	}
	c := &configReader{Config: config, layer: layer}
	r := family(c)
	if r.Scale == 0 {
		r.Scale = 1
	}
	r.BalanceCoef = c.float(0.001, "router_aux_loss_coef", "aux_loss_alpha")
	if c.err != nil {
		return Rule{}, fmt.Errorf("%w: model_type %s: %w", ErrRouting, config.ModelType(), c.err)
	}
	return r, nil
}
