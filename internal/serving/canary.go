package serving

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// canaryRows: more than one and not a multiple of what kernels handle at once, so that both their blocks and what is left
// over are used.
const canaryRows = 5

// canarySeed spells "kwaaid" in ASCII.
const canarySeed = 0x6b7761616964

// CanaryInput returns the input that an expert has to answer before it counts as ready: 5 rows of values in [-1, 1), the same
// on every machine. Element i is (top 24 bits of z)·2⁻²³ − 1, with z the output i+1 of splitmix64 seeded with
// 0x6b7761616964: s += 0x9e3779b97f4a7c15; z = (s ^ s>>30)·0xbf58476d1ce4e5b9; z = (z ^ z>>27)·0x94d049bb133111eb; z ^ z>>31.
func CanaryInput(hidden int) []float32 {
	x := make([]float32, canaryRows*hidden)
	state := uint64(canarySeed)
	for i := range x {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		x[i] = float32(z>>40)*0x1p-23 - 1
	}
	return x
}

// canary asks an expert for CanaryInput, and for its last row alone: the outputs have to be finite, of the right shape, and
// the same bits in both. It returns how long the single row took, as a first estimate.
func canary(ctx context.Context, e expert.Expert, spec expert.Spec) (time.Duration, error) {
	x := CanaryInput(spec.Hidden)
	_, together, err := forward(ctx, e, expert.NewRows(x, spec.Hidden), spec.Hidden)
	if err != nil {
		return 0, canaryError(ctx, err)
	}
	if row := firstNonFinite(together, nil, canaryRows, spec.Hidden); row >= 0 {
		return 0, fmt.Errorf("%w: row %d of the output holds NaN or Inf", errCanary, row)
	}
	last := (canaryRows - 1) * spec.Hidden
	started := time.Now()
	_, alone, err := forward(ctx, e, expert.NewRows(x[last:], spec.Hidden), spec.Hidden)
	took := time.Since(started)
	if err != nil {
		return 0, canaryError(ctx, err)
	}
	for i, v := range alone {
		if math.Float32bits(v) != math.Float32bits(together[last+i]) {
			return 0, fmt.Errorf("%w: element %d of a row is %v alone and %v in a batch: the result depends on batch-mates",
				errCanary, i, v, together[last+i])
		}
	}
	return took, nil
}

// canaryError tells an expert that can't answer from a caller that doesn't wait for it.
func canaryError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if p, ok := errors.AsType[*panicError](err); ok {
		return fmt.Errorf("%w: panic: %v", errCanary, p.value)
	}
	return fmt.Errorf("%w: %w", errCanary, err)
}
