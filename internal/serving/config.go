package serving

import (
	"errors"
	"fmt"
	"time"
)

// Config bounds the calls that a host answers, and the memory of its experts.
type Config struct {
	MaxRows    int           // rows of one pair, and of one batch
	QueueRows  int           // rows admitted and not yet answered, all callers together
	QueueBytes int64         // the same in bytes: each call's rows once as input and once per pair as output
	Drain      time.Duration // how long Drain waits at most for answers under way
	Memory     int64         // bytes that the experts' weights may take; 0: what the machine or cgroup has

	// RefuseNonFinite refuses calls whose rows hold NaN or Inf (`checks.nan`).
	RefuseNonFinite bool
}

// minDrain: a pass of 4096 rows through a large expert takes about a second on two cores.
const minDrain = time.Second

// minQueueBytes holds one row of the widest models (hidden 16,384) many times over.
const minQueueBytes = 1 << 20

// DefaultConfig returns the limits of a node that was told nothing.
func DefaultConfig() Config {
	return Config{
		MaxRows:         4096,
		QueueRows:       16384,
		QueueBytes:      256 << 20,
		Drain:           20 * time.Second,
		RefuseNonFinite: true,
	}
}

// Validate reports everything that would not work; it changes nothing.
func (c Config) Validate() error {
	var errs []error
	if c.MaxRows < 1 {
		errs = append(errs, fmt.Errorf("max_rows: %d is below 1: no call could be answered", c.MaxRows))
	}
	if c.QueueRows < c.MaxRows {
		errs = append(errs, fmt.Errorf("queue_rows: %d is below max_rows (%d): the largest calls would never be admitted", c.QueueRows, c.MaxRows))
	}
	if c.QueueBytes < minQueueBytes {
		errs = append(errs, fmt.Errorf("queue_bytes: %d is below 1MiB: calls to wide experts would never be admitted", c.QueueBytes))
	}
	if c.Drain < minDrain {
		errs = append(errs, fmt.Errorf("drain: %v is under %v: passes under way would be cut off", c.Drain, minDrain))
	}
	if c.Memory < 0 {
		errs = append(errs, fmt.Errorf("memory: %d is negative: expected bytes, or 0 for what the machine has", c.Memory))
	}
	return errors.Join(errs...)
}
