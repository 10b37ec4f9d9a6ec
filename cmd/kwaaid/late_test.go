package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/demo"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
	"github.com/kwaai/kwaaid/internal/node"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/serving"
)

// A late host is a process of this test binary that hosts the experts of a checkpoint as kwaaid does, but for a share of its answers that
// comes late. kwaaid itself has no switch for that.

// asLateHost makes the test binary be one; its value is the directory of the checkpoint.
const asLateHost = "KWAAID_TEST_AS_LATE_HOST"

// lateShare of a late host's answers come lateBy later.
const (
	lateShare = 0.02
	lateBy    = 100 * time.Millisecond
)

// lateHandler is serving's host, whose work begins late at times.
type lateHandler struct{ *serving.Host }

func (h lateHandler) Admit(rows, hidden int, pairs []expert.Pair) rpc.Admission {
	a := h.Host.Admit(rows, hidden, pairs)
	if rand.Float64() >= lateShare {
		return a
	}
	return lateAdmission{a}
}

type lateAdmission struct{ rpc.Admission }

func (a lateAdmission) Run(ctx context.Context, x *tensor.Dense) []expert.Result {
	timer := time.NewTimer(lateBy)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return a.Admission.Run(ctx, x)
}

// runLateHost hosts a checkpoint until SIGTERM, and says where it is in the words of `kwaaid run --json`.
func runLateHost(dir string, stdout io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	key, err := p2p.NewIdentity()
	if err != nil {
		return err
	}
	cfg := p2p.DefaultConfig()
	cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	host, err := p2p.New(key, cfg)
	if err != nil {
		return err
	}
	defer host.Close()
	pool := kernel.NewPool(0)
	defer pool.Close()
	experts, err := serving.New(serving.DefaultConfig())
	if err != nil {
		return err
	}
	defer experts.Close()
	if err := hostCheckpoint(ctx, experts, dir, expert.Engine{Pool: pool}); err != nil {
		return err
	}
	server, err := rpc.NewServer(host, lateHandler{experts}, rpc.DefaultServerConfig())
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return host.Run(ctx) })
	g.Go(func() error { return server.Run(ctx) })
	up := demo.Up{Message: node.UpMessage, Peer: host.ID().String(), Addrs: []string{fmt.Sprintf("%s/p2p/%s", host.Addrs()[0], host.ID())}}
	if err := json.NewEncoder(stdout).Encode(up); err != nil {
		return err
	}
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// hostCheckpoint loads all experts of a checkpoint.
func hostCheckpoint(ctx context.Context, host *serving.Host, dir string, engine expert.Engine) error {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	choices, _, err := c.Select(nil, nil)
	if err != nil {
		return err
	}
	for _, choice := range choices {
		layer, err := expert.NewLayerName(filepath.Base(dir), "", choice.Layer.Name)
		if err != nil {
			return err
		}
		name := layer.Expert(choice.Index)
		loading, err := host.Begin(serving.Offer{ID: name.ID(), Name: name.String(), Load: func(ctx context.Context) (expert.Expert, error) {
			return choice.Layer.Load(ctx, choice.Index, engine, nil)
		}})
		if err != nil {
			return err
		}
		if err := loading.Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startLateHosts starts late hosts of a checkpoint, and returns the lines of a caller's configuration that tell where its experts are.
func startLateHosts(t testing.TB, n int, dir string, names []string) (remotes []string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	var addrs []string
	for range n {
		h, err := demo.StartHost(t.Context(), self, nil, []string{asLateHost + "=" + dir})
		require.NoError(t, err)
		t.Cleanup(h.Kill)
		addrs = append(addrs, h.Addrs...)
	}
	remotes = []string{"remotes:"}
	for _, name := range names {
		remotes = append(remotes, fmt.Sprintf("  %s: [%s]", name, strings.Join(addrs, ", ")))
	}
	return remotes
}

// benched is what a bench met.
type benched struct {
	api.BenchResult

	frames float64 // requests that were sent for each call
}

// TestMeasure_LateAnswers: three replicas, of whose answers 2% come 100 ms late; what hedging does for calls of an expert and of a layer.
func TestMeasure_LateAnswers(t *testing.T) {
	measured(t)
	dir := fixtureDirs(t, "tiny-mixtral-text")[0]
	const layer, expertsOfLayer = "tiny-mixtral-text/0", 8
	var names []string
	for e := range expertsOfLayer {
		names = append(names, layer+"/"+strconv.Itoa(e))
	}
	remotes := startLateHosts(t, 3, dir, names)
	ask := func(t *testing.T, hedge bool, name string) benched {
		config := append([]string{
			"calls: {hedge: " + strconv.FormatBool(hedge) + "}", "checks: {share: 0}", "layers: [{checkpoint: " + dir + "}]",
		}, remotes...)
		path := filepath.Join(t.TempDir(), "caller.yaml")
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(config, "\n")), 0o600))
		caller := startNode(t, "--config", path)
		request := api.BenchRequest{Names: []string{name}, Rows: 1, Clients: 4, Calls: 500}
		_, err := caller.Client.Bench(t.Context(), request, nil) // connections, and how long calls usually take
		require.NoError(t, err)
		before := requestsSent(t, caller)
		request.Calls = 5000
		res, err := caller.Client.Bench(t.Context(), request, nil)
		require.NoError(t, err)
		require.Zero(t, res.Errors, res.FirstError)
		b := benched{res, (requestsSent(t, caller) - before) / float64(res.Calls)}
		t.Logf("%s, hedge %v: p50 %.2f ms, p90 %.2f, p99 %.2f, slowest %.1f; %.4f requests a call, %d hedges in %d calls",
			name, hedge, b.P50MS, b.P90MS, b.P99MS, b.MaxMS, b.frames, b.Hedges, b.Calls)
		return b
	}
	for _, story := range []struct {
		name  string
		falls float64 // p99, at least so many times
		more  float64 // requests, at most
	}{
		{names[3], 5, 0.05},
		{layer, 3, 0.08},
	} {
		t.Run(story.name, func(t *testing.T) {
			without, with := ask(t, false, story.name), ask(t, true, story.name)
			falls, more := without.P99MS/with.P99MS, with.frames/without.frames-1
			t.Logf("p99 falls %.1f times (limit %.0f) for %.2f%% more requests (limit %.0f%%)", falls, story.falls, 100*more, 100*story.more)
			require.GreaterOrEqual(t, falls, story.falls)
			require.LessOrEqual(t, more, story.more)
		})
	}
}

// requestsSent counts the requests with rows that a node has sent.
func requestsSent(t testing.TB, h *demo.Host) (n float64) {
	t.Helper()
	for _, s := range scrape(t, h.API) {
		if s.name == "kwaai_rpc_exchanges_total" && s.labels["side"] == "client" && s.labels["codec"] != "none" {
			n += total([]series{s}, s.name)
		}
	}
	return n
}
