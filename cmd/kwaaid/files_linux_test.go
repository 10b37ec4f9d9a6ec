package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/demo"
)

func TestRun_ConnectionsThatSayNothingLeaveItFiles(t *testing.T) {
	const most, silent = 64, 60
	path, env := testee(t)
	script := filepath.Join(t.TempDir(), "few-files")
	require.NoError(t, os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\nulimit -n %d\nexec '%s' \"$@\"\n", most, path), 0o700))
	h, err := demo.StartHost(t.Context(), script, []string{
		"--data", t.TempDir(), "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
	}, env)
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Stop(context.Background()) })
	require.NoError(t, h.WaitReady(t.Context()))
	for range silent {
		c, err := net.DialTimeout("tcp", h.API, time.Minute)
		require.NoError(t, err)
		defer c.Close()
	}
	answered := make(chan error, 1)
	go func() {
		_, err := h.Client.Status(t.Context())
		answered <- err
	}()
	clock := time.NewTicker(10 * time.Millisecond)
	defer clock.Stop()
	for {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.Process.Pid))
		require.NoError(t, err)
		require.Less(t, len(files), most*3/4)
		select {
		case err := <-answered:
			require.NoError(t, err)
			return
		case <-clock.C:
		}
	}
}
