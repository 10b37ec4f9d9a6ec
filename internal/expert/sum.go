package expert

import "gorgonia.org/tensor"

// Sum is what a host returns in place of several pairs' outputs: these, each row times its weight, added up by AddWeighted in the order
// of the pairs. It saves bytes on the wire: one row for each row of the batch, however many experts it went to.
type Sum struct {
	Output *tensor.Dense // [rows, hidden], one row for each of Rows
	Rows   []int32       // which rows of the batch, ascending; nil: all in order
}

// SumNumerics names AddWeighted's order of operations. The number behind it changes whenever a bit of any result would.
const SumNumerics = "sum-1"

// AddWeighted adds output [n, hidden] to rows of sum: row j times weights[j] to row rows[j], where rows is nil to row j. Product and sum
// are rounded to float32 one after the other, so that everybody gets the same bits.
func AddWeighted(sum, output []float32, rows []int32, weights []float32, hidden int) {
	for j, w := range weights {
		r := j
		if rows != nil {
			r = int(rows[j])
		}
		to, from := sum[r*hidden:(r+1)*hidden], output[j*hidden:(j+1)*hidden]
		for k, v := range from {
			to[k] += float32(w * v) // the conversion keeps the compiler from fusing
		}
	}
}
