package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/dispatch"
	"github.com/kwaai/kwaaid/internal/expert"
)

// Call makes one forward pass: the document and the output, of the input's shape.
func (c *core) Call(ctx context.Context, req api.CallRequest) (api.CallResult, *tensor.Dense, error) {
	start := time.Now()
	ref, err := parseExpert(req.Name)
	if err != nil {
		return api.CallResult{}, nil, document(err, c.self)
	}
	ctx, cancel := c.deadline(ctx, req.Timeout)
	defer cancel()
	x, shape := req.Input, tensor.Shape(nil)
	if x == nil {
		x, err = c.draw(ctx, ref.ID, max(req.Rows, 1), req.Seed)
	} else {
		shape = x.Shape()
		x, err = asRows(x)
	}
	if err != nil {
		return api.CallResult{}, nil, document(&expert.CallError{Expert: ref.ID, Err: err}, c.self)
	}
	a, err := c.forward(ctx, ref.ID, x, req)
	if err != nil {
		return api.CallResult{}, nil, document(err, c.self)
	}
	y := a.Output
	if len(shape) != 0 && len(shape) != 2 {
		y = tensor.New(tensor.WithShape(shape...), tensor.WithBacking(a.Output.Data()))
	}
	took := time.Since(start)
	as, err := c.codec(req.Codec)
	if err != nil {
		return api.CallResult{}, nil, document(err, c.self)
	}
	res := api.CallResult{
		Expert: ref.ID, AnsweredBy: c.answeredBy(a), Attempts: attempts(a.Attempts, c.self), Shape: y.Shape(),
		Digest: a.Digest.String(), Numerics: a.Numerics, Codec: as.String(), MS: millis(took), SHA256: api.HashOutput(y.Float32s()),
	}
	if ref.Name != nil {
		res.Name = ref.Name.String()
	}
	return res, y, nil
}

// deadline bounds a call; 0 is the node's own choice.
func (c *core) deadline(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout <= 0 {
		timeout = c.cfg.Calls.Timeout
	}
	return context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: %v were given", expert.ErrDeadlineExceeded, timeout))
}

// forward is Call without its documents, for callers who count microseconds. Errors are *expert.CallError.
func (c *core) forward(ctx context.Context, id expert.ID, x *tensor.Dense, req api.CallRequest) (dispatch.Answer, error) {
	pair := expert.Pair{Expert: id, Numerics: req.Numerics}
	as, err := c.codec(req.Codec)
	if err != nil {
		return dispatch.Answer{}, err
	}
	if req.Digest != "" {
		if pair.Digest, err = expert.ParseDigest(req.Digest); err != nil {
			return dispatch.Answer{}, err
		}
	}
	answers, err := c.dispatch.Call(ctx, dispatch.Request{X: x, Pairs: []expert.Pair{pair}, Codec: as})
	if err != nil {
		return dispatch.Answer{}, &expert.CallError{Expert: id, Err: err}
	}
	return answers[0], answers[0].Err
}

func (c *core) answeredBy(a dispatch.Answer) api.AnsweredBy {
	by := api.AnsweredBy{Peer: c.self.String(), Expert: a.Expert, Where: api.Where(a.Where)}
	if a.Peer != "" {
		by.Peer = a.Peer.String()
	}
	return by
}

// codec reads the name of a codec; empty is the node's own choice.
func (c *core) codec(name string) (codec.DType, error) {
	if name == "" {
		name = c.cfg.Calls.Codec
	}
	as, err := codec.ParseDType(name)
	if err != nil || as != codec.F32 && as != codec.BF16 && as != codec.F16 {
		return 0, fmt.Errorf("%w: codec %q: expected f32, bf16 or f16", expert.ErrUnimplemented, name)
	}
	return as, nil
}

// asRows sees a tensor of one or three dimensions as rows; the elements are shared.
func asRows(x *tensor.Dense) (*tensor.Dense, error) {
	shape := x.Shape()
	if x.Dtype() != tensor.Float32 {
		return nil, fmt.Errorf("%w: the input is %v: expected float32", expert.ErrInvalidArgument, x.Dtype())
	}
	if len(shape) < 1 || len(shape) > 3 || shape.TotalSize() == 0 {
		return nil, fmt.Errorf("%w: the input has shape %v: expected [hidden], [rows, hidden] or [a, b, hidden], none of them 0", expert.ErrInvalidArgument, []int(shape))
	}
	if len(shape) == 2 {
		return x, nil
	}
	return expert.NewRows(x.Float32s(), shape[len(shape)-1]), nil
}

