package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
	"github.com/kwaai/kwaaid/internal/moe"
)

const (
	// maxBenchCalls bounds the times that a bench keeps: 8 bytes each.
	maxBenchCalls = 10_000_000
	// maxBenchClients bounds the concurrent callers of a bench.
	maxBenchClients = 4096
	// progressTick is how often a bench and a load say how far they are.
	progressTick = 200 * time.Millisecond
)

// target is one of the experts or layers that a bench calls.
type target struct {
	id      expert.ID
	layer   *routed         // nil: it is an expert
	call    moe.Call        // of the layer, without its rows
	batches []*tensor.Dense // of rows, one of them drawn per call; shared by all callers, who only read them
	work    kernel.Work     // with Local, of one call
}

// bench is a running one.
type bench struct {
	core       *core
	req        api.BenchRequest
	targets    []target
	dispatcher moe.Dispatcher // of layers
	done       atomic.Int64
	errors     atomic.Int64
	first      atomic.Pointer[string]
}

// Bench makes load from concurrent callers and measures it.
func (c *core) Bench(ctx context.Context, req api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
	b, err := c.newBench(ctx, req)
	if err != nil {
		return api.BenchResult{}, document(err, c.self)
	}
	bytesBefore, hedgesBefore := c.caller.bytes.Load(), c.dispatch.Counts().Hedges
	begun := time.Now()
	took := make([][]time.Duration, req.Clients)
	var callers sync.WaitGroup
	for i := range req.Clients {
		callers.Go(func() { took[i] = b.call(ctx, rand.New(rand.NewPCG(req.Seed, uint64(i)))) })
	}
	stop := b.report(begun, progress)
	callers.Wait()
	stop()
	total := time.Since(begun)
	if ctx.Err() != nil {
		return api.BenchResult{}, document(context.Cause(ctx), c.self)
	}
	res := b.result(slices.Concat(took...), total)
	res.Hedges = int(c.dispatch.Counts().Hedges - hedgesBefore)
	res.BytesPerCall = float64(c.caller.bytes.Load()-bytesBefore) / float64(res.Calls)
	if req.Local {
		err = b.compareWithLimits(ctx, &res, total)
	}
	return res, err
}

func (c *core) newBench(ctx context.Context, req api.BenchRequest) (*bench, error) {
	switch {
	case len(req.Names) == 0 || req.Rows < 1 || req.Clients < 1 || req.Calls < 1:
		return nil, fmt.Errorf("%w: expected names, and positive numbers of rows, clients and calls", expert.ErrInvalidArgument)
	case req.Clients > maxBenchClients:
		return nil, fmt.Errorf("%w: %d clients: expected at most %d", expert.ErrInvalidArgument, req.Clients, maxBenchClients)
	case req.Calls > maxBenchCalls/req.Clients:
		return nil, fmt.Errorf("%w: %d calls by %d clients: expected at most %d in all", expert.ErrInvalidArgument, req.Calls, req.Clients, maxBenchCalls)
	}
	as, err := c.codec(req.Codec)
	if err != nil {
		return nil, err
	}
	b := &bench{core: c, req: req, dispatcher: layerDispatcher{Dispatcher: c.dispatch, codec: as}}
	if req.Local {
		b.dispatcher = hereDispatcher{c.local}
	}
	for _, name := range req.Names {
		t, err := b.target(ctx, name)
		if err != nil {
			return nil, err
		}
		b.targets = append(b.targets, t)
	}
	return b, nil
}

func (b *bench) target(ctx context.Context, name string) (target, error) {
	ref, err := expert.ParseRef(name)
	if err != nil {
		return target{}, err
	}
	if ref.Layer != nil {
		return b.layerTarget(*ref.Layer)
	}
	t := target{id: ref.ID}
	x, err := b.core.draw(ctx, ref.ID, b.req.Rows, b.req.Seed)
	if err != nil {
		return t, &expert.CallError{Expert: ref.ID, Err: err}
	}
	t.batches = []*tensor.Dense{x}
	if b.req.Local {
		err = b.count(&t, ref.ID, b.req.Rows)
	}
	return t, err
}

const (
	// layerBatches is how many batches of rows are drawn for a layer: of the same rows the same experts are called again and again, whose
	// weights may stay in caches that hold a few of them.
	layerBatches = 16
	// layerElements bounds them, 64 MiB: many rows choose most of the experts anyway.
	layerElements = 16 << 20
)

func (b *bench) layerTarget(name expert.LayerName) (t target, err error) {
	if t.layer, err = b.core.layers.get(name); err != nil {
		return t, err
	}
	gate := t.layer.Gate
	for i := range max(1, min(layerBatches, layerElements/b.req.Rows/gate.Hidden())) {
		t.call, _, err = b.core.layerCall(t.layer, api.LayerRequest{
			Rows: b.req.Rows, Seed: b.req.Seed + uint64(i), Codec: b.req.Codec, Combine: b.req.Combine,
		})
		if err != nil {
			return t, err
		}
		t.batches = append(t.batches, t.call.X)
	}
	if !b.req.Local {
		return t, nil
	}
	for _, x := range t.batches {
		for e, rows := range gate.Route(x.Float32s(), b.req.Rows).RowsPerExpert() {
			if rows == 0 {
				continue
			}
			if err := b.count(&t, name.Expert(e).ID(), rows); err != nil {
				return t, fmt.Errorf("%s: %w", name.Expert(e), err)
			}
		}
	}
	t.work = times(t.work, 1/float64(len(t.batches)))
	if s := t.layer.Shared; s != nil {
		t.add(s.Spec(), b.req.Rows, b.core.engine.Pool.Native(kernel.Dot))
	}
	return t, nil
}

