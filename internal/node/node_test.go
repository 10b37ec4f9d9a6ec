package node

import (
	"context"
	"errors"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/expert"
)

// A disk may be full when a node stops: what it kept for others is announced again anyway.
func TestRun_DrainedIsDoneThoughStateCannotBeClosed(t *testing.T) {
	cfg := config.Default()
	cfg.Data, cfg.Listen, cfg.API, cfg.GRPC = t.TempDir(), []string{"/ip4/127.0.0.1/tcp/0"}, "127.0.0.1:0", "127.0.0.1:0"
	n, err := New(cfg, "test", zerolog.Nop(), Options{})
	require.NoError(t, err)
	closed := false
	n.closers = append(n.closers, func() error {
		closed = true
		return errors.New("no space left on device")
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	require.Eventually(t, func() bool {
		r, err := n.Ready(ctx)
		return err == nil && r.Ready
	}, time.Minute, 10*time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
	require.True(t, closed)
	waitForLevelDB(t)
}

// waitForLevelDB returns once LevelDB's pool has ended, which takes a second.
func waitForLevelDB(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "goleveldb")
	}, time.Minute, 10*time.Millisecond)
}

// The first of several checkpoints may take minutes.
func TestRun_ListsEverythingBeforeTheFirstExpertIsRead(t *testing.T) {
	cfg := config.Default()
	cfg.Data, cfg.Listen, cfg.API, cfg.GRPC = t.TempDir(), []string{"/ip4/127.0.0.1/tcp/0"}, "127.0.0.1:0", "127.0.0.1:0"
	for _, spec := range []string{"id=7,kind=identity,hidden=4", "checkpoint=../../testdata/fixtures/moe/mixtral-f32"} {
		e, err := config.ParseExpert(spec)
		require.NoError(t, err)
		cfg.Experts = append(cfg.Experts, e)
	}
	cfg.Layers = []config.Layer{{Checkpoint: "../../testdata/fixtures/moe/olmoe-f32"}}
	cfg.Calls.TopK = 3
	held, release := make(chan struct{}), make(chan struct{})
	var first sync.Once
	n, err := New(cfg, "test", zerolog.Nop(), Options{Progress: func(api.LoadProgress) {
		first.Do(func() {
			close(held)
			<-release
		})
	}})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	<-held

	_, _, err = n.Call(ctx, api.CallRequest{Name: "mixtral-f32/0/3", Rows: 1})
	require.ErrorIs(t, err, expert.ErrNotReady)
	_, _, err = n.CallLayer(ctx, api.LayerRequest{Name: "mixtral-f32/0", Rows: 1})
	require.ErrorIs(t, err, expert.ErrNotReady)
	layers, err := n.Layers(ctx)
	require.NoError(t, err)
	names := make([]string, 0, len(layers))
	for _, l := range layers {
		names = append(names, l.Layer)
		require.Equal(t, 3, l.TopK, "what calls get, not what the model says")
	}
	require.Equal(t, []string{"mixtral-f32/0", "mixtral-f32/1", "olmoe-f32/0", "olmoe-f32/1"}, names)

	close(release)
	require.Eventually(t, func() bool {
		r, err := n.Ready(ctx)
		return err == nil && r.Ready
	}, time.Minute, 10*time.Millisecond)
	_, out, err := n.CallLayer(ctx, api.LayerRequest{Name: "mixtral-f32/0", Rows: 1})
	require.NoError(t, err)
	require.Equal(t, 3, out.K)
	cancel()
	require.NoError(t, <-ended)
	waitForLevelDB(t)
}

// The shared expert computes them, or the row is zero: the caller would not hear of what he got wrong.
func TestCallLayer_RefusesNaNInRowsThatNoExpertGets(t *testing.T) {
	cfg := config.Default()
	cfg.Data, cfg.Listen, cfg.API, cfg.GRPC = t.TempDir(), []string{"/ip4/127.0.0.1/tcp/0"}, "127.0.0.1:0", "127.0.0.1:0"
	n, err := New(cfg, "test", zerolog.Nop(), Options{})
	require.NoError(t, err)
	require.NoError(t, n.loadLayers(t.Context(), []config.Layer{{Checkpoint: "../../testdata/fixtures/moe/deepseek_v3-f32"}}, false))
	values := make([]float32, 32)
	call := func(check bool) error {
		n.cfg.Checks.NaN = check
		_, _, err := n.CallLayer(t.Context(), api.LayerRequest{
			Name: "deepseek_v3-f32/1", Input: expert.NewRows(values, 32), Experts: []int64{-1}, Weights: []float32{1},
		})
		return err
	}
	require.NoError(t, call(true))
	values[5] = float32(math.NaN())
	err = call(true)
	require.ErrorIs(t, err, expert.ErrInvalidArgument)
	require.ErrorContains(t, err, "checks.nan")
	require.NoError(t, call(false))
	require.NoError(t, n.Close())
	waitForLevelDB(t)
}
