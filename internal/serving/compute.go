package serving

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

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
