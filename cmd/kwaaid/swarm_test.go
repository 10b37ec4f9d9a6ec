package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/demo"
)

// The swarm of the test below: ten nodes, of which each knows one bootstrap, and 50 experts on two of them each.
const (
	swarmNodes   = 10
	swarmExperts = 50
)

// swarmSpec returns expert i: of changing kinds, so that answers differ and weights are read.
func swarmSpec(i int) string {
	switch i % 3 {
	case 0:
		return fmt.Sprintf("id=%d,kind=glu,hidden=64,inner=96,dtype=bf16,seed=%d", i, i)
	case 1:
		return fmt.Sprintf("id=%d,kind=mlp,hidden=64,inner=128,seed=%d", i, i)
	default:
		return fmt.Sprintf("id=%d,kind=identity,hidden=64", i)
	}
}

func TestSwarm_EveryNodeFindsAndCallsEveryExpertWithTheSameBits(t *testing.T) {
	data := make([]string, swarmNodes)
	args := make([][]string, swarmNodes)
	for n := range swarmNodes {
		data[n] = t.TempDir()
		args[n] = []string{"--data", data[n]}
	}
	for i := range swarmExperts {
		for _, n := range []int{i % swarmNodes, (i + 3) % swarmNodes} {
			args[n] = append(args[n], "--expert", swarmSpec(i))
		}
	}
	hosts := make([]*demo.Host, swarmNodes)
	hosts[0] = launchNode(t, args[0]...)
	for n := 1; n < swarmNodes; n++ {
		hosts[n] = launchNode(t, append(args[n], "--bootstrap", hosts[0].Addrs[0])...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	for _, h := range hosts {
		require.NoError(t, h.WaitReady(ctx))
	}

	want := localAnswers(t, hosts)
	callAll(t, hosts, want)
	for i := range swarmExperts {
		r, err := hosts[(i+5)%swarmNodes].Client.Resolve(ctx, strconv.Itoa(i))
		require.NoError(t, err)
		require.Len(t, r.Providers, 2, "providers of expert-%d", i)
	}

	// The bootstrap goes. Everything it does not host alone still works, and a restarted node finds the swarm by its peer cache.
	require.NoError(t, hosts[0].Stop(ctx))
	callAll(t, hosts[1:], want)
	require.NoError(t, hosts[4].Stop(ctx))
	hosts[4] = launchNode(t, args[4]...)
	require.NoError(t, hosts[4].WaitReady(ctx))
	callAll(t, hosts[4:5], want)
}

// localAnswers has each expert answer at a node that hosts it: what it says without the network is the truth.
func localAnswers(t *testing.T, hosts []*demo.Host) []string {
	t.Helper()
	want := make([]string, swarmExperts)
	for i := range want {
		res, _, err := hosts[i%swarmNodes].Client.Call(t.Context(), api.CallRequest{Name: strconv.Itoa(i), Rows: 3, Seed: uint64(i)})
		require.NoError(t, err)
		require.Equal(t, api.WhereLocal, res.AnsweredBy.Where)
		want[i] = res.SHA256
	}
	return want
}

// callAll has every host call every expert.
func callAll(t *testing.T, hosts []*demo.Host, want []string) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	for _, h := range hosts {
		g.Go(func() error {
			for i, sum := range want {
				res, _, err := h.Client.Call(ctx, api.CallRequest{Name: fmt.Sprintf("expert-%d", i), Rows: 3, Seed: uint64(i)})
				if err != nil {
					return fmt.Errorf("expert-%d from %s: %w", i, h.Peer, err)
				}
				if res.SHA256 != sum {
					return fmt.Errorf("expert-%d from %s: other bits than its host computes", i, h.Peer)
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
}

func TestRun_DrainsOnSIGTERMAndExitsWithZero(t *testing.T) {
	h := startNode(t, "--expert", "id=7,kind=identity,hidden=8")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, h.Stop(ctx))
}

func TestRun_DrainsWhenItsTerminalIsClosed(t *testing.T) {
	h := startNode(t)
	require.NoError(t, h.Process.Signal(syscall.SIGHUP))
	// Until it is gone no second signal may reach it.
	gone := func() bool { return errors.Is(h.Process.Signal(syscall.Signal(0)), os.ErrProcessDone) }
	require.Eventually(t, gone, 30*time.Second, 10*time.Millisecond)
	require.Contains(t, h.Log(), `"drained"`)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, h.Stop(ctx))
}

func TestRun_OutlivesWhoReadsItsLog(t *testing.T) {
	for name, args := range map[string][]string{"for machines": {"--json"}, "for people": nil} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			addr := l.Addr().String()
			require.NoError(t, l.Close())
			path, env := testee(t)
			cmd := exec.Command(path, append(args, "run", "--data", t.TempDir(), "--listen", "/ip4/127.0.0.1/tcp/0", "--api", addr, "--grpc", "127.0.0.1:0",
				"--expert", "id=7,kind=identity,hidden=8")...)
			cmd.Env = append(os.Environ(), env...)
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			stderr, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			require.NoError(t, stdout.Close())
			require.NoError(t, stderr.Close())
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			client := api.NewClient(addr, "")
			defer client.Close()
			require.Eventually(t, func() bool {
				r, err := client.Ready(t.Context())
				return err == nil && r.Ready
			}, 30*time.Second, 10*time.Millisecond, "it has written its first lines by then")
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait(), "drained, though its last lines could not be written")
		})
	}
}

