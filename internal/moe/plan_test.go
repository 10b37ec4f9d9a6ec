package moe_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/moe"
)

var nan = float32(math.NaN())

// gate returns a gate whose logits the test makes up.
func gate(t *testing.T, rule moe.Rule, experts int, choiceBias ...float32) *moe.Gate {
	if rule.Scale == 0 {
		rule.Scale = 1
	}
	g, err := moe.NewGate(rule, moe.Tensors{Weight: make([]float32, experts), ChoiceBias: choiceBias}, 1)
	require.NoError(t, err)
	return g
}

func TestChoose_TiesGoToTheLowerIndex(t *testing.T) {
	for _, score := range []moe.Score{moe.ScoreSoftmax, moe.ScoreSigmoid, moe.ScoreLogit} {
		r := gate(t, moe.Rule{TopK: 3, Score: score}, 6).Choose([]float32{1, 2, 1, 2, 1, 1}, 1)
		require.Equal(t, []int32{1, 3, 0}, r.Indices)
	}
	r := gate(t, moe.Rule{TopK: 2, Jitter: 0.01}, 4).Choose([]float32{5, 5, 5, 0}, 1)
	require.Equal(t, []int32{0, 1}, r.Indices)
	// Groups tie too: of {0,1}, {2,3}, {4,5} all with one sum, the first two stay.
	r = gate(t, moe.Rule{TopK: 2, Score: moe.ScoreSigmoid, Groups: 3, KeptGroups: 2, GroupScore: moe.GroupTopTwo}, 6).
		Choose([]float32{0, 1, 1, 0, 0, 1}, 1)
	require.Equal(t, []int32{1, 2}, r.Indices)
}

func TestChoose_AgreesWithASort(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		experts := 1 + dice.IntN(40)
		k := 1 + dice.IntN(experts)
		logits := make([]float32, experts)
		for e := range logits {
			logits[e] = float32(dice.IntN(8)) // many ties
		}
		order := make([]int32, experts)
		for e := range order {
			order[e] = int32(e)
		}
		slices.SortStableFunc(order, func(a, b int32) int { return int(logits[b]) - int(logits[a]) })
		r := gate(t, moe.Rule{TopK: k, Score: moe.ScoreLogit}, experts).Choose(logits, 1)
		require.Equal(t, order[:k], r.Indices, "%v", logits)
	}
}

func TestChoose_SurvivesWhatIsNotANumber(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, rule := range []moe.Rule{
		{TopK: 2},
		{TopK: 2, Score: moe.ScoreSigmoid},
		{TopK: 2, Jitter: 0.1},
		{TopK: 1, Capacity: 1},
		{TopK: 2, Score: moe.ScoreLogit, Weight: moe.WeightChosenSoftmax},
		{TopK: 2, Score: moe.ScoreSigmoid, Groups: 2, KeptGroups: 1, GroupScore: moe.GroupTopTwo},
	} {
		for _, logits := range [][]float32{{nan, nan, nan, nan}, {1, nan, 2, nan}, {inf, inf, -inf, 0}, {-inf, -inf, -inf, -inf}} {
			r := gate(t, rule, 4).Choose(logits, 1)
			seen := map[int32]bool{}
			for _, e := range r.Indices {
				require.True(t, 0 <= e && e < 4 && !seen[e], "%+v %v: %v", rule, logits, r.Indices)
				seen[e] = true
			}
		}
	}
	r := gate(t, moe.Rule{TopK: 2, Score: moe.ScoreLogit}, 4).Choose([]float32{nan, 1, nan, 2}, 1)
	require.Equal(t, []int32{3, 1}, r.Indices, "what is not a number comes last")
}

func TestChoose_CapacityCountsPerSequence(t *testing.T) {
	g := gate(t, moe.Rule{TopK: 1, Capacity: 2}, 2)
	logits := []float32{1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0} // experts 0 0 0 1 0 0
	require.Equal(t, []int32{0, 0, -1, 1, -1, -1}, g.Choose(logits, 6).Indices)
	r := g.Choose(logits, 3)
	require.Equal(t, []int32{0, 0, -1, 1, 0, 0}, r.Indices)
	require.Zero(t, r.Weights[2])
	require.Equal(t, []int{4, 1}, r.RowsPerExpert())
}

func TestChoose_TheBiasDecidesTheChoiceAlone(t *testing.T) {
	r := gate(t, moe.Rule{TopK: 1, Score: moe.ScoreSigmoid}, 3, 0, 0, 5).Choose([]float32{2, 1, 0}, 1)
	require.Equal(t, []int32{2}, r.Indices)
	require.InDelta(t, 0.5, r.Weights[0], 1e-7)
}

