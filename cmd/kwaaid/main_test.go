package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/demo"
)

// asBinary makes the test binary be kwaaid, so that tests need no build step. KWAAID_BINARY names another binary to test.
const asBinary = "KWAAID_TEST_AS_BINARY"

func TestMain(m *testing.M) {
	if os.Getenv(asBinary) == "1" {
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	if dir := os.Getenv(asLateHost); dir != "" {
		if err := runLateHost(dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if value := os.Getenv(asBareHost); value != "" {
		if err := runBareHost(value, os.Stdin, os.Stdout); err != nil && !errors.Is(err, io.EOF) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// testee returns the kwaaid to test, and what its environment needs.
func testee(t testing.TB) (path string, env []string) {
	t.Helper()
	if path = os.Getenv("KWAAID_BINARY"); path != "" {
		abs, err := filepath.Abs(path)
		require.NoError(t, err)
		return abs, nil
	}
	path, err := os.Executable()
	require.NoError(t, err)
	return path, []string{asBinary + "=1"}
}

// output is what a command left behind.
type output struct {
	stdout, stderr string
	code           int
}

// commandTimeout is far above what any command takes; it turns a hang into a failure.
const commandTimeout = 2 * time.Minute

// kwaaid runs a command of the binary to its end.
func kwaaid(t testing.TB, args ...string) output {
	t.Helper()
	return kwaaidWith(t, nil, "", args...)
}

func kwaaidWith(t testing.TB, env []string, stdin string, args ...string) output {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	path, base := testee(t)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(append(os.Environ(), base...), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok && err != nil {
		require.NoError(t, err)
	} else if ok {
		require.NotEqual(t, -1, exit.ExitCode(), "kwaaid %v was killed: %s", args, &stderr)
	}
	return output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok wants exit code 0.
func (o output) ok(t testing.TB) output {
	t.Helper()
	require.Zero(t, o.code, "stdout: %s\nstderr: %s", o.stdout, o.stderr)
	return o
}

// decode reads the one JSON document on stdout.
func decode[T any](t testing.TB, o output) T {
	t.Helper()
	var doc T
	dec := json.NewDecoder(strings.NewReader(o.stdout))
	require.NoError(t, dec.Decode(&doc), "stdout: %s\nstderr: %s", o.stdout, o.stderr)
	require.False(t, dec.More(), "more than one document: %s", o.stdout)
	return doc
}

// startNode starts a node on loopback and waits until it is ready. The test's end stops it.
func startNode(t testing.TB, args ...string) *demo.Host {
	t.Helper()
	h := launchNode(t, args...)
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	require.NoError(t, h.WaitReady(ctx))
	return h
}

// launchNode starts a node on loopback without waiting for more than that it listens.
func launchNode(t testing.TB, args ...string) *demo.Host {
	t.Helper()
	path, env := testee(t)
	base := []string{"--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0"}
	if !slices.Contains(args, "--data") {
		base = append(base, "--data", t.TempDir())
	}
	if !slices.Contains(args, "--listen") {
		base = append(base, "--listen", "/ip4/127.0.0.1/tcp/0")
	}
	h, err := demo.StartHost(t.Context(), path, append(base, args...), env)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = h.Stop(ctx)
		if t.Failed() {
			t.Logf("%s logged:\n%s", h.Peer, h.Log())
		}
	})
	return h
}
