package moe

import (
	"fmt"
	"math"
)

// Gate is a layer's router: its weights and the family's rule. It never changes, and is safe for concurrent use.
type Gate struct {
	rule       Rule
	experts    int
	hidden     int
	weight     []float32 // [experts, hidden]
	bias       []float32 // [experts] or nil
	choiceBias []float32 // [experts] or nil
	sharedGate []float32 // [hidden] or nil
}

// Tensors are a router's, in float32; all but Weight may be nil.
type Tensors struct {
	Weight     []float32 // [experts, hidden]
	Bias       []float32 // [experts]; added to the logits
	ChoiceBias []float32 // [experts]; added to the scores for the choice alone
	SharedGate []float32 // [hidden]; the sigmoid of its product with a row multiplies the shared expert's output
}

// NewGate checks the tensors and the rule against each other. It keeps the tensors. The error matches ErrRouting.
func NewGate(rule Rule, t Tensors, hidden int) (*Gate, error) {
	if hidden < 1 || len(t.Weight) == 0 || len(t.Weight)%hidden != 0 {
		return nil, fmt.Errorf("%w: a router of %d weights for rows of %d", ErrRouting, len(t.Weight), hidden)
	}
	experts := len(t.Weight) / hidden
	for _, v := range []struct {
		name         string
		length, want int
	}{{"bias", len(t.Bias), experts}, {"choice bias", len(t.ChoiceBias), experts}, {"shared gate", len(t.SharedGate), hidden}} {
		if v.length != 0 && v.length != v.want {
			return nil, fmt.Errorf("%w: the router's %s has %d elements, expected %d", ErrRouting, v.name, v.length, v.want)
		}
	}
	if err := rule.Validate(experts); err != nil {
		return nil, err
	}
	return &Gate{
		rule: rule, experts: experts, hidden: hidden,
		weight: t.Weight, bias: t.Bias, choiceBias: t.ChoiceBias, sharedGate: t.SharedGate,
	}, nil
}

// Rule returns how the gate chooses.
func (g *Gate) Rule() Rule { return g.rule }

// WithTopK returns the same gate choosing k experts for each row. The error matches ErrRouting.
func (g *Gate) WithTopK(k int) (*Gate, error) {
	other := *g
	other.rule.TopK = k
	if err := other.rule.Validate(g.experts); err != nil {
		return nil, err
	}
	return &other, nil
}

// Experts returns how many experts the gate chooses from.
func (g *Gate) Experts() int { return g.experts }

// Hidden returns the width of a row.
func (g *Gate) Hidden() int { return g.hidden }

// Routing is what a gate chose for some rows.
type Routing struct {
	Rows, K, Experts int
	Logits           []float32 // [rows, experts], the choice bias not added; nil where the caller chose himself
	Indices          []int32   // [rows, k], the best first; -1 where the row was dropped
	Weights          []float32 // [rows, k]; 0 where the row was dropped
}

// Route chooses experts for x [rows, hidden]. A sequence is so many rows one behind the other, which share an expert's
// capacity where the rule has one; rows is a multiple of it. Ties go to the lower index.
func (g *Gate) Route(x []float32, sequence int) *Routing { return g.Choose(g.Logits(x), sequence) }

// SharedScale returns what multiplies the shared expert's output of each row; nil where nothing does.
func (g *Gate) SharedScale(x []float32) []float32 {
	if g.sharedGate == nil {
		return nil
	}
	scale := make([]float32, len(x)/g.hidden)
	wide := make([]float64, g.hidden)
	for r := range scale {
		for k, v := range x[r*g.hidden : (r+1)*g.hidden] {
			wide[k] = float64(v)
		}
		scale[r] = float32(sigmoid(float64(float32(dot(wide, g.sharedGate)))))
	}
	return scale
}

// Choose applies the rule to logits [rows, experts]; sequence is as in Route. It keeps logits.
func (g *Gate) Choose(logits []float32, sequence int) *Routing {
	rows, k := len(logits)/g.experts, g.rule.TopK
	routing := &Routing{
		Rows: rows, K: k, Experts: g.experts, Logits: logits, Indices: make([]int32, rows*k), Weights: make([]float32, rows*k),
	}
	c := chooser{gate: g, scores: make([]float64, g.experts), choice: make([]float64, g.experts), taken: make([]int, g.experts)}
	for r := range rows {
		indices, weights := routing.Indices[r*k:(r+1)*k], routing.Weights[r*k:(r+1)*k]
		if g.rule.Jitter > 0 {
			c.sparsemixer(logits[r*g.experts:(r+1)*g.experts], indices, weights)
		} else {
			c.row(logits[r*g.experts:(r+1)*g.experts], indices, weights)
		}
		if g.rule.Capacity > 0 {
			if sequence > 0 && r%sequence == 0 {
				clear(c.taken)
			}
			if c.taken[indices[0]]++; c.taken[indices[0]] > g.rule.Capacity {
				indices[0], weights[0] = -1, 0
			}
		}
	}
	return routing
}

