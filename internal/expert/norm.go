package expert

import "math"

// layerNorm replaces each row of y by (row - mean)/√(variance + eps) · weight + bias.
//
// Part of the exact numerics: the sums are float64 chains over ascending k of the float32 values, without fused
// multiply-adds; the result is rounded to float32 once. So the bits do not depend on the machine or on other rows.
func layerNorm(y, weight, bias []float32, eps float32) {
	hidden := len(weight)
	for ; len(y) > 0; y = y[hidden:] {
		row := y[:hidden]
		var sum float64
		for _, v := range row {
			sum += float64(v)
		}
		mean := sum / float64(hidden)
		var squares float64
		for _, v := range row {
			d := float64(v) - mean
			squares += float64(d * d) // the conversion keeps the compiler from fusing
		}
		scale := 1 / math.Sqrt(squares/float64(hidden)+float64(eps))
		for k, v := range row {
			unit := float64((float64(v) - mean) * scale)
			n := float32(float64(unit*float64(weight[k])) + float64(bias[k]))
			if n != n {
				n = canonicalNaN
			}
			row[k] = n
		}
	}
}
