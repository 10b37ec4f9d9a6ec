package serving

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// inPlace is an expert that writes its output to memory that it is given, so that one pass after the other can use the same.
type inPlace interface {
	// ForwardRows is Forward from x to y: whole rows, as many in both, that share no memory.
	ForwardRows(ctx context.Context, y, x []float32) error
}

// output is what a pass made. memory is the host's; nil where the expert took its own.
type output struct {
	rows   *tensor.Dense
	values []float32 // of rows
	memory *memory
}

// part returns members' rows out of a pass's, as a result with its share of the memory.
func (o *output) part(first, count, hidden int) expert.Result {
	r := expert.Result{Output: o.rows}
	if all := len(o.values); count*hidden < all {
		end := (first + count) * hidden
		r.Output = expert.NewRows(o.values[first*hidden:end:end], hidden)
	}
	if o.memory != nil {
		o.memory.shares.Add(1)
		r.Memory = o.memory
	}
	return r
}

// release gives the pass's own share of the memory back.
func (o *output) release() {
	if o.memory != nil {
		o.memory.Release()
	}
}

// forward makes one pass over x [rows, hidden]; rows is a tensor of x where there is one, else nil. Errors are as the function's of that
// name.
func (h *Host) forward(ctx context.Context, e expert.Expert, rows *tensor.Dense, x []float32, hidden int) (o output, err error) {
	writes, ok := e.(inPlace)
	if !ok {
		if rows == nil {
			rows = expert.NewRows(x, hidden)
		}
		o.rows, o.values, err = forward(ctx, e, rows, hidden)
		return o, err
	}
	m := h.outputs.get(len(x))
	if err := forwardRows(ctx, writes, m.values, x); err != nil {
		return output{}, err // after a panic somebody may still write to it
	}
	return output{rows: m.tensor(hidden), values: m.values, memory: m}, nil
}

// forwardRows is forward for an expert that writes where it is told to.
func forwardRows(ctx context.Context, e inPlace, y, x []float32) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{value: v, stack: debug.Stack()}
		}
	}()
	if err := e.ForwardRows(ctx, y, x); err != nil {
		return forwardError(ctx, err)
	}
	return nil
}

// forward makes one pass. It catches the expert's panics and checks its output: y has exactly x's shape, values are its
// elements. Errors match a sentinel of package expert; what the expert leaves unexplained is ErrInternal.
func forward(ctx context.Context, e expert.Expert, x *tensor.Dense, hidden int) (y *tensor.Dense, values []float32, err error) {
	defer func() {
		if v := recover(); v != nil {
			y, values, err = nil, nil, &panicError{value: v, stack: debug.Stack()}
		}
	}()
	y, err = e.Forward(ctx, x)
	if err != nil {
		return nil, nil, forwardError(ctx, err)
	}
	values, err = expert.Rows(y, hidden)
	if err != nil || y.Shape()[0] != x.Shape()[0] {
		return nil, nil, fmt.Errorf("%w: the expert's output is not float32 %v", expert.ErrInternal, []int(x.Shape()))
	}
	return y, values, nil
}

func forwardError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctxError(ctx)
	case errors.Is(err, expert.ErrInvalidArgument), errors.Is(err, expert.ErrInternal):
		return err
	default:
		return fmt.Errorf("%w: %w", expert.ErrInternal, err)
	}
}