// chooser holds what choosing for one row after the other needs.
type chooser struct {
	gate   *Gate
	scores []float64 // of each expert
	choice []float64 // what is chosen by
	taken  []int     // rows of this sequence that each expert has, where there is a capacity
}

// row applies the rule to one row's logits.
func (c *chooser) row(logits []float32, indices []int32, weights []float32) {
	rule := c.gate.rule
	switch rule.Score {
	case ScoreSoftmax:
		softmax(c.scores, logits, nil)
	case ScoreSigmoid:
		for e, l := range logits {
			c.scores[e] = sigmoid(float64(l))
		}
	case ScoreLogit:
		for e, l := range logits {
			c.scores[e] = float64(l)
		}
	}
	copy(c.choice, c.scores)
	for e, b := range c.gate.choiceBias {
		c.choice[e] += float64(b)
	}
	if rule.Groups > 1 {
		c.keepBestGroups()
	}
	best(indices, c.choice)

	var chosen [64]float64 // on the stack: no family takes more than 10
	w := chosen[:0]
	for _, e := range indices {
		switch {
		case rule.Weight != WeightScore:
			w = append(w, float64(logits[e]))
		case rule.Groups > 1 && rule.GroupScore == GroupMax:
			w = append(w, c.choice[e]) // 0 for what a group limit left out
		default:
			w = append(w, c.scores[e])
		}
	}
	switch rule.Weight {
	case WeightScore:
	case WeightChosenSoftmax:
		softmaxOf(w)
	case WeightSigmoid:
		for i, l := range w {
			w[i] = sigmoid(l)
		}
	}
	divisor := rule.divisor(w)
	for i, v := range w {
		weights[i] = float32(v / divisor * rule.Scale)
	}
}

// divisor returns what the weights are divided by.
func (r Rule) divisor(w []float64) float64 {
	var sum float64
	for _, v := range w {
		if r.Norm == NormPower && r.NormP != 1 {
			v = math.Pow(math.Abs(v), r.NormP)
		}
		sum += v
	}
	switch r.Norm {
	case NormSum:
		return sum + r.Floor
	case NormSumMin:
		return max(sum, r.Floor)
	case NormPower:
		return math.Pow(sum, 1/r.NormP)
	default:
		return 1
	}
}

// keepBestGroups takes the experts of all but the best groups out of the choice.
func (c *chooser) keepBestGroups() {
	rule := c.gate.rule
	size := len(c.choice) / rule.Groups
	scores, out := make([]float64, rule.Groups), 0.0
	for g := range scores {
		members := c.choice[g*size : (g+1)*size]
		first, second := math.Inf(-1), math.Inf(-1)
		for _, v := range members {
			if v > first {
				first, second = v, first
			} else {
				second = max(second, v)
			}
		}
		scores[g] = first
		if rule.GroupScore == GroupTopTwo {
			out = math.Inf(-1)
			if size > 1 {
				scores[g] += second
			}
		}
	}
	kept := make([]int32, rule.KeptGroups)
	best(kept, scores)
	keep := make([]bool, rule.Groups)
	for _, g := range kept {
		keep[g] = true
	}
	for e := range c.choice {
		if !keep[e/size] {
			c.choice[e] = out
		}
	}
}

// sparsemixer is phimoe's rule: the best expert, and the best of the others, each weighed by its probability among those of
// the logits that are near it.
func (c *chooser) sparsemixer(logits []float32, indices []int32, weights []float32) {
	limit := float32(2 * c.gate.rule.Jitter)
	without := int32(-1)
	for i := range indices {
		top := int32(-1)
		for e, l := range logits {
			if int32(e) != without && (top < 0 || l > logits[top] || logits[top] != logits[top]) {
				top = int32(e)
			}
		}
		m := logits[top]
		softmax(c.scores, logits, func(e int) bool {
			s := logits[e]
			far := (m-s)/max(float32(math.Abs(float64(s))), m) > limit // false for 0/0, as transformers has it
			return int32(e) != without && !far
		})
		indices[i], weights[i] = top, float32(c.scores[top]*c.gate.rule.Scale)
		without = top
	}
}

// best writes the indices of the largest values, the largest first; ties go to the lower index, and NaN comes last.
func best(indices []int32, values []float64) {
	n := 0
	for e := range values {
		at := n
		for at > 0 && before(values[e], values[indices[at-1]]) {
			at--
		}
		if at == len(indices) {
			continue
		}
		n = min(n+1, len(indices))
		copy(indices[at+1:n], indices[at:n-1])
		indices[at] = int32(e)
	}
}

// before tells whether a comes before b, of the lower index, in a choice.
func before(a, b float64) bool { return a > b || (math.IsNaN(b) && !math.IsNaN(a)) }
