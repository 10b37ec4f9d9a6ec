package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/dispatch"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/moe"
	"github.com/kwaai/kwaaid/internal/wire"
)

// layers holds the MoE layers that this node can route. Safe for concurrent use.
type layers struct {
	mu     sync.RWMutex
	byName map[string]*routed
}

// routed is a layer that can be called, or why it cannot.
type routed struct {
	moe.Layer
	err error // its rule is unknown, or its router cannot be read

	mu   sync.Mutex
	rows []int // that each expert was chosen for since the node started
}

func (ls *layers) put(r *routed) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.byName == nil {
		ls.byName = map[string]*routed{}
	}
	ls.byName[r.Name.String()] = r
}

// get returns a layer. The error matches ErrNotFound where this node cannot route it, and says how it could.
func (ls *layers) get(name expert.LayerName) (*routed, error) {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	r := ls.byName[name.String()]
	if r == nil {
		return nil, fmt.Errorf("%w: this node has no router of layer %s: host experts of its checkpoint, or name the checkpoint under `layers`", expert.ErrNotFound, name)
	}
	if errors.Is(r.err, moe.ErrRouting) {
		return nil, fmt.Errorf("%w: layer %s: %w", expert.ErrUnimplemented, name, r.err)
	}
	return r, r.err
}

// list returns all layers by name.
func (ls *layers) list() []*routed {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	list := make([]*routed, 0, len(ls.byName))
	for _, r := range ls.byName {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *routed) int {
		return cmp.Or(cmp.Compare(a.Name.Model, b.Name.Model), cmp.Compare(a.Name.Revision, b.Name.Revision),
			cmp.Compare(len(a.Name.Layer), len(b.Name.Layer)), cmp.Compare(a.Name.Layer, b.Name.Layer))
	})
	return list
}

// loadLayers loads gates and shared experts of the checkpoints named under `layers`. With keepGoing an entry that fails is logged and
// left out, else the first failure ends it.
func (c *core) loadLayers(ctx context.Context, entries []config.Layer, keepGoing bool) error {
	for _, e := range entries {
		if err := c.loadLayer(ctx, e); err != nil {
			if !keepGoing || ctx.Err() != nil {
				return fmt.Errorf("%w: %w", ErrCannotLoad, err)
			}
			c.log.Error().Err(err).Str("checkpoint", e.Checkpoint).Msg("layers left out")
		}
	}
	return nil
}

func (c *core) loadLayer(ctx context.Context, e config.Layer) error {
	model, err := e.ModelName()
	if err != nil {
		return err
	}
	from, err := checkpoint.Open(e.Checkpoint)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read from
	c.route(ctx, from, model, e.Revision, e.Layers.HasLayer)
	return nil
}

// route loads the gates and shared experts of a checkpoint's chosen layers. A layer that cannot be routed is told of when it is called:
// its experts can be hosted all the same.
func (c *core) route(ctx context.Context, from *checkpoint.Checkpoint, model, revision string, chosen func(layer string) bool) {
	for _, l := range from.Layers() {
		if !chosen(l.Name) {
			continue
		}
		name, err := expert.NewLayerName(model, revision, l.Name)
		if err != nil {
			c.log.Warn().Err(err).Msg("layer left out")
			continue
		}
		r := &routed{Layer: moe.Layer{Name: name, Metrics: c.moe.Layer(name)}, rows: make([]int, l.Experts)}
		if r.err = l.Err; r.err == nil {
			r.Gate, r.err = moe.LoadGate(from, l) //nolint:contextcheck // a router is read in a moment
		}
		if r.err == nil {
			r.Shared, r.err = loadShared(ctx, l, c.engine)
		}
		if r.err != nil {
			c.log.Warn().Err(r.err).Stringer("layer", name).Msg("layer cannot be routed here")
		}
		c.layers.put(r)
	}
}

// loadShared returns the shared expert, an untyped nil where there is none.
func loadShared(ctx context.Context, l *checkpoint.Layer, engine expert.Engine) (expert.Expert, error) {
	shared, err := l.LoadShared(ctx, engine)
	if err != nil || shared == nil {
		return nil, err
	}
	return shared, nil
}

