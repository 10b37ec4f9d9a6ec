package checkpoint

import "github.com/kwaai/kwaaid/internal/expert"

// part is one tensor of a layout: where it stands, how its elements lie, and what they are for.
type part struct {
	// tensor is its name below the MoE block; {e} stands for the expert's number.
	tensor string
	// axes, slowest first, joined by commas: experts, inner, 2*inner, hidden, experts*inner. Without the experts these are
	// the axes of a manifest's slice.
	axes string
	// plays is the part of a manifest's slice: gate, up, down, gate+up, gate|up, with .bias behind it.
	plays string
	// optional parts may be missing.
	optional bool
}

// layout is one way in which checkpoints store the experts of a block. Families that share one need no line of their own:
// checkpoints are recognised by their tensors, not by the names of classes.
type layout struct {
	// families names some that have it, for people.
	families string
	kind     string
	parts    []part
	// mxfp4: the tensors are stored as X_blocks and X_scales; axes say what the numbers mean.
	mxfp4 bool
	// activation where config.json does not tell; swiglu_clamped is never overruled by it.
	activation string
}

// layouts holds all that we know, the first that fits wins. A new family with another layout is an entry here.
var layouts = []layout{
	{
		families: "mixtral, minimax, phimoe", kind: expert.KindGLU, activation: expert.ActivationSiLU,
		parts: []part{
			{tensor: "experts.{e}.w1.weight", axes: "inner,hidden", plays: "gate"},
			{tensor: "experts.{e}.w3.weight", axes: "inner,hidden", plays: "up"},
			{tensor: "experts.{e}.w2.weight", axes: "hidden,inner", plays: "down"},
			{tensor: "experts.{e}.w1.bias", axes: "inner", plays: "gate.bias", optional: true},
			{tensor: "experts.{e}.w3.bias", axes: "inner", plays: "up.bias", optional: true},
			{tensor: "experts.{e}.w2.bias", axes: "hidden", plays: "down.bias", optional: true},
		},
	},
	{
		families: "qwen2_moe, qwen3_moe, olmoe, deepseek, glm4_moe, ernie4_5_moe, hunyuan_v1_moe, jamba",
		kind:     expert.KindGLU, activation: expert.ActivationSiLU,
		parts: projections("experts.{e}."),
	},
	{
		families: "granitemoe", kind: expert.KindGLU, activation: expert.ActivationSiLU,
		parts: []part{
			{tensor: "input_linear.weight", axes: "experts,2*inner,hidden", plays: "gate+up"},
			{tensor: "output_linear.weight", axes: "experts,hidden,inner", plays: "down"},
		},
	},
	{
		families: "gpt_oss", kind: expert.KindGLU, activation: expert.ActivationSwiGLUClamped,
		parts: []part{
			{tensor: "experts.gate_up_proj", axes: "experts,hidden,2*inner", plays: "gate|up"},
			{tensor: "experts.gate_up_proj_bias", axes: "experts,2*inner", plays: "gate|up.bias"},
			{tensor: "experts.down_proj", axes: "experts,inner,hidden", plays: "down"},
			{tensor: "experts.down_proj_bias", axes: "experts,hidden", plays: "down.bias"},
		},
	},
	{
		families: "gpt_oss in mxfp4", kind: expert.KindGLU, activation: expert.ActivationSwiGLUClamped, mxfp4: true,
		parts: []part{
			{tensor: "experts.gate_up_proj", axes: "experts,2*inner,hidden", plays: "gate|up"},
			{tensor: "experts.gate_up_proj_bias", axes: "experts,2*inner", plays: "gate|up.bias"},
			{tensor: "experts.down_proj", axes: "experts,hidden,inner", plays: "down"},
			{tensor: "experts.down_proj_bias", axes: "experts,hidden", plays: "down.bias"},
		},
	},
	{
		families: "dbrx", kind: expert.KindGLU, activation: expert.ActivationSiLU,
		parts: []part{
			{tensor: "experts.mlp.w1", axes: "experts*inner,hidden", plays: "gate"},
			{tensor: "experts.mlp.v1", axes: "experts*inner,hidden", plays: "up"},
			{tensor: "experts.mlp.w2", axes: "experts*inner,hidden", plays: "down"},
		},
	},
	{
		families: "llama4", kind: expert.KindGLU, activation: expert.ActivationSiLU,
		parts: []part{
			{tensor: "experts.gate_up_proj", axes: "experts,hidden,2*inner", plays: "gate+up"},
			{tensor: "experts.down_proj", axes: "experts,inner,hidden", plays: "down"},
		},
	},
	{
		families: "experts stacked by transformers 5", kind: expert.KindGLU, activation: expert.ActivationSiLU,
		parts: []part{
			{tensor: "experts.gate_up_proj", axes: "experts,2*inner,hidden", plays: "gate+up"},
			{tensor: "experts.down_proj", axes: "experts,hidden,inner", plays: "down"},
		},
	},
	{
		families: "switch_transformers", kind: expert.KindMLP, activation: expert.ActivationReLU,
		parts: []part{
			{tensor: "experts.expert_{e}.wi.weight", axes: "inner,hidden", plays: "up"},
			{tensor: "experts.expert_{e}.wo.weight", axes: "hidden,inner", plays: "down"},
		},
	},
}