func TestRun_RefusesADataDirectoryInUseAndAPortTaken(t *testing.T) {
	dir := t.TempDir()
	h := startNode(t, "--data", dir)

	o := kwaaid(t, "run", "--data", dir, "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
	require.Equal(t, exitFailed, o.code)
	require.Contains(t, o.stderr, dir)
	require.Contains(t, o.stderr, strconv.Itoa(h.Process.Pid))

	for flag, addr := range map[string]string{"--api": h.API, "--grpc": h.GRPC, "--listen": strings.Split(h.Addrs[0], "/p2p/")[0]} {
		base := map[string]string{"--data": t.TempDir(), "--listen": "/ip4/127.0.0.1/tcp/0", "--api": "127.0.0.1:0", "--grpc": "127.0.0.1:0"}
		base[flag] = addr
		args := []string{"run"}
		for k, v := range base {
			args = append(args, k, v)
		}
		o := kwaaid(t, args...)
		require.Equal(t, exitFailed, o.code, flag)
		require.Contains(t, o.stderr, addr[max(0, len(addr)-4):], "%s: which address is taken?", flag)
	}
}

func TestRun_ServesMeanwhileWhenItsBootstrapIsDead(t *testing.T) {
	gone := startNode(t)
	dead := gone.Addrs[0]
	gone.Kill()
	h := startNode(t, "--bootstrap", dead, "--expert", "id=7,kind=identity,hidden=8")
	s, err := h.Client.Status(t.Context())
	require.NoError(t, err)
	require.True(t, s.Ready)
	require.NotEmpty(t, s.Degraded)
	_, _, err = h.Client.Call(t.Context(), api.CallRequest{Name: "7"})
	require.NoError(t, err)
}

func TestRun_EndsAtOnceOnASecondSignal(t *testing.T) {
	// A call that takes long keeps the drain going until the second signal.
	h := startNode(t, "--expert", "id=9,kind=mlp,hidden=2048,inner=8192,seed=1")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = h.Client.Call(t.Context(), api.CallRequest{Name: "9", Rows: 4096, Timeout: time.Minute})
	}()
	require.Eventually(t, func() bool {
		s, err := h.Client.Status(t.Context())
		return err == nil && s.Load.QueuedRows > 0
	}, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, h.Process.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool {
		s, err := h.Client.Status(t.Context())
		return err != nil || s.Draining
	}, 10*time.Second, 10*time.Millisecond)
	// The second signal has its effect once the first was taken note of, which may be a moment later.
	require.Eventually(t, func() bool { return h.Process.Signal(syscall.SIGTERM) != nil }, 10*time.Second, 10*time.Millisecond)
	require.Error(t, h.Stop(t.Context()), "the second signal should have ended it, before it was done")
	<-done
}

func TestRun_RefusesBrokenExpertsUnlessToldToKeepGoing(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken.safetensors")
	require.NoError(t, os.WriteFile(broken, bytes.Repeat([]byte{0xff}, 64), 0o600))
	spec := "id=42,kind=glu,file=" + broken

	o := kwaaid(t, "run", "--data", t.TempDir(), "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--expert", spec)
	require.Equal(t, exitUsage, o.code, o.stderr)
	require.Contains(t, o.stderr, broken)
	o = kwaaid(t, "run", "--json", "--data", t.TempDir(), "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--expert", spec)
	require.Equal(t, exitUsage, o.code, o.stderr)
	lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
	for _, line := range lines {
		require.True(t, json.Valid([]byte(line)), "log lines and the failure are a document a line: %s", line)
	}
	require.Contains(t, lines[len(lines)-1], `{"error":{"code":"INVALID_ARGUMENT"`)

	h := startNode(t, "--keep-going", "--expert", spec, "--expert", "id=7,kind=identity,hidden=8")
	_, _, err := h.Client.Call(t.Context(), api.CallRequest{Name: "7"})
	require.NoError(t, err)
	o = kwaaid(t, "call", "42", "--json", "--api", h.API)
	require.Equal(t, "NOT_READY", decode[failure](t, o).Error.Code, "it is here, but failed")

	// Of a checkpoint the layers that can be used are hosted; what is missing is told.
	cut := filepath.Join(dir, "cut")
	require.NoError(t, os.CopyFS(cut, os.DirFS(filepath.Join(fixtures, "moe/mixtral-f32-sharded"))))
	const shard = "model-00003-of-00004.safetensors" // of layer 1
	require.NoError(t, os.Chmod(filepath.Join(cut, shard), 0o600))
	require.NoError(t, os.Truncate(filepath.Join(cut, shard), 1000))
	h = startNode(t, "--keep-going", "--expert", "checkpoint="+cut, "--expert", spec, "--expert", "id=43,kind=glu,file="+broken+".not")
	_, _, err = h.Client.CallLayer(t.Context(), api.LayerRequest{Name: "cut/0", Rows: 3})
	require.NoError(t, err)
	_, _, err = h.Client.CallLayer(t.Context(), api.LayerRequest{Name: "cut/1", Rows: 3})
	require.ErrorContains(t, err, shard)
	s, err := h.Client.Status(t.Context())
	require.NoError(t, err)
	require.True(t, s.Ready)
	require.Equal(t, 8, s.Experts.Ready)
	require.Len(t, s.Degraded, 3, "%v", s.Degraded)
	all := strings.Join(s.Degraded, "\n")
	for _, part := range []string{shard, "expert-42", broken + ".not"} {
		require.Contains(t, all, part)
	}
}
