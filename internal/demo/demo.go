package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/api"
)

// Config says how large a demo is.
type Config struct {
	Binary   string        // the kwaaid to run as child processes
	Nodes    int           // child processes, 1 to MaxNodes
	Duration time.Duration // of the calls
	Clients  int           // concurrent callers
}

// MaxNodes keeps a demo within what a laptop runs: a node takes some 50 MB.
const MaxNodes = 16

// replicas is on how many nodes each expert lies: with three, one host can be killed and another frozen.
const replicas = 3

// Caller makes the demo's calls: a client of the swarm in this process.
type Caller interface {
	CallLayer(ctx context.Context, req api.LayerRequest) (api.LayerResult, api.LayerOutput, error)
	Close()
}

// Joiner makes a Caller of the swarm that the multiaddrs lead to, which routes the layers of the checkpoint.
type Joiner func(ctx context.Context, bootstrap []string, checkpoint string) (Caller, error)

// Progress is how a running demo is doing.
type Progress struct {
	Elapsed time.Duration
	Note    string        // what just happened to the hosts
	Noted   time.Duration // when that was
	Calls   int
	Failed  int
	Wrong   int
}

// Result sums a demo up.
type Result struct {
	Nodes      int      `json:"nodes"`
	Experts    int      `json:"experts"`
	Replicas   int      `json:"replicas"`
	Calls      int      `json:"calls"`
	Failed     int      `json:"failed"`
	Wrong      int      `json:"wrong"` // answers whose bits differ from those computed in this process
	CallsPerS  float64  `json:"calls_per_s"`
	P50MS      float64  `json:"p50_ms"`
	P99MS      float64  `json:"p99_ms"`
	RecoveryMS float64  `json:"recovery_ms"` // the slowest call that was under way when a host died, or began within a second after
	StartupMS  float64  `json:"startup_ms"`  // from nothing until every node was ready
	Events     []string `json:"events"`
	FirstError string   `json:"first_error,omitempty"`
}

// Run starts the nodes, calls the model's layers for cfg.Duration while hosts are killed and frozen, compares every answer with
// the same layer in this process, and ends everything it started. progress is called from one goroutine, some ten times a second.
func Run(ctx context.Context, cfg Config, join Joiner, progress func(Progress)) (Result, error) {
	if cfg.Nodes < 1 || cfg.Nodes > MaxNodes {
		return Result{}, fmt.Errorf("%d nodes: expected 1 to %d", cfg.Nodes, MaxNodes)
	}
	dir, err := os.MkdirTemp("", "kwaaid-demo-")
	if err != nil {
		return Result{}, fmt.Errorf("the demo needs a temporary directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // a temporary directory, which the system clears too
	begun := time.Now()
	model, err := unpackModel(filepath.Join(dir, ModelName))
	if err != nil {
		return Result{}, err
	}
	calls, err := truth(ctx, model)
	if err != nil {
		return Result{}, err
	}
	hosts, err := startHosts(ctx, cfg, dir, model, progress)
	defer stopHosts(hosts) //nolint:contextcheck // ctx may have ended: the hosts are ended all the same
	if err != nil {
		return Result{}, err
	}
	caller, err := join(ctx, hosts[0].Addrs, model)
	if err != nil {
		return Result{}, fmt.Errorf("joining the demo's swarm: %w", err)
	}
	defer caller.Close()
	startup := time.Since(begun)

	r := &record{begun: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, cfg.Duration)
	defer cancel()
	var g errgroup.Group
	for i := range cfg.Clients {
		g.Go(func() error {
			callUntil(ctx, caller, calls, rand.New(rand.NewPCG(1, uint64(i))), r)
			return nil
		})
	}
	g.Go(func() error { return misfortune(ctx, cfg, hosts, r) })
	g.Go(func() error { report(ctx, r, progress); return nil })
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	res := r.result()
	res.Nodes, res.Experts, res.Replicas = cfg.Nodes, modelLayers*modelExperts, min(replicas, cfg.Nodes)
	res.StartupMS = float64(startup.Microseconds()) / 1e3
	return res, nil
}

// startHosts starts the first node, and then the others with it as their bootstrap. The hosts that started are returned
// also with an error.
func startHosts(ctx context.Context, cfg Config, dir, model string, progress func(Progress)) ([]*Host, error) {
	hosts := make([]*Host, 0, cfg.Nodes)
	for n := range cfg.Nodes {
		progress(Progress{Note: fmt.Sprintf("starting host %d of %d", n+1, cfg.Nodes)})
		args := []string{
			"--data", filepath.Join(dir, fmt.Sprintf("node%d", n)), "--swarm", SwarmName,
			"--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
			"--config", filepath.Join(dir, fmt.Sprintf("node%d.yaml", n)),
		}
		if err := os.WriteFile(args[len(args)-1], []byte(nodeConfig(model, n, cfg.Nodes)), 0o600); err != nil {
			return hosts, err
		}
		if n > 0 {
			args = append(args, "--bootstrap", hosts[0].Addrs[0])
		}
		h, err := StartHost(ctx, cfg.Binary, args, nil)
		if err != nil {
			return hosts, err
		}
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		if err := h.WaitReady(ctx); err != nil {
			return hosts, err
		}
	}
	return hosts, nil
}

// stopTimeout is enough for an idle node to drain.
const stopTimeout = 5 * time.Second

func stopHosts(hosts []*Host) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var g errgroup.Group
	for _, h := range hosts {
		g.Go(func() error { return h.Stop(ctx) })
	}
	_ = g.Wait() // the demo is over: how a host ended is of no more interest
}

// misfortune kills one host after a third of the time and freezes another after two thirds; never all replicas of an expert.
func misfortune(ctx context.Context, cfg Config, hosts []*Host, r *record) error {
	if len(hosts) > 1 {
		if !sleep(ctx, cfg.Duration/3) {
			return nil
		}
		r.event("host 2 killed (SIGKILL)")
		hosts[1].Kill()
	}
	if len(hosts) > 2 {
		if !sleep(ctx, cfg.Duration/3) {
			return nil
		}
		switch err := hosts[2].Freeze(); {
		case errors.Is(err, errors.ErrUnsupported):
			r.event("host 3 not frozen: " + err.Error())
		case err != nil:
			return fmt.Errorf("freezing a host: %w", err)
		default:
			r.event("host 3 frozen (SIGSTOP)")
		}
	}
	return nil
}

func callUntil(ctx context.Context, caller Caller, calls []known, dice *rand.Rand, r *record) {
	for ctx.Err() == nil {
		k := calls[dice.IntN(len(calls))]
		start := time.Now()
		// Without ctx: the last call may end after the demo's time, it is not a failure.
		res, _, err := caller.CallLayer(context.WithoutCancel(ctx), api.LayerRequest{Name: k.layer, Input: k.input})
		r.call(start, err, err == nil && res.SHA256 != k.sha256)
	}
}

func report(ctx context.Context, r *record, progress func(Progress)) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			progress(r.progress())
		case <-ctx.Done():
			return
		}
	}
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