// layerDispatcher is dispatch in moe's words.
type layerDispatcher struct {
	*dispatch.Dispatcher
	codec    codec.DType
	optional bool // experts may be left out
}

// Dispatch is dispatch.Dispatcher's Call.
func (d layerDispatcher) Dispatch(ctx context.Context, x *tensor.Dense, pairs []expert.Pair, each func(int, bool)) ([]moe.Answer, error) {
	req := dispatch.Request{X: x, Pairs: pairs, Codec: d.codec, Optional: d.optional}
	if each != nil {
		req.Each = func(pair int, a dispatch.Answer) { each(pair, a.Err != nil) }
	}
	answers, err := d.Call(ctx, req)
	if err != nil {
		return nil, err
	}
	out := make([]moe.Answer, len(answers))
	for i, a := range answers {
		out[i] = moe.Answer{
			Output: a.Output, Sum: a.Sum, Expert: a.Expert, Peer: a.PeerText, Where: string(a.Where), Digest: a.Digest, Numerics: a.Numerics,
			Attempts: a.Attempts, Err: a.Err, Memory: a.Memory,
		}
	}
	return out, nil
}

// hereDispatcher runs the experts that this node hosts, without the network.
type hereDispatcher struct{ localHost }

// Dispatch is localHost's Local.
func (d hereDispatcher) Dispatch(ctx context.Context, x *tensor.Dense, pairs []expert.Pair, each func(int, bool)) ([]moe.Answer, error) {
	answers := make([]moe.Answer, len(pairs))
	for i, r := range d.Local(ctx, x, pairs) {
		answers[i] = moe.Answer{
			Output: r.Output, Expert: pairs[i].Expert, Where: string(api.WhereLocal), Digest: r.Digest, Numerics: r.Numerics, Err: r.Err,
			Memory: r.Memory,
		}
		if each != nil {
			each(i, r.Err != nil)
		}
	}
	return answers, nil
}

// CallLayer makes one forward pass of a layer.
func (c *core) CallLayer(ctx context.Context, req api.LayerRequest) (api.LayerResult, api.LayerOutput, error) {
	start := time.Now()
	res, out, err := c.callLayer(ctx, start, req)
	if err != nil {
		return api.LayerResult{}, api.LayerOutput{}, document(err, c.self)
	}
	return res, out, nil
}

func (c *core) callLayer(ctx context.Context, start time.Time, req api.LayerRequest) (res api.LayerResult, out api.LayerOutput, err error) {
	ref, err := expert.ParseRef(req.Name)
	if err != nil {
		return res, out, err
	}
	if ref.Layer == nil {
		return res, out, fmt.Errorf("%w: %s is a single expert: expected a layer, MODEL[@REVISION]/LAYER", expert.ErrInvalidArgument, req.Name)
	}
	layer, err := c.layers.get(*ref.Layer)
	if err != nil {
		return res, out, err
	}
	call, as, err := c.layerCall(layer, req)
	if err != nil {
		return res, out, err
	}
	// Rows that are sent are looked at where they are. A caller who routes himself may leave rows out.
	if c.cfg.Checks.NaN && slices.Contains(req.Experts, -1) && !expert.Finite(call.X.Float32s()) {
		return res, out, fmt.Errorf("%w: %s: the input holds NaN or infinity; such inputs are refused (checks.nan)", expert.ErrInvalidArgument, req.Name)
	}
	ctx, cancel := c.deadline(ctx, req.Timeout)
	defer cancel()
	y, err := layer.Forward(ctx, layerDispatcher{c.dispatch, as, call.Policy == moe.PolicySkip}, call)
	if err != nil {
		return res, out, err
	}
	counts := y.Routing.RowsPerExpert()
	layer.count(counts)
	res = api.LayerResult{
		Layer: layer.Name.String(), AnsweredBy: []api.LayerAnswer{}, Attempts: []api.Attempt{}, MissingExperts: []expert.ID{},
		Shape: y.Y.Shape(), Digest: digestOf(y), Numerics: y.Numerics, Codec: as.String(), Balance: balance(counts),
		AuxLoss: layer.Gate.Balance(y.Routing), MS: millis(time.Since(start)), SHA256: api.HashOutput(y.Y.Float32s()),
	}
	for i, a := range y.Answers {
		res.Attempts = append(res.Attempts, attempts(a.Attempts, c.self)...)
		if a.Err != nil {
			continue
		}
		by := api.AnsweredBy{Peer: cmp.Or(a.Peer, c.self.String()), Expert: a.Expert, Where: api.Where(a.Where)}
		res.AnsweredBy = append(res.AnsweredBy, api.LayerAnswer{AnsweredBy: by, Index: y.Groups[i].Expert, Rows: len(y.Groups[i].Rows)})
	}
	for _, m := range y.Missing {
		res.MissingExperts = append(res.MissingExperts, m.ID())
		res.MissingNames = append(res.MissingNames, m.String())
	}
	out = api.LayerOutput{HiddenStates: y.Y, Rows: y.Routing.Rows, K: y.Routing.K, Weights: y.Routing.Weights, RouterLogits: y.Routing.Logits}
	out.Experts = make([]int64, len(y.Routing.Indices))
	for i, e := range y.Routing.Indices {
		out.Experts[i] = int64(e)
	}
	return res, out, nil
}

