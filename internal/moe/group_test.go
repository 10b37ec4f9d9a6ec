package moe_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/moe"
)

// chosen is a routing of 3 rows, 2 experts each, of 5.
func chosen(t *testing.T) *moe.Routing {
	r, err := moe.Chosen([]int64{4, 0, 2, 4, 0, -1}, []float32{0.75, 0.25, 0.5, 0.5, 1, 0}, 3, 5)
	require.NoError(t, err)
	return r
}

func TestChosen_RefusesWhatMakesNoSense(t *testing.T) {
	for name, c := range map[string]struct {
		experts []int64
		weights []float32
		rows    int
	}{
		"no rows":         {[]int64{1}, []float32{1}, 0},
		"no experts":      {nil, nil, 1},
		"a part of a row": {[]int64{1, 2, 3}, []float32{1, 1, 1}, 2},
		"too few weights": {[]int64{1, 2}, []float32{1}, 2},
		"beyond the last": {[]int64{5}, []float32{1}, 1},
		"below none":      {[]int64{-2}, []float32{1}, 1},
		"beyond an int32": {[]int64{1 << 40}, []float32{1}, 1},
	} {
		_, err := moe.Chosen(c.experts, c.weights, c.rows, 5)
		require.ErrorIs(t, err, moe.ErrRouting, name)
		require.ErrorContains(t, err, "expected", name)
	}
}

func TestGroups_AscendAndKeepTheRowsOrder(t *testing.T) {
	require.Equal(t, []moe.Group{
		{Expert: 0, Rows: []int32{0, 2}, Out: []float32{0.25, 1}},
		{Expert: 2, Rows: []int32{1}, Out: []float32{0.5}},
		{Expert: 4, Rows: []int32{0, 1}, Out: []float32{0.75, 0.5}},
	}, chosen(t).Groups(false))
}

func TestScaled_MultipliesTheInput(t *testing.T) {
	groups := chosen(t).Groups(true)
	require.Equal(t, []float32{0.25, 1}, groups[0].In)
	require.Equal(t, []float32{1, 1}, groups[0].Out)
	batch, rows := moe.Scaled([]float32{4, 8, 10, 20, 3, 6}, 2, groups)
	require.Equal(t, []float32{1, 2, 3, 6, 5, 10, 3, 6, 5, 10}, batch)
	require.Equal(t, [][]int32{{0, 1}, {2}, {3, 4}}, rows)
}

func TestCombine_AddsInTheOrderOfTheExperts(t *testing.T) {
	groups := chosen(t).Groups(false)
	y := []float32{9, 9, 9} // what was there is gone
	moe.Combine(y, 1, groups, [][]float32{{4, 5}, {6}, {8, 10}})
	require.Equal(t, []float32{0.25*4 + 0.75*8, 0.5*6 + 0.5*10, 5}, y)
	moe.AddShared(y, []float32{1, 2, 3}, 1, nil)
	require.Equal(t, []float32{8, 10, 8}, y)
	moe.AddShared(y, []float32{1, 2, 3}, 1, []float32{1, 0.5, 0})
	require.Equal(t, []float32{9, 11, 8}, y)
}

func TestFactors_MakeUpForWhatIsMissing(t *testing.T) {
	groups := chosen(t).Groups(false)
	factors := moe.Factors(groups, []bool{true, true, false}, 3) // expert 4 is missing
	require.Equal(t, []float64{4, 2, 1}, factors)
	scaled := moe.Scale(groups, factors)
	require.Equal(t, []float32{1, 1}, scaled[0].Out)
	require.Equal(t, []float32{1}, scaled[1].Out)
	require.Equal(t, float32(0.25), groups[0].Out[0], "the groups themselves stay")

	factors = moe.Factors(groups, []bool{false, true, true}, 3) // row 2 lost all
	y := make([]float32, 3)
	moe.Combine(y, 1, moe.Scale(groups, factors)[1:], [][]float32{{6}, {8, 10}})
	require.Equal(t, []float32{8, 8, 0}, y)

	require.Equal(t, groups, moe.Scale(groups, moe.Factors(groups, []bool{true, true, true}, 3)))

	// Inputs were scaled already: the factor multiplies the outputs.
	groups = chosen(t).Groups(true)
	scaled = moe.Scale(groups, moe.Factors(groups, []bool{true, true, false}, 3))
	require.Equal(t, []float32{0.25, 1}, scaled[0].In)
	require.Equal(t, []float32{4, 1}, scaled[0].Out)
}

func TestFactors_AreNoneWhereWeightsDifferInSign(t *testing.T) {
	r, err := moe.Chosen([]int64{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}, []float32{
		1, 0.5, -0.999, // those present would be multiplied by 501
		-1e-5, 1e20, 0,
		-0.5, -0.25, -0.25,
		0, 0.5, 0.5,
	}, 4, 3)
	require.NoError(t, err)
	factors := moe.Factors(r.Groups(false), []bool{true, false, true}, 4)
	require.Equal(t, []float64{1, 1, 4. / 3, 2}, factors)
}

func TestAddSum_MakesUpForWhatRowsLost(t *testing.T) {
	y := []float32{1, 1, 2, 2, 3, 3}
	moe.AddSum(y, []float32{10, 20, 30, 40}, []int32{0, 2}, nil, 2)
	require.Equal(t, []float32{11, 21, 2, 2, 33, 43}, y)
	moe.AddSum(y, []float32{1, 1, 1, 1, 1, 1}, nil, []float64{1, 2, 0.5}, 2)
	require.Equal(t, []float32{12, 22, 4, 4, 33.5, 43.5}, y)
}