// count adds what rows through an expert that is hosted here cost.
func (b *bench) count(t *target, id expert.ID, rows int) error {
	hosted, ok := b.core.local.Has(id)
	if !ok {
		return fmt.Errorf("%w: %s is not hosted here", expert.ErrNotFound, id)
	}
	t.add(hosted.Spec, rows, b.core.engine.Pool.Native(kernel.Dot))
	return nil
}

// add counts what rows through an expert cost. dotNative: dot is computed by an instruction of its own, else by FMA as the other numerics.
func (t *target) add(s expert.Spec, rows int, dotNative bool) {
	matrices := map[string]float64{expert.KindMLP: 2, expert.KindGLU: 3}[s.Kind]
	flops := 2 * matrices * float64(s.Hidden) * float64(s.Inner) * float64(rows)
	if s.Numerics == kernel.Dot.Version() && dotNative {
		t.work.BF16 += flops
	} else {
		t.work.FMA += flops
	}
	t.work.Bytes += float64(s.Bytes)
}

// times returns so many times the work.
func times(w kernel.Work, n float64) kernel.Work {
	return kernel.Work{FMA: n * w.FMA, BF16: n * w.BF16, Bytes: n * w.Bytes}
}

// call makes one caller's calls and returns how long each took.
func (b *bench) call(ctx context.Context, dice *rand.Rand) []time.Duration {
	took := make([]time.Duration, 0, b.req.Calls)
	for range b.req.Calls {
		t := &b.targets[0]
		if len(b.targets) > 1 {
			t = &b.targets[dice.IntN(len(b.targets))]
		}
		x := t.batches[0]
		if len(t.batches) > 1 {
			x = t.batches[dice.IntN(len(t.batches))]
		}
		start := time.Now()
		err := b.once(ctx, t, x)
		took = append(took, time.Since(start))
		if ctx.Err() != nil {
			return took
		}
		if err != nil {
			b.errors.Add(1)
			message := err.Error()
			b.first.CompareAndSwap(nil, &message)
		}
		b.done.Add(1)
	}
	return took
}

func (b *bench) once(ctx context.Context, t *target, x *tensor.Dense) error {
	if t.layer != nil {
		ctx, cancel := b.core.deadline(ctx, 0)
		defer cancel()
		call := t.call
		call.X = x
		out, err := t.layer.Forward(ctx, b.dispatcher, call)
		if err == nil {
			t.layer.count(out.Routing.RowsPerExpert())
		}
		return err
	}
	if b.req.Local {
		pair := [1]expert.Pair{{Expert: t.id}}
		r := b.core.local.Local(ctx, x, pair[:])[0]
		expert.Release(r.Memory)
		return r.Err
	}
	a, err := b.core.forward(ctx, t.id, x, api.CallRequest{Codec: b.req.Codec})
	expert.Release(a.Memory)
	return err
}

// report calls progress now and then, until the returned function has returned.
func (b *bench) report(begun time.Time, progress func(api.BenchProgress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	return every(progressTick, func() {
		progress(api.BenchProgress{
			Done: int(b.done.Load()), Total: b.req.Clients * b.req.Calls, Errors: int(b.errors.Load()), TookS: time.Since(begun).Seconds(),
		})
	})
}

// every calls f at each tick, in a goroutine that ends before stop returns.
func every(tick time.Duration, f func()) (stop func()) {
	end := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		t := time.NewTicker(tick)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				f()
			}
		}
	})
	return func() {
		close(end)
		reporter.Wait()
	}
}

func (b *bench) result(took []time.Duration, total time.Duration) api.BenchResult {
	slices.Sort(took)
	at := func(share float64) float64 { return millis(took[min(len(took)-1, int(share*float64(len(took))))]) }
	res := api.BenchResult{
		Names: b.req.Names, Rows: b.req.Rows, Clients: b.req.Clients, Calls: len(took), TookS: total.Seconds(),
		P50MS: at(0.5), P90MS: at(0.9), P99MS: at(0.99), MaxMS: at(1), Errors: int(b.errors.Load()),
	}
	good := float64(res.Calls - res.Errors)
	res.CallsPerS = good / total.Seconds()
	res.SamplesPerS = res.CallsPerS * float64(b.req.Rows)
	if m := b.first.Load(); m != nil {
		res.FirstError = *m
	}
	return res
}

// compareWithLimits says what a local bench reached of this machine's memory bandwidth and arithmetic, measured now.
func (b *bench) compareWithLimits(ctx context.Context, res *api.BenchResult, total time.Duration) error {
	limits, err := kernel.MeasureLimits(ctx, b.core.engine.Pool)
	if err != nil {
		return err
	}
	var work kernel.Work // of all calls, had each target got as many
	for _, t := range b.targets {
		work.FMA, work.BF16, work.Bytes = work.FMA+t.work.FMA, work.BF16+t.work.BF16, work.Bytes+t.work.Bytes
	}
	work = times(work, float64(res.Calls-res.Errors)/float64(len(b.targets)))
	gflops, gbs, of := (work.FMA+work.BF16)/total.Seconds()/1e9, work.Bytes/total.Seconds()/1e9, limits.Of(total, work)
	res.GFLOPS, res.GBS, res.OfLimit = &gflops, &gbs, &of
	return nil
}
