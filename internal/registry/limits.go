package registry

import (
	"errors"
	"fmt"
)

// Limits bounds what a Table remembers. What is used least recently is forgotten first.
type Limits struct {
	Experts            int // experts known
	ProvidersPerExpert int // providers remembered of one expert
	Peers              int // peers remembered
}

// DefaultLimits keeps a full table under 100 MB (see TestTable_HundredThousandExpertsStayUnder100MB).
func DefaultLimits() Limits {
	return Limits{
		Experts: 100_000,
		// A caller spreads its rows well over far fewer; more would only be memory that strangers fill.
		ProvidersPerExpert: 16,
		Peers:              16_384,
	}
}

// Validate reports all limits that cannot work.
func (l Limits) Validate() error {
	var errs []error
	for _, f := range []struct {
		name   string
		value  int
		effect string
	}{
		{"experts", l.Experts, "no expert could be remembered"},
		{"providers_per_expert", l.ProvidersPerExpert, "no expert could be called"},
		{"peers", l.Peers, "no expert could be called"},
	} {
		if f.value < 1 {
			errs = append(errs, fmt.Errorf("%s: %d is under 1: %s", f.name, f.value, f.effect))
		}
	}
	return errors.Join(errs...)
}
