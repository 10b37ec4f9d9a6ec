package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/demo"
	"github.com/kwaai/kwaaid/internal/node"
)

type demoCmd struct {
	Nodes   int `default:"4" help:"Hosts to start, each a process of its own."`
	Seconds int `default:"20" help:"How long calls are made."`
	Clients int `default:"4" help:"Concurrent callers."`
}

// Run runs the demo; anything failed or wrong makes the exit code 1.
func (c *demoCmd) Run(a *app) error {
	if c.Nodes < 1 || c.Nodes > demo.MaxNodes || c.Seconds < 1 || c.Clients < 1 {
		return usagef("--nodes: expected 1 to %d; --seconds and --clients: expected positive numbers", demo.MaxNodes)
	}
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("the demo runs this binary as child processes: %w", err)
	}
	cfg := demo.Config{Binary: binary, Nodes: c.Nodes, Duration: time.Duration(c.Seconds) * time.Second, Clients: c.Clients}
	line, note := a.progress(), ""
	res, err := demo.Run(a.ctx, cfg, joinDemo, func(p demo.Progress) {
		if p.Note != "" && p.Note != note {
			note = p.Note
			line.clear()
			_, _ = fmt.Fprintf(a.stderr, "%6.1f s  %s\n", p.Noted.Seconds(), note)
		}
		done := min(1, p.Elapsed.Seconds()/cfg.Duration.Seconds())
		const width = 24
		bar := strings.Repeat("█", int(done*width)) + strings.Repeat("░", width-int(done*width))
		line.set("%6.1f s  %s  %d calls, %d failed, %d wrong", p.Elapsed.Seconds(), bar, p.Calls, p.Failed, p.Wrong)
	})
	line.clear()
	if err != nil {
		return err
	}
	if err := a.print(res, func(w io.Writer) { printDemo(w, res) }); err != nil {
		return err
	}
	if res.Failed > 0 || res.Wrong > 0 {
		return quiet{exitFailed}
	}
	return nil
}

func printDemo(w io.Writer, r demo.Result) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	swarm := fmt.Sprintf("%d processes", r.Nodes)
	if r.Nodes == 1 {
		swarm = "one process"
	}
	p("\nA swarm of %s, up in %s, hosted the %d experts of a small text model, each on %d of them.\n",
		swarm, millis(r.StartupMS), r.Experts, r.Replicas)
	for _, e := range r.Events {
		at, what, _ := strings.Cut(e, ": ")
		p("%8s  %s\n", at, what)
	}
	p("\n  calls     %d, %.0f a second: each a layer's, to the experts that its router chose, found through the DHT\n", r.Calls, r.CallsPerS)
	p("  failed    %d\n", r.Failed)
	p("  wrong     %d: every answer is compared with the same layer computed here, bit for bit\n", r.Wrong)
	p("  p50       %-9s half of the calls took no longer\n", millis(r.P50MS))
	p("  p99       %-9s 99 of 100 took no longer\n", millis(r.P99MS))
	if len(r.Events) > 0 {
		p("  recovery  %-9s the slowest call around a host's end\n", millis(r.RecoveryMS))
	}
	if r.FirstError != "" {
		p("\n  first failure: %s\n", r.FirstError)
	}
}

// joinDemo joins the demo's swarm as a client, with a node's defaults.
func joinDemo(ctx context.Context, bootstrap []string, checkpoint string) (demo.Caller, error) {
	cfg := config.Default()
	cfg.Swarm = demo.SwarmName
	cfg.Bootstrap = bootstrap
	cfg.Layers = []config.Layer{{Checkpoint: checkpoint, Model: demo.ModelName}}
	return node.Join(ctx, cfg, version())
}
