package dispatch

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

// Request is a batch of rows and what is to be done with them.
type Request struct {
	X       *tensor.Dense // [rows, hidden], float32; not changed while Call runs
	Pairs   []expert.Pair // at least one, each with at least one row; those with weights may be answered by sums
	Codec   codec.DType   // how numbers travel: F32, BF16 or F16
	Timeout time.Duration // over all, look-up included; 0: what the context gives, the configured one where it gives none. The context's deadline holds too.
	// Optional pairs may stay unanswered: where a call for an expert ended in vain lately, nobody is looked for but those who are known.
	Optional bool

	// Each, if set, is called for every pair as soon as it is decided, with the pair's place in Pairs; the attempts that are still
	// under way are missing in what it gets. Several goroutines may call it at once; Call returns after the last.
	Each func(pair int, a Answer)
}

// Where says where an answer was computed.
type Where string

// The places.
const (
	WhereLocal    Where = "local"
	WhereRemote   Where = "remote"
	WhereFallback Where = "fallback" // by a fallback expert, wherever it lives
)

// Answer is what became of a pair. Exactly one of Output, Sum and Err is set.
type Answer struct {
	Output   *tensor.Dense // [rows of the pair, hidden]; the caller's
	Sum      *expert.Sum   // likewise; shared by the pairs that it is the sum of. No pair is in two of them.
	Expert   expert.ID     // who answered: the one asked for, or a fallback
	Peer     peer.ID       // where; empty: this node
	PeerText string        // Peer as people write it, which takes microseconds to make
	Where    Where
	Digest   expert.Digest
	Numerics string
	Attempts []expert.Attempt // in the order in which they began; also those that lost
	Err      error            // a *expert.CallError; it matches the sentinel of the reason that decided
	Memory   expert.Memory    // of Output, to be released by who wants no more of it; may be nil
}

// check looks at all that the caller could have got wrong. The error matches expert.ErrInvalidArgument.
func (d *Dispatcher) check(req *Request) (rows, hidden int, err error) {
	if req.X == nil || req.X.Dims() != 2 {
		return 0, 0, fmt.Errorf("%w: expected a batch [rows, hidden]", expert.ErrInvalidArgument)
	}
	rows, hidden = req.X.Shape()[0], req.X.Shape()[1]
	values, err := expert.Rows(req.X, hidden)
	if err != nil {
		return 0, 0, err
	}
	if len(req.Pairs) == 0 {
		return 0, 0, fmt.Errorf("%w: expected at least one (expert, rows) pair", expert.ErrInvalidArgument)
	}
	switch req.Codec {
	case codec.F32, codec.BF16, codec.F16:
	default:
		return 0, 0, fmt.Errorf("%w: expected codec f32, bf16 or f16, found %v", expert.ErrInvalidArgument, req.Codec)
	}
	for i := range req.Pairs {
		p := &req.Pairs[i]
		if p.Rows != nil && len(p.Rows) == 0 {
			return 0, 0, fmt.Errorf("%w: pair %d (%s) has no rows", expert.ErrInvalidArgument, i, p.Expert)
		}
		if n := p.RowCount(rows); p.Weights != nil && (len(p.Weights) != n || !expert.Finite(p.Weights)) {
			return 0, 0, fmt.Errorf("%w: pair %d (%s): expected %d finite weights", expert.ErrInvalidArgument, i, p.Expert, n)
		}
		for _, r := range p.Rows {
			if r < 0 || int(r) >= rows {
				return 0, 0, fmt.Errorf("%w: pair %d (%s) asks for row %d of %d", expert.ErrInvalidArgument, i, p.Expert, r, rows)
			}
		}
	}
	if d.cfg.CheckNaN && !expert.Finite(values) {
		return 0, 0, fmt.Errorf("%w: %s is NaN or infinite; such inputs are refused (checks.nan)",
			expert.ErrInvalidArgument, firstNotFinite(values, hidden))
	}
	return rows, hidden, nil
}

// firstNotFinite says where the first NaN or Inf stands.
func firstNotFinite(values []float32, hidden int) string {
	for i, v := range values {
		if v-v != 0 {
			return fmt.Sprintf("element (%d, %d)", i/hidden, i%hidden)
		}
	}
	return "an element"
}