// sharedNames are where a block keeps the expert that every row goes through.
var sharedNames = []string{"shared_expert.", "shared_experts.", "shared_mlp."}

// projections is the layout of one network with a tensor for each projection.
func projections(prefix string) []part {
	return []part{
		{tensor: prefix + "gate_proj.weight", axes: "inner,hidden", plays: "gate"},
		{tensor: prefix + "up_proj.weight", axes: "inner,hidden", plays: "up"},
		{tensor: prefix + "down_proj.weight", axes: "hidden,inner", plays: "down"},
		{tensor: prefix + "gate_proj.bias", axes: "inner", plays: "gate.bias", optional: true},
		{tensor: prefix + "up_proj.bias", axes: "inner", plays: "up.bias", optional: true},
		{tensor: prefix + "down_proj.bias", axes: "hidden", plays: "down.bias", optional: true},
	}
}

// singleLayouts are those of a single expert's file (contract, section 5), by kind.
var singleLayouts = map[string][]layout{
	expert.KindGLU: {
		{families: "gate_proj, up_proj, down_proj", kind: expert.KindGLU, parts: projections("")},
		{families: "w1, w3, w2", kind: expert.KindGLU, parts: []part{
			{tensor: "w1", axes: "inner,hidden", plays: "gate"},
			{tensor: "w3", axes: "inner,hidden", plays: "up"},
			{tensor: "w2", axes: "hidden,inner", plays: "down"},
			{tensor: "w1.bias", axes: "inner", plays: "gate.bias", optional: true},
			{tensor: "w3.bias", axes: "inner", plays: "up.bias", optional: true},
			{tensor: "w2.bias", axes: "hidden", plays: "down.bias", optional: true},
		}},
		{families: "w1.weight, w3.weight, w2.weight", kind: expert.KindGLU, parts: []part{
			{tensor: "w1.weight", axes: "inner,hidden", plays: "gate"},
			{tensor: "w3.weight", axes: "inner,hidden", plays: "up"},
			{tensor: "w2.weight", axes: "hidden,inner", plays: "down"},
			{tensor: "w1.bias", axes: "inner", plays: "gate.bias", optional: true},
			{tensor: "w3.bias", axes: "inner", plays: "up.bias", optional: true},
			{tensor: "w2.bias", axes: "hidden", plays: "down.bias", optional: true},
		}},
	},
	expert.KindMLP: {
		{families: "w1, b1, w2, b2", kind: expert.KindMLP, parts: []part{
			{tensor: "w1", axes: "inner,hidden", plays: "up"},
			{tensor: "w2", axes: "hidden,inner", plays: "down"},
			{tensor: "b1", axes: "inner", plays: "up.bias", optional: true},
			{tensor: "b2", axes: "hidden", plays: "down.bias", optional: true},
			{tensor: "norm.weight", axes: "hidden", plays: "norm.weight", optional: true},
			{tensor: "norm.bias", axes: "hidden", plays: "norm.bias", optional: true},
		}},
	},
}
