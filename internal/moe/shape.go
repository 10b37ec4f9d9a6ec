package moe

import "fmt"

// Shape returns the rows of an input and how many of them make a sequence: one row [hidden], a sequence [rows, hidden], or
// several [sequences, rows, hidden]. The error matches ErrRouting and says what was expected.
func Shape(shape []int, hidden int) (rows, sequence int, err error) {
	rows, sequence = 1, 1
	switch len(shape) {
	case 1:
	case 2:
		rows, sequence = shape[0], shape[0]
	case 3:
		rows, sequence = shape[0]*shape[1], shape[1]
	default:
		return 0, 0, fmt.Errorf("%w: expected 1, 2 or 3 axes, the last of them %d, found %v", ErrRouting, hidden, shape)
	}
	if rows < 1 || shape[len(shape)-1] != hidden {
		return 0, 0, fmt.Errorf("%w: expected at least one row of %d elements, found %v", ErrRouting, hidden, shape)
	}
	return rows, sequence, nil
}
