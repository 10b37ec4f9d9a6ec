package moe

import "math"

// The functions here are fixed sequences of operations, so that weights have the same bits on every machine: math.Exp has assembly
// of its own on some. Conversions keep the compiler from fusing what must not be.

const (
	log2E  = 1.4426950408889634
	ln2Hi  = 6.93147180369123816490e-01 // the upper bits of ln 2: its products with the n below are exact
	ln2Lo  = 1.90821492927058770002e-10
	expLow = -700 // below this weights are nothing
)

// expTaylor is the series of e^r, the highest power first; |r| <= 0.35, so that what is left out is below 2^-58.
var expTaylor = [...]float64{
	1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
	1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1, 1,
}

// exp returns e to the x for x <= 0 to within 2 units in the last place of float64, and 0 below -700.
func exp(x float64) float64 {
	if x != x {
		return x
	}
	if x < expLow {
		return 0
	}
	n := math.Floor(float64(x*log2E) + 0.5)
	r := float64(x-float64(n*ln2Hi)) - float64(n*ln2Lo)
	p := expTaylor[0]
	for _, c := range expTaylor[1:] {
		p = float64(p*r) + c
	}
	return math.Ldexp(p, int(n))
}

func sigmoid(x float64) float64 {
	if x < 0 {
		e := exp(x)
		return e / (1 + e)
	}
	return 1 / (1 + exp(-x))
}

// softmax fills p with the softmax over those logits that keep says (nil: all), 0 for the others.
func softmax(p []float64, logits []float32, keep func(e int) bool) {
	top := math.Inf(-1)
	for e, l := range logits {
		if keep == nil || keep(e) {
			top = max(top, float64(l))
		}
	}
	var sum float64
	for e, l := range logits {
		p[e] = 0
		if keep == nil || keep(e) {
			p[e] = exp(float64(l) - top)
			sum += p[e]
		}
	}
	for e := range p {
		p[e] /= sum
	}
}

// softmaxOf replaces logits by their softmax.
func softmaxOf(w []float64) {
	top, sum := math.Inf(-1), 0.0
	for _, l := range w {
		top = max(top, l)
	}
	for i, l := range w {
		w[i] = exp(l - top)
		sum += w[i]
	}
	for i := range w {
		w[i] /= sum
	}
}
