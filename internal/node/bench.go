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
)

const (
	// maxBenchCalls bounds the times that a bench keeps: 8 bytes each.
	maxBenchCalls = 10_000_000
	// maxBenchClients bounds the concurrent callers of a bench.
	maxBenchClients = 4096
	// progressTick is how often a bench says how far it is.
	progressTick = 200 * time.Millisecond
)

// target is one of the experts that a bench calls.
type target struct {
	id     expert.ID
	x      *tensor.Dense // shared by all callers, who only read it
	hosted expert.Hosted // with Local
}

// bench is a running one.
type bench struct {
	core    *core
	req     api.BenchRequest
	targets []target
	done    atomic.Int64
	errors  atomic.Int64
	first   atomic.Pointer[string]
}

// Bench makes load from concurrent callers and measures it.
func (c *core) Bench(ctx context.Context, req api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error) {
	b, err := c.newBench(ctx, req)
	if err != nil {
		return api.BenchResult{}, document(err, c.self)
	}
	bytesBefore := c.caller.bytes.Load()
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
	if _, err := c.codec(req.Codec); err != nil {
		return nil, err
	}
	b := &bench{core: c, req: req}
	for _, name := range req.Names {
		ref, err := parseExpert(name)
		if err != nil {
			return nil, err
		}
		t := target{id: ref.ID}
		if req.Local {
			var ok bool
			if t.hosted, ok = c.local.Has(ref.ID); !ok {
				return nil, fmt.Errorf("%w: %s is not hosted here", expert.ErrNotFound, name)
			}
		}
		if t.x, err = c.draw(ctx, ref.ID, req.Rows, req.Seed); err != nil {
			return nil, err
		}
		b.targets = append(b.targets, t)
	}
	return b, nil
}

// call makes one caller's calls and returns how long each took.
func (b *bench) call(ctx context.Context, dice *rand.Rand) []time.Duration {
	took := make([]time.Duration, 0, b.req.Calls)
	for range b.req.Calls {
		t := &b.targets[0]
		if len(b.targets) > 1 {
			t = &b.targets[dice.IntN(len(b.targets))]
		}
		start := time.Now()
		err := b.once(ctx, t)
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

func (b *bench) once(ctx context.Context, t *target) error {
	if b.req.Local {
		pair := [1]expert.Pair{{Expert: t.id}}
		return b.core.local.Local(ctx, t.x, pair[:])[0].Err
	}
	_, err := b.core.forward(ctx, t.id, t.x, api.CallRequest{Codec: b.req.Codec})
	return err
}

// report calls progress now and then, until the returned function has returned.
func (b *bench) report(begun time.Time, progress func(api.BenchProgress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	end := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		tick := time.NewTicker(progressTick)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				progress(api.BenchProgress{
					Done: int(b.done.Load()), Total: b.req.Clients * b.req.Calls, Errors: int(b.errors.Load()), TookS: time.Since(begun).Seconds(),
				})
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
	var flops, bytes float64 // of one call, on average over the targets
	for _, t := range b.targets {
		matrices := map[string]float64{expert.KindMLP: 2, expert.KindGLU: 3}[t.hosted.Kind]
		flops += 2 * matrices * float64(t.hosted.Hidden) * float64(t.hosted.Inner) * float64(b.req.Rows) / float64(len(b.targets))
		bytes += float64(t.hosted.Bytes) / float64(len(b.targets))
	}
	calls := float64(res.Calls-res.Errors) / total.Seconds()
	gflops, gbs := flops*calls/1e9, bytes*calls/1e9
	of := max(gflops/limits.FMAGFLOPS, gbs/limits.ReadGBs)
	res.GFLOPS, res.GBS, res.OfLimit = &gflops, &gbs, &of
	return nil
}
