package main

import (
	"fmt"
	"io"

	"github.com/kwaai/kwaaid/internal/api"
)

type benchCmd struct {
	Names   []string `arg:"" name:"name" help:"Experts and MoE layers to call; one is drawn at random per call."`
	Rows    int      `default:"1" help:"Rows per call."`
	Clients int      `default:"1" help:"Concurrent callers."`
	Calls   int      `default:"1000" help:"Calls per caller."`
	Codec   string   `enum:",f32,bf16,f16" default:"" help:"Activations on the wire: f32, bf16 or f16."`
	Combine string   `enum:",caller,peer" default:"" help:"Layers: where the experts' outputs are added up: caller or peer."`
	Local   bool     `help:"Only the node's own experts, without the network: what is this machine worth?"`
	Seed    uint64   `help:"Seed of rows and draws."`
	join    `embed:""`
}

// Run makes the load where the swarm is called: in the node, or in this process with --bootstrap.
func (c *benchCmd) Run(a *app) error {
	if err := checkNames(c.Names, len(c.Bootstrap) == 0); err != nil {
		return err
	}
	if c.Rows < 1 || c.Clients < 1 || c.Calls < 1 {
		return usageError("--rows, --clients and --calls: expected positive numbers")
	}
	if c.Local && len(c.Bootstrap) > 0 {
		return usageError("--local measures the local node: leave out --bootstrap")
	}
	s, err := c.open(a)
	if err != nil {
		return err
	}
	defer s.Close()
	line := a.progress()
	res, err := s.Bench(a.ctx, api.BenchRequest{
		Names: c.Names, Rows: c.Rows, Clients: c.Clients, Calls: c.Calls, Codec: c.Codec, Combine: c.Combine, Local: c.Local, Seed: c.Seed,
	}, func(p api.BenchProgress) {
		line.set("%d of %d calls (%d %%), %.0f calls/s, %d errors", p.Done, p.Total, 100*p.Done/max(p.Total, 1), float64(p.Done)/max(p.TookS, 1e-9), p.Errors)
	})
	line.clear()
	if err != nil {
		return err
	}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%d calls of %d rows by %d clients in %.2f s\n", res.Calls, res.Rows, res.Clients, res.TookS)
		fmt.Fprintf(w, "  %10.0f rows/s   %10.0f calls/s\n", res.SamplesPerS, res.CallsPerS)
		fmt.Fprintf(w, "  p50 %s   p90 %s   p99 %s   max %s\n", millis(res.P50MS), millis(res.P90MS), millis(res.P99MS), millis(res.MaxMS))
		fmt.Fprintf(w, "  %s a call   %d hedges   %d errors\n", bytesText(res.BytesPerCall), res.Hedges, res.Errors)
		if res.FirstError != "" {
			fmt.Fprintf(w, "  first error: %s\n", res.FirstError)
		}
		if res.GFLOPS != nil && res.GBS != nil && res.OfLimit != nil {
			fmt.Fprintf(w, "  %.1f GFLOP/s   %.1f GB/s of weights   %.2f of this machine's limit\n", *res.GFLOPS, *res.GBS, *res.OfLimit)
		}
	})
}
