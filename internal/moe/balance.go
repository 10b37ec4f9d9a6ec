package moe

// Balance returns the load-balancing loss of a routing: coef·N·Σ f·P over the N experts, where f is the share of the rows
// that chose an expert (they sum to k) and P its mean score: the softmax over all experts, or where the rule scores by sigmoid
// these divided by their sum. It is coef·k when all experts are equally busy, and 0 for a choice that came from outside.
// Switch Transformers (Fedus, Zoph, Shazeer, 2021), equation 4, as transformers computes it for more than one expert a row.
func (g *Gate) Balance(r *Routing) float64 {
	if r.Rows == 0 || r.Logits == nil {
		return 0
	}
	mean, p := make([]float64, r.Experts), make([]float64, r.Experts)
	for row := range r.Rows {
		logits := r.Logits[row*r.Experts : (row+1)*r.Experts]
		if g.rule.Score == ScoreSigmoid {
			var sum float64
			for e, l := range logits {
				p[e] = sigmoid(float64(l))
				sum += p[e]
			}
			for e := range p {
				p[e] /= sum
			}
		} else {
			softmax(p, logits, nil)
		}
		for e, v := range p {
			mean[e] += v / float64(r.Rows)
		}
	}
	var loss float64
	for e, n := range r.RowsPerExpert() {
		loss += float64(float64(n) / float64(r.Rows) * mean[e])
	}
	return g.rule.BalanceCoef * float64(r.Experts) * loss
}