func TestNewGate_ComparesRuleAndTensors(t *testing.T) {
	good := moe.Rule{TopK: 2, Scale: 1}
	for name, spoil := range map[string]func(r *moe.Rule, w *moe.Tensors){
		"more than there are": func(r *moe.Rule, _ *moe.Tensors) { r.TopK = 7 },
		"none":                func(r *moe.Rule, _ *moe.Tensors) { r.TopK = 0 },
		"groups":              func(r *moe.Rule, _ *moe.Tensors) { r.Groups, r.KeptGroups = 4, 1 },
		"kept groups":         func(r *moe.Rule, _ *moe.Tensors) { r.Groups, r.KeptGroups = 3, 4 },
		"too few in groups": func(r *moe.Rule, _ *moe.Tensors) {
			r.Groups, r.KeptGroups, r.TopK, r.GroupScore = 3, 1, 3, moe.GroupTopTwo
		},
		"capacity":    func(r *moe.Rule, _ *moe.Tensors) { r.Capacity = 1 },
		"sparsemixer": func(r *moe.Rule, _ *moe.Tensors) { r.Jitter, r.TopK = 0.1, 3 },
		"scale":       func(r *moe.Rule, _ *moe.Tensors) { r.Scale = 0 },
		"norm":        func(r *moe.Rule, _ *moe.Tensors) { r.Norm = moe.NormPower },
		"weights":     func(_ *moe.Rule, w *moe.Tensors) { w.Weight = w.Weight[1:] },
		"no weights":  func(_ *moe.Rule, w *moe.Tensors) { w.Weight = nil },
		"bias":        func(_ *moe.Rule, w *moe.Tensors) { w.Bias = make([]float32, 5) },
		"choice bias": func(_ *moe.Rule, w *moe.Tensors) { w.ChoiceBias = make([]float32, 5) },
		"shared gate": func(_ *moe.Rule, w *moe.Tensors) { w.SharedGate = make([]float32, 5) },
	} {
		rule, tensors := good, moe.Tensors{Weight: make([]float32, 6*4)}
		spoil(&rule, &tensors)
		_, err := moe.NewGate(rule, tensors, 4)
		require.ErrorIs(t, err, moe.ErrRouting, name)
	}
}

func TestRuleOf_TakesTransformersDefaults(t *testing.T) {
	for modelType, want := range map[string]moe.Rule{
		"mixtral":             {TopK: 2, Norm: moe.NormSum},
		"minimax":             {TopK: 2, Norm: moe.NormSum},
		"jamba":               {TopK: 2},
		"qwen2_moe":           {TopK: 4},
		"qwen3_moe":           {TopK: 8},
		"olmoe":               {TopK: 8},
		"gpt_oss":             {TopK: 4, Score: moe.ScoreLogit, Weight: moe.WeightChosenSoftmax},
		"granitemoe":          {TopK: 2, Score: moe.ScoreLogit, Weight: moe.WeightChosenSoftmax},
		"hunyuan_v1_moe":      {TopK: 1, Norm: moe.NormSum},
		"phimoe":              {TopK: 2, Jitter: 0.01},
		"dbrx":                {TopK: 1, Norm: moe.NormPower, NormP: 1},
		"llama4":              {TopK: 1, Score: moe.ScoreLogit, Weight: moe.WeightSigmoid, ScaleInput: true},
		"ernie4_5_moe":        {TopK: 6, Norm: moe.NormSumMin, Floor: 1e-12},
		"switch_transformers": {TopK: 1, Capacity: 64},
		"deepseek_v3": {
			TopK: 8, Score: moe.ScoreSigmoid, Groups: 8, KeptGroups: 4, GroupScore: moe.GroupTopTwo, Norm: moe.NormSum, Floor: 1e-20, Scale: 2.5,
		},
		"glm4_moe": {
			TopK: 8, Score: moe.ScoreSigmoid, Groups: 1, KeptGroups: 1, GroupScore: moe.GroupTopTwo, Norm: moe.NormSum, Floor: 1e-20,
		},
	} {
		if want.Scale == 0 {
			want.Scale = 1
		}
		want.BalanceCoef = 0.001
		rule, err := moe.RuleOf(config(t, `{"model_type": "`+modelType+`"}`), 0)
		require.NoError(t, err)
		require.Equal(t, want, rule, modelType)
	}
}

func TestRuleOf_ReadsTheKeys(t *testing.T) {
	rule, err := moe.RuleOf(config(t, `{"model_type": "hunyuan_v1_moe", "moe_topk": [3, 2]}`), 1)
	require.NoError(t, err)
	require.Equal(t, 2, rule.TopK)

	rule, err = moe.RuleOf(config(t, `{"model_type": "dbrx", "ffn_config": {"moe_top_k": 3, "moe_normalize_expert_weights": null}}`), 0)
	require.NoError(t, err)
	require.Equal(t, moe.NormNone, rule.Norm)

	rule, err = moe.RuleOf(config(t, `{"model_type": "llama4", "text_config": {"num_experts_per_tok": 2}, "num_experts_per_tok": 9}`), 0)
	require.NoError(t, err)
	require.Equal(t, 2, rule.TopK)
}