// draw makes rows for an expert, as wide as it takes them; where nobody knows that, as wide as those who stand in for it do.
func (c *core) draw(ctx context.Context, id expert.ID, rows int, seed uint64) (*tensor.Dense, error) {
	hidden, err := c.hidden(ctx, id)
	for of, list := range c.cfg.Fallbacks {
		for _, f := range list {
			if err != nil && of.ID == id {
				if width, ferr := c.hidden(ctx, f.ID); ferr == nil {
					hidden, err = width, nil
				}
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return c.drawRows(rows, hidden, seed)
}

// drawRows makes rows of values in [-1, 1) from a seed, the same on every machine: PCG of Go's math/rand/v2, seeded with it and 0.
func (c *core) drawRows(rows, hidden int, seed uint64) (*tensor.Dense, error) {
	if int64(rows) > int64(c.cfg.Serving.MaxFrame)/4/int64(hidden) {
		return nil, fmt.Errorf("%w: %d rows of %d elements are above max_frame (%v)", expert.ErrTooLarge, rows, hidden, c.cfg.Serving.MaxFrame)
	}
	dice := rand.New(rand.NewPCG(seed, 0))
	values := make([]float32, rows*hidden)
	for i := range values {
		values[i] = 2*dice.Float32() - 1
	}
	return expert.NewRows(values, hidden), nil
}

// hidden finds out how wide an expert's rows are: from the expert here, from what is known of it, or from one of its hosts.
func (c *core) hidden(ctx context.Context, id expert.ID) (int, error) {
	if h, ok := c.local.Has(id); ok && h.Hidden > 0 {
		return h.Hidden, nil
	}
	if width := c.table.Hidden(id); width > 0 {
		return width, nil
	}
	hosts, err := c.hosts(ctx, id)
	if h, ok := c.local.Has(id); err != nil && ok {
		return 0, fmt.Errorf("%w: %s is %s at this node, and nobody else is found", expert.ErrNotReady, id, h.State)
	}
	if err != nil {
		return 0, err
	}
	dials := func(p peer.ID) int {
		if c.host.Network().Connectedness(p) == network.Connected {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(hosts, func(p, q peer.ID) int { return dials(p) - dials(q) })
	c.describer.until(ctx, hosts, func() bool { return c.table.Hidden(id) > 0 })
	if width := c.table.Hidden(id); width > 0 {
		return width, nil
	}
	return 0, fmt.Errorf("%w: none of the %d hosts of %s says how wide its rows are: give an input", expert.ErrNotReady, len(hosts), id)
}

const (
	// searchTime is how long walks that find nobody are repeated, every searchPause: records of a host that has just come may be on their way.
	searchTime  = time.Second
	searchPause = 100 * time.Millisecond
	// walkPatience is how long a walk is waited for before whom it has found will do: it may have to wait for peers that are gone.
	walkPatience = 250 * time.Millisecond
)

// hosts returns the peers that are known or found to host an expert. The error matches ErrNotFound where there are none.
func (c *core) hosts(ctx context.Context, id expert.ID) ([]peer.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	var lookErr error
	for {
		var hosts []peer.ID
		for _, v := range c.table.Providers(id, time.Now()) {
			hosts = append(hosts, v.Peer)
		}
		if len(hosts) > 0 {
			return hosts, nil
		}
		walk, cancel := context.WithTimeout(ctx, walkPatience)
		found, err := c.finder.Walk(walk, id)
		cancel()
		if err != nil && lookErr == nil {
			lookErr = err
		}
		for _, p := range found {
			hosts = append(hosts, p.ID)
		}
		if len(hosts) > 0 {
			return hosts, nil
		}
		select {
		case <-time.After(searchPause):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w: nobody in the swarm %s announces it, and this node does not host it", expert.ErrNotFound, c.cfg.Swarm), lookErr)
		}
	}
}

// parseExpert reads the NAME of one expert.
func parseExpert(name string) (expert.Ref, error) {
	ref, err := expert.ParseRef(name)
	if err == nil && ref.Layer != nil {
		err = fmt.Errorf("%w: %s is a layer: expected one expert, such as %s", expert.ErrInvalidArgument, name, ref.Layer.Expert(0))
	}
	return ref, err
}
