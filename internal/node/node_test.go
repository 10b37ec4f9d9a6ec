package node

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/config"
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
	require.Eventually(t, func() bool { // LevelDB's pool takes a second to go
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "goleveldb")
	}, time.Minute, 10*time.Millisecond)
}
