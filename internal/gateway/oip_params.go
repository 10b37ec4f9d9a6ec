package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// inferParams are the parameters of a request; the zero value leaves all to the node.
type inferParams struct {
	timeout  time.Duration // 0: the deadline of the call, else the node's calls.timeout
	digest   string
	codec    string
	numerics string
	policy   string // fail or skip, for layers; a single expert has nobody to leave out
	combine  string // caller or peer, for layers; a single expert's rows are no sum
	noShared bool   // for layers: the shared expert is left to the caller
	binary   bool   // HTTP: outputs that say nothing else travel as binary
}

// set takes one parameter; value is a bool, a string, a json.Number, or one of gRPC's numbers. An unknown key is an error, since a
// misspelt digest or policy must not be lost in silence; what Triton's clients may send besides, and means nothing here, is passed over.
func (p *inferParams) set(key string, value any) error {
	var err error
	switch key {
	case "timeout_ms":
		p.timeout, err = positive(value, time.Millisecond)
	case "timeout": // Triton's, in microseconds
		p.timeout, err = positive(value, time.Microsecond)
	case "digest":
		if p.digest, err = text(value); err == nil && p.digest != "" {
			_, err = expert.ParseDigest(p.digest)
		}
	case "codec":
		p.codec, err = text(value)
	case "numerics":
		p.numerics, err = text(value)
	case "policy":
		p.policy, err = text(value, "fail", "skip")
	case "combine":
		p.combine, err = text(value, "caller", "peer")
	case "shared":
		var shared bool
		shared, err = flag(value)
		p.noShared = !shared
	case "binary_data_output":
		p.binary, err = flag(value)
	case "priority":
	default:
		err = errors.New("unknown: expected timeout_ms, digest, codec, numerics, policy, combine or shared")
	}
	if err != nil {
		return refuse(wire.InvalidArgument, "parameter "+quoted(key)+": "+err.Error())
	}
	return nil
}

// positive reads a number of units of time.
func positive(value any, unit time.Duration) (time.Duration, error) {
	n, ok := number(value)
	if !ok {
		return 0, fmt.Errorf("%s is no number", written(value))
	}
	if !(n > 0) {
		return 0, fmt.Errorf("%v is no time to answer in", value)
	}
	return max(1, time.Duration(min(n*float64(unit), float64(math.MaxInt64/2)))), nil // 0 would be the node's own
}

// written returns a value so that a string does not look like what it spells.
func written(value any) string {
	if s, ok := value.(string); ok {
		return quoted(s)
	}
	return fmt.Sprint(value)
}

// number reads any of the forms in which numbers come.
func number(value any) (float64, bool) {
	switch v := value.(type) {
	case json.Number:
		n, err := v.Float64()
		return n, err == nil
	case float64:
		return v, true
	case int64:
		return float64(v), true
	case uint64:
		return float64(v), true
	default:
		return 0, false
	}
}

// text reads a string, one of allowed if there are any.
func text(value any, allowed ...string) (string, error) {
	s, ok := value.(string)
	if !ok {
		return "", fmt.Errorf("%s is no string", written(value))
	}
	if len(allowed) > 0 && !slices.Contains(allowed, s) {
		return "", fmt.Errorf("%s: expected %s", quoted(s), strings.Join(allowed, " or "))
	}
	return s, nil
}

// flag reads a bool.
func flag(value any) (bool, error) {
	b, ok := value.(bool)
	if !ok {
		return false, fmt.Errorf("%s is neither true nor false", written(value))
	}
	return b, nil
}

// refuseTensorParam tells what is wrong with a parameter of an input or output that is not of the binary extension.
func refuseTensorParam(tensor, key string) error {
	if strings.HasPrefix(key, "shared_memory") || key == "classification" {
		return refuse(wire.Unimplemented, fmt.Sprintf("tensor %s: %s is not supported", quoted(tensor), key))
	}
	return refuse(wire.InvalidArgument, fmt.Sprintf("tensor %s: unknown parameter %s", quoted(tensor), quoted(key)))
}