// layerCall reads a request's settings, the node's own where it has none.
func (c *core) layerCall(layer *routed, req api.LayerRequest) (call moe.Call, as codec.DType, err error) {
	cfg := c.cfg.Calls
	call = moe.Call{
		X: req.Input, Experts: req.Experts, Weights: req.Weights, TopK: cmp.Or(req.TopK, cfg.TopK),
		Numerics: req.Numerics, NoShared: req.NoShared, KMin: cfg.KMin, AfterKMin: cfg.TimeoutAfterKMin,
	}
	if as, err = c.codec(req.Codec); err != nil {
		return call, as, err
	}
	if call.Combine, err = moe.ParseCombining(cmp.Or(req.Combine, cfg.Combine)); err != nil {
		return call, as, err
	}
	if call.Policy, err = moe.ParsePolicy(req.Policy); err != nil {
		return call, as, err
	}
	if req.Input == nil {
		call.X, err = c.drawRows(max(req.Rows, 1), layer.Gate.Hidden(), req.Seed)
	}
	return call, as, err
}

func (r *routed) count(rows []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for e, n := range rows {
		r.rows[e] += n
	}
}

// balance is the busiest expert's rows over the mean of all: 1 where all are equally busy.
func balance(rows []int) float64 {
	sum := 0
	for _, n := range rows {
		sum += n
	}
	if sum == 0 {
		return 0
	}
	return float64(slices.Max(rows)) * float64(len(rows)) / float64(sum)
}

// digestOf says which weights answered: SHA-256 over a line `kwaai-layer/v1` and then, by ascending index, a line with the index and
// the digest of each expert that did.
func digestOf(y *moe.Output) string {
	h := sha256.New()
	_, _ = io.WriteString(h, "kwaai-layer/v1\n") // a hash never fails
	for i, a := range y.Answers {
		if a.Err == nil {
			_, _ = fmt.Fprintf(h, "%d %s\n", y.Groups[i].Expert, a.Digest)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Layers lists the layers that this node can route.
func (c *core) Layers(context.Context) ([]api.Layer, error) {
	list := []api.Layer{}
	for _, r := range c.layers.list() {
		d := api.Layer{Layer: r.Name.String(), Experts: len(r.rows), Shared: r.Shared != nil}
		if _, err := c.layers.get(r.Name); err != nil {
			d.Error, d.Code = r.err.Error(), wire.StatusOf(err).String()
		} else {
			d.Hidden, d.TopK = r.Gate.Hidden(), cmp.Or(c.cfg.Calls.TopK, r.Gate.Rule().TopK)
		}
		r.mu.Lock()
		d.RowsPerExpert = slices.Clone(r.rows)
		r.mu.Unlock()
		d.Balance = balance(d.RowsPerExpert)
		list = append(list, d)
	}
	return list, nil
}