func TestRuleOf_SaysWhatItDoesNotKnow(t *testing.T) {
	for raw, says := range map[string]string{
		`{"model_type": "newmoe", "architectures": ["NewMoe"]}`: `model_type "newmoe" (NewMoe) is not known: known are dbrx, deepseek_v2`,
		`{}`:                            `model_type "" (unnamed architecture)`,
		`{"model_type": "deepseek_v2"}`: "num_experts_per_tok is missing",
		`{"model_type": "deepseek_v2", "num_experts_per_tok": 2, "topk_method": "noaux_tc"}`:             `topk_method "noaux_tc" is not known`,
		`{"model_type": "deepseek_v2", "num_experts_per_tok": 2, "topk_method": "group_limited_greedy"}`: "needs n_group",
		`{"model_type": "deepseek_v3", "routed_scaling_factor": 0}`:                                      "no expert would count",
		`{"model_type": "mixtral", "num_experts_per_tok": "two"}`:                                        "num_experts_per_tok: expected a whole number, found two",
		`{"model_type": "qwen3_moe", "norm_topk_prob": 1}`:                                               "norm_topk_prob: expected true or false",
	} {
		_, err := moe.RuleOf(config(t, raw), 0)
		require.ErrorIs(t, err, moe.ErrRouting)
		require.ErrorContains(t, err, says)
	}
}

func config(t *testing.T, raw string) *checkpoint.Config {
	c, err := checkpoint.ParseConfig("config.json", []byte(raw))
	require.NoError(t, err)
	return c
}

func TestShape_ReadsOneTwoAndThreeAxes(t *testing.T) {
	for _, c := range []struct {
		shape          []int
		rows, sequence int
	}{{[]int{4}, 1, 1}, {[]int{7, 4}, 7, 7}, {[]int{2, 3, 4}, 6, 3}} {
		rows, sequence, err := moe.Shape(c.shape, 4)
		require.NoError(t, err)
		require.Equal(t, []int{c.rows, c.sequence}, []int{rows, sequence})
	}
	for _, bad := range [][]int{nil, {}, {5}, {0, 4}, {2, 0, 4}, {1, 1, 1, 4}, {4, 3}} {
		_, _, err := moe.Shape(bad, 4)
		require.ErrorIs(t, err, moe.ErrRouting, "%v", bad)
	}
}

func TestBalance_IsCoefTimesKWhenAllAreEquallyBusy(t *testing.T) {
	g := gate(t, moe.Rule{TopK: 2, BalanceCoef: 0.5}, 4)
	even := []float32{1, 1, 0, 0, 0, 0, 1, 1}
	require.InDelta(t, 0.5*2, g.Balance(g.Choose(even, 2)), 1e-6)
	lopsided := []float32{9, 9, 0, 0, 9, 9, 0, 0}
	require.InDelta(t, 0.5*4*(2*0.5), g.Balance(g.Choose(lopsided, 2)), 1e-3, "f = P = 1/2 + 1/2 for two experts, twice as much")

	// By hand: two rows of one expert of two, probabilities (3/4, 1/4) and (1/4, 3/4) and again the first.
	g = gate(t, moe.Rule{TopK: 1, BalanceCoef: 1}, 2)
	l := float32(math.Log(3))
	require.InDelta(t, 2*(2.0/3*(7.0/12)+1.0/3*(5.0/12)), g.Balance(g.Choose([]float32{l, 0, 0, l, l, 0}, 3)), 1e-6)
	chosen, err := moe.Chosen([]int64{0}, []float32{1}, 1, 2)
	require.NoError(t, err)
	require.Zero(t, g.Balance(chosen), "nothing is known of the scores of a choice from outside")
}

func BenchmarkRoute(b *testing.B) {
	for name, rule := range map[string]moe.Rule{
		"olmoe-64x2048":        {TopK: 8, Scale: 1},
		"deepseek_v3-256x7168": {TopK: 8, Score: moe.ScoreSigmoid, Groups: 8, KeptGroups: 4, GroupScore: moe.GroupTopTwo, Norm: moe.NormSum, Scale: 2.5},
	} {
		experts, hidden := 64, 2048
		if rule.Groups > 0 {
			experts, hidden = 256, 7168
		}
		g, err := moe.NewGate(rule, moe.Tensors{Weight: make([]float32, experts*hidden)}, hidden)
		require.NoError(b, err)
		x := make([]float32, hidden)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				g.Route(x, 1)
			}
		})
	}
}
