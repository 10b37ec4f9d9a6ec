package expert

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"gorgonia.org/tensor"
)

// Digest covers an expert's function and weights (see Manifest); the zero value means "any".
type Digest [32]byte

// String returns 64 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero tells whether the digest means "any".
func (d Digest) IsZero() bool { return d == Digest{} }

// ParseDigest reads 64 hexadecimal digits. The error matches ErrInvalidArgument.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) {
		return d, fmt.Errorf("%w: %q is no digest: expected 64 hexadecimal digits", ErrInvalidArgument, s)
	}
	copy(d[:], b)
	return d, nil
}

// MarshalText writes the hexadecimal form.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDigest reads.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

// Expert is a function of rows with its weights: stateless, and safe for concurrent use. It has no ID: hosting gives it one.
type Expert interface {
	// Spec says what the function is; it never changes.
	Spec() Spec
	// Forward maps x [rows, hidden] to y [rows, hidden], float32, row-major, rows > 0. A row's result depends on that row alone, bit for bit.
	// It neither keeps nor changes x; y is the caller's, but may be x itself where the function is the identity.
	// It may stop with ctx's cause when ctx ends. Errors match ErrInvalidArgument or are ctx's.
	Forward(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error)
}

// Spec describes an expert's function.
type Spec struct {
	Kind     string // identity, mlp or glu
	Hidden   int    // width of a row, in elements
	Inner    int    // width of the inner layer; 0 for identity
	DType    string // of the weights as stored: f32, bf16, f16, f8_e4m3, mxfp4; f32 for identity
	Digest   Digest // of function and weights
	Numerics string // order of operations with its version, such as exact-1
	Bytes    int64  // memory that the weights take
}

// State is where a hosted expert is in its life.
type State string

// The states, in the order in which an expert goes through them.
const (
	StateLoading  State = "loading"
	StateReady    State = "ready"
	StateDraining State = "draining"
	StateFailed   State = "failed"
)

// Hosted is an expert under its ID at one host.
type Hosted struct {
	ID      ID
	Name    string // MODEL[@REVISION]/LAYER/INDEX; empty where it has none
	State   State
	Problem string // why it failed; empty in every other state
	Spec
}

// Pair asks for some rows of a batch through one expert.
type Pair struct {
	Expert   ID
	Digest   Digest  // the weights that are meant; zero: whatever the host has
	Numerics string  // the order of operations that is wanted; empty: whatever the host has
	Rows     []int32 // indices into the batch, each within it; nil: all rows in order
	// Weights, one for each of the pair's rows, allow the host to return a Sum in place of outputs; nil: the output is wanted.
	Weights []float32
}

// RowCount returns how many rows of a batch of the given size the pair asks for.
func (p Pair) RowCount(batch int) int {
	if p.Rows == nil {
		return batch
	}
	return len(p.Rows)
}

// Takes tells whether an order of operations is one that the pair asks for: any where it names none, and any version where it names
// none (`exact` takes `exact-1`).
func (p *Pair) Takes(numerics string) bool {
	if p.Numerics == "" || p.Numerics == numerics {
		return true
	}
	rest, ok := strings.CutPrefix(numerics, p.Numerics)
	version, dash := strings.CutPrefix(rest, "-")
	return ok && dash && version != "" && strings.Trim(version, "0123456789") == ""
}

// Result is what became of a Pair. Exactly one of Output, Sum and Err is set.
type Result struct {
	Output   *tensor.Dense // [rows of the pair, hidden]
	Sum      *Sum          // shared by all results of an exchange that are in it
	Digest   Digest        // of the expert that answered
	Numerics string        // how it computed
	Err      error         // matches one of the status sentinels
	Memory   Memory        // of Output; nil: it is never used again
}

// Memory is where outputs stand, which other outputs may take once nobody reads these any more. Outputs of one pass share it.
type Memory interface {
	// Release says that one of the outputs is not read any more. It is called at most once for each, and may be left out: then the
	// garbage collector takes the memory back.
	Release()
}

// Release gives an output's memory back; m may be nil. The output must not be touched any more.
func Release(m Memory) {
	if m != nil {
		m.Release()
	}
}

// Load is how busy a host is, as it says in every reply.
type Load struct {
	QueuedRows  int           // rows admitted and not yet answered
	ServiceTime time.Duration // smoothed time to compute one row, all experts together
}

// Description is a host's account of itself, the reply to describe.
type Description struct {
	Version     string // of the software
	Experts     []Hosted
	FreeMemory  int64   // bytes that further experts may take
	SpeedGFLOPS float64 // measured at start; 0: not measured
	Load        Load
	Draining    bool // it takes no new calls
}
