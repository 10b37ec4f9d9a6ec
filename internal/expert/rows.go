package expert

import (
	"fmt"

	"gorgonia.org/tensor"
)

// Rows checks a tensor where it enters: float32, [rows, hidden] with at least one row, row-major and without gaps. It
// returns the elements themselves, not a copy. The error matches ErrInvalidArgument and says what was expected.
func Rows(x *tensor.Dense, hidden int) ([]float32, error) {
	if x == nil {
		return nil, fmt.Errorf("%w: expected a tensor [rows, %d] of float32, found none", ErrInvalidArgument, hidden)
	}
	if x.Dtype() != tensor.Float32 {
		return nil, fmt.Errorf("%w: expected float32, found %v", ErrInvalidArgument, x.Dtype())
	}
	shape := x.Shape()
	if len(shape) != 2 || shape[0] < 1 || shape[1] != hidden {
		return nil, fmt.Errorf("%w: expected [rows, %d] with at least one row, found %v", ErrInvalidArgument, hidden, []int(shape))
	}
	// A view keeps the elements of what it was cut from: only without gaps are they the rows that its shape says.
	values := x.Float32s()
	if !x.DataOrder().IsRowMajor() || x.RequiresIterator() || len(values) != shape[0]*hidden {
		return nil, fmt.Errorf("%w: expected rows one behind the other in memory, found a transposed or sliced view (clone it first)", ErrInvalidArgument)
	}
	return values, nil
}

// NewRows wraps values, [rows, hidden] row-major, as a tensor that shares them. It panics unless len(values) is a positive
// multiple of hidden, which is for the caller to know.
func NewRows(values []float32, hidden int) *tensor.Dense {
	return tensor.New(tensor.WithShape(len(values)/hidden, hidden), tensor.WithBacking(values))
}
