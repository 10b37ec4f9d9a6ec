package moe

import (
	"fmt"
	"math"
	"slices"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Group is the rows of a batch that go to one expert.
type Group struct {
	Expert int
	Rows   []int32 // ascending
	// In multiplies the expert's input, row by row; nil unless the rule says so.
	In []float32
	// Out multiplies the expert's output.
	Out []float32
}

// Chosen makes a routing of a choice that came from outside: experts and weights, each [rows, k]; -1 stands for no expert.
// It keeps weights. The error matches ErrRouting and says what was expected.
func Chosen(experts []int64, weights []float32, rows, of int) (*Routing, error) {
	if rows < 1 || len(experts) == 0 || len(experts)%rows != 0 {
		return nil, fmt.Errorf("%w: expected experts [%d, k], found %d of them", ErrRouting, rows, len(experts))
	}
	if len(weights) != len(experts) {
		return nil, fmt.Errorf("%w: expected a weight for each of the %d experts, found %d", ErrRouting, len(experts), len(weights))
	}
	r := &Routing{Rows: rows, K: len(experts) / rows, Experts: of, Indices: make([]int32, len(experts)), Weights: weights}
	for i, e := range experts {
		if e < -1 || e >= int64(of) {
			return nil, fmt.Errorf("%w: expected experts from 0 to %d, or -1 for none, found %d in row %d", ErrRouting, of-1, e, i/r.K)
		}
		r.Indices[i] = int32(e)
		if w := float64(weights[i]); math.IsNaN(w) || math.IsInf(w, 0) {
			return nil, fmt.Errorf("%w: expected finite weights, found %v in row %d", ErrRouting, w, i/r.K)
		}
	}
	return r, nil
}

// Groups returns the rows by expert, in ascending order of experts; those that no row chose are left out. scaleInput is the rule's.
func (r *Routing) Groups(scaleInput bool) []Group {
	counts := r.RowsPerExpert()
	used, total := 0, 0
	for _, n := range counts {
		if n > 0 {
			used++
		}
		total += n
	}
	groups, place := make([]Group, 0, used), make([]int, r.Experts)
	rows, weights := make([]int32, total), make([]float32, total)
	at := 0
	for e, n := range counts {
		if n > 0 {
			place[e] = at
			groups = append(groups, Group{Expert: e, Rows: rows[at : at+n : at+n], Out: weights[at : at+n : at+n]})
			at += n
		}
	}
	for i, e := range r.Indices {
		if e >= 0 {
			rows[place[e]], weights[place[e]] = int32(i/r.K), r.Weights[i]
			place[e]++
		}
	}
	if scaleInput {
		ones := make([]float32, total)
		for i := range ones {
			ones[i] = 1
		}
		at := 0
		for i := range groups {
			n := len(groups[i].Rows)
			groups[i].In, groups[i].Out = groups[i].Out, ones[at:at+n:at+n]
			at += n
		}
	}
	return groups
}

// RowsPerExpert counts the rows that each expert was chosen for.
func (r *Routing) RowsPerExpert() []int {
	counts := make([]int, r.Experts)
	for _, e := range r.Indices {
		if e >= 0 {
			counts[e]++
		}
	}
	return counts
}

// Scaled returns the rows that groups with In send to their experts: each row of x [rows, hidden] times its weight, group by
// group, and for each group the indices of its rows in there.
func Scaled(x []float32, hidden int, groups []Group) (batch []float32, rows [][]int32) {
	total := 0
	for _, g := range groups {
		total += len(g.Rows)
	}
	batch, rows = make([]float32, 0, total*hidden), make([][]int32, len(groups))
	at := int32(0)
	for i, g := range groups {
		rows[i] = make([]int32, len(g.Rows))
		for j, r := range g.Rows {
			rows[i][j] = at
			at++
			for _, v := range x[int(r)*hidden : (int(r)+1)*hidden] {
				batch = append(batch, v*g.In[j])
			}
		}
	}
	return batch, rows
}

// Factors returns what makes up, row by row, for the groups that nobody answered for (present[i] is about groups[i]): the weights of a row that
// lost some are multiplied by (sum of all)/(sum of those present). It is 1 for a row that lost none, for one that lost all, and for one whose weights
// differ in sign, as a caller's own may: what is left of such a sum says nothing about what is missing, and may be next to nothing.
func Factors(groups []Group, present []bool, rows int) []float64 {
	const negative, positive = 1, 2
	all, there, signs := make([]float64, rows), make([]float64, rows), make([]uint8, rows)
	for i, g := range groups {
		for j, r := range g.Rows {
			w := float64(g.weight(j))
			all[r] += w
			switch {
			case w < 0:
				signs[r] |= negative
			case w > 0:
				signs[r] |= positive
			}
			if present[i] {
				there[r] += w
			}
		}
	}
	for r, sum := range all {
		all[r] = 1
		if sum != there[r] && there[r] != 0 && signs[r] != negative|positive {
			all[r] = sum / there[r]
		}
	}
	return all
}

// Scale multiplies what multiplies outputs by each row's factor: also where the rule scales inputs, which have been sent already. groups is
// left as it was.
func Scale(groups []Group, factors []float64) []Group {
	scaled := slices.Clone(groups)
	for i, g := range groups {
		out := make([]float32, len(g.Rows))
		for j, r := range g.Rows {
			out[j] = float32(float64(g.Out[j]) * factors[r])
		}
		scaled[i].Out = out
	}
	return scaled
}

// weight is the routing weight of the group's j-th row, whatever it multiplies.
func (g *Group) weight(j int) float32 {
	if g.In != nil {
		return g.In[j]
	}
	return g.Out[j]
}

// Combine adds up the outputs of the groups' experts, each [rows of the group, hidden], into y [rows, hidden]. A row's sum goes in the order
// of the groups, ascending experts: it does not depend on who computed what.
func Combine(y []float32, hidden int, groups []Group, outputs [][]float32) {
	clear(y)
	for i, g := range groups {
		expert.AddWeighted(y, outputs[i], g.Rows, g.Out, hidden)
	}
}

// AddSum adds to y [rows, hidden] what a host has added up, rows of y (nil: all in order), each times its factor; nil factors are 1.
func AddSum(y, sum []float32, rows []int32, factors []float64, hidden int) {
	for j := range len(sum) / hidden {
		r := j
		if rows != nil {
			r = int(rows[j])
		}
		factor := float32(1)
		if factors != nil {
			factor = float32(factors[r])
		}
		to := y[r*hidden : (r+1)*hidden]
		for k, v := range sum[j*hidden : (j+1)*hidden] {
			to[k] += float32(factor * v)
		}
	}
}

// AddShared adds the shared expert's output, each row times its scale (nil: 1), to y; both are [rows, hidden]. It comes last.
func AddShared(y, shared []float32, hidden int, scale []float32) {
	for r := range len(y) / hidden {
		w := float32(1)
		if scale != nil {
			w = scale[r]
		}
		row, out := y[r*hidden:(r+1)*hidden], shared[r*hidden:(r+1)*hidden]
		for k, v := range out {
			row[k] += float32(w * v)
		}
	}
}
