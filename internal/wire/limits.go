package wire

import (
	"errors"
	"fmt"
)

// Limits bound what a frame may claim. They are checked before memory is taken.
type Limits struct {
	// Header is the greatest length of a header, in bytes.
	Header int `yaml:"max_header"`
	// Frame bounds the numbers of a frame, in bytes as float32: the payload's tensors, and those of the reply that it asks for.
	Frame int64 `yaml:"max_frame"`
	// Pairs is the greatest number of (expert, rows) pairs in a request.
	Pairs int `yaml:"max_pairs"`
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// DefaultLimits returns the limits of the contract.
func DefaultLimits() Limits {
	return Limits{
		// A request of 4,096 rows that each go to 8 experts holds 32,768 row indices of up to 2 bytes; 1,024 pairs with digests and
		// numerics take 55 KiB more. Eight times that leaves room.
		Header: mib,
		// 65,536 rows of 1,024.
		Frame: 256 * mib,
		// The largest layers known have 512 experts; all of one layer fit twice.
		Pairs: 1024,
	}
}

// Validate reports everything that would not work.
func (l Limits) Validate() error {
	var errs []error
	if l.Header < kib || l.Header > 64*mib {
		errs = append(errs, fmt.Errorf("max_header: %d is not within 1 KiB and 64 MiB: requests would not fit, or one could fill the memory", l.Header))
	}
	if l.Frame < 64*kib {
		errs = append(errs, fmt.Errorf("max_frame: %d is under 64 KiB: a row of 16,384 would not fit", l.Frame))
	}
	if l.Pairs < 1 {
		errs = append(errs, fmt.Errorf("max_pairs: %d is under 1: no request would be answered", l.Pairs))
	}
	return errors.Join(errs...)
}

// floatBytes is what one number takes in memory.
const floatBytes = 4
