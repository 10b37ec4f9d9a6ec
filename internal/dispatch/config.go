package dispatch

import (
	"errors"
	"fmt"
	"time"
)

// Config is how calls are made.
type Config struct {
	Timeout    time.Duration // over all of a call, look-up included, unless the caller's own deadline is earlier
	MaxRetries int           // attempts after the first, for each expert that is asked: the one of the call and each fallback
	Hedge      bool          // ask a second host when the first is slower than the expert usually is
	CheckShare float64       // share of the answers that is asked for again and compared, 0 to 1
	CheckNaN   bool          // refuse NaN and Inf in inputs, and in answers to inputs without
}

// DefaultConfig returns the contract's defaults.
func DefaultConfig() Config {
	return Config{Timeout: 5 * time.Second, MaxRetries: 3, Hedge: true, CheckShare: 0.02, CheckNaN: true}
}

// maxRetries bounds what one call may cost the swarm.
const maxRetries = 64

// Validate reports everything that would not work.
func (c Config) Validate() error {
	var errs []error
	if c.Timeout < time.Millisecond {
		errs = append(errs, fmt.Errorf("timeout: %v is under 1ms: every call would end before its answer", c.Timeout))
	}
	if c.MaxRetries < 0 || c.MaxRetries > maxRetries {
		errs = append(errs, fmt.Errorf("max_retries: %d is not within 0 and %d: one call could keep a whole swarm busy", c.MaxRetries, maxRetries))
	}
	if !(c.CheckShare >= 0 && c.CheckShare <= 1) { // NaN too
		errs = append(errs, fmt.Errorf("share: %v is not within 0 and 1: it is the part of the calls that is asked twice", c.CheckShare))
	}
	return errors.Join(errs...)
}
