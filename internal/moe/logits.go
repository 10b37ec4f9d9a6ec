package moe

import (
	"runtime"
	"sync"
)

// Logits returns the router's output for x [rows, hidden], [rows, experts].
//
// Each is one chain over ascending k of float64 sums, whose products of float32 are exact; the bias comes last, and the
// whole is rounded to float32 once. So it does not depend on the machine or on other rows.
func (g *Gate) Logits(x []float32) []float32 {
	rows := len(x) / g.hidden
	logits := make([]float32, rows*g.experts)
	// A part for each CPU, as long as it is worth a goroutine.
	parts := max(1, min(runtime.GOMAXPROCS(0), rows, rows*g.experts*g.hidden/partWork))
	var others sync.WaitGroup
	for p := 1; p < parts; p++ {
		others.Go(func() { g.logits(logits, x, rows*p/parts, rows*(p+1)/parts) })
	}
	g.logits(logits, x, 0, rows/parts)
	others.Wait()
	return logits
}

// partWork is how many products are worth a goroutine: they take some 200 us, and to wake a thread up to 50.
const partWork = 1 << 19

// logits fills in those of rows [from, to).
func (g *Gate) logits(logits, x []float32, from, to int) {
	wide := make([]float64, g.hidden)
	for r := from; r < to; r++ {
		for k, v := range x[r*g.hidden : (r+1)*g.hidden] {
			wide[k] = float64(v)
		}
		out := logits[r*g.experts : (r+1)*g.experts]
		e := 0
		for ; e+4 <= g.experts; e += 4 {
			sums := dot4(wide, g.weight[e*g.hidden:(e+4)*g.hidden])
			for i, sum := range sums {
				out[e+i] = g.logit(e+i, sum)
			}
		}
		for ; e < g.experts; e++ {
			out[e] = g.logit(e, dot(wide, g.weight[e*g.hidden:(e+1)*g.hidden]))
		}
	}
}

func (g *Gate) logit(e int, sum float64) float32 {
	if g.bias != nil {
		sum += float64(g.bias[e])
	}
	return float32(sum)
}

// dot is the chain for one expert.
func dot(x []float64, w []float32) (sum float64) {
	w = w[:len(x)]
	for k, v := range x {
		sum += v * float64(w[k]) // the product is exact, so fusing would change nothing
	}
	return sum
}

// dot4 runs four experts' chains side by side, each the same as dot's: one waits for its last sum, four keep the CPU busy. Eight have no
// room in the registers, and are slower.
func dot4(x []float64, w []float32) [4]float64 {
	n := len(x)
	w0, w1, w2, w3 := w[:n], w[n:][:n], w[2*n:][:n], w[3*n:][:n]
	var s0, s1, s2, s3 float64
	for k, v := range x {
		s0 += v * float64(w0[k])
		s1 += v * float64(w1[k])
		s2 += v * float64(w2[k])
		s3 += v * float64(w3[k])
	}
	return [4]float64{s0, s1, s2, s3}
}
