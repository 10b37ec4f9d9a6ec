package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/demo"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// The chaos tests do to real processes what happens to hosts on an open network. Their verdicts do not depend on how fast this machine
// is: what they count are failed and wrong answers. How fast a swarm recovers is measured by `make chaos`, in measure_test.go.

// threeReplicas are three hosts of one expert.
func threeReplicas() [][]string { return [][]string{{chaosSpec}, {chaosSpec}, {chaosSpec}} }

func kill(h *demo.Host) { h.Kill() }

func freeze(h *demo.Host) { _ = h.Freeze() }

func TestChaos_TheHostInUseEnds(t *testing.T) {
	w := admit(t, care{listen: everyListen, specs: [][]string{{chaosSpec}, {chaosSpec}, {chaosSpec}, {chaosSpec}, {chaosSpec}}})
	w.meet("7", 5)
	var killed, frozen *demo.Host
	t.Run("killed", func(t *testing.T) {
		w.asking(t, 1, 200, func(h *demo.Host) {
			killed = h
			h.Kill()
		}).fine(t)
	})
	t.Run("frozen", func(t *testing.T) {
		w.asking(t, 8, 200, func(h *demo.Host) {
			frozen = h
			freeze(h)
		}).fine(t)
	})
	t.Run("told to stop", func(t *testing.T) {
		var exit error
		w.asking(t, 8, 400, func(h *demo.Host) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			exit = h.Stop(ctx)
		}).fine(t)
		require.NoError(t, exit, "a drained host exits with 0")
	})
	t.Run("killed, and started again under its key", func(t *testing.T) {
		require.NoError(t, frozen.Thaw())
		n := slices.Index(w.hosts, killed)
		addr, _, _ := strings.Cut(killed.Addrs[0], "/p2p/")
		w.hosts[n] = launchNode(t, append(slices.Clone(w.args[n]), "--listen", addr)...)
		require.Equal(t, killed.Peer, w.hosts[n].Peer)
		r := &record{}
		require.Eventually(t, func() bool {
			r.ask(t.Context(), w, question{"7", 0})
			return r.inUse() == killed.Peer
		}, 20*time.Second, time.Millisecond, "the host that returned is asked again")
		r.fine(t)
	})
}

func TestChaos_TheOnlyHostIsKilled(t *testing.T) {
	w := admit(t, care{
		specs:  [][]string{{"id=8,kind=glu,hidden=64,inner=96,seed=8"}, {chaosSpec}, {"id=9,kind=glu,hidden=64,inner=96,seed=9"}},
		config: "fallbacks: {expert-7: [expert-8]}",
	})
	first, other := w.hosts[0], w.hosts[2]
	for _, name := range []string{"7", "9"} {
		res, _, err := w.caller.Client.Call(t.Context(), api.CallRequest{Name: name})
		require.NoError(t, err)
		require.Equal(t, api.WhereRemote, res.AnsweredBy.Where)
	}
	w.hosts[1].Kill()
	other.Kill()
	t.Run("a fallback answers, and the answer says so", func(t *testing.T) {
		for range 5 {
			res, _, err := w.caller.Client.Call(t.Context(), api.CallRequest{Name: "7", Rows: rowsAsked, Seed: 1})
			require.NoError(t, err)
			require.Equal(t, api.WhereFallback, res.AnsweredBy.Where)
			require.Equal(t, "expert-8", res.AnsweredBy.Expert.String())
			require.Equal(t, first.Peer, res.AnsweredBy.Peer)
			require.Equal(t, w.truth[question{"8", 1}], res.SHA256)
		}
	})
	t.Run("without one the error names expert, peers and attempts", func(t *testing.T) {
		for range 3 {
			const deadline = 3 * time.Second
			begun := time.Now()
			_, _, err := w.caller.Client.Call(t.Context(), api.CallRequest{Name: "9", Timeout: deadline})
			require.Less(t, time.Since(begun), deadline+2*time.Second)
			var failed *api.Error
			require.ErrorAs(t, err, &failed)
			require.Equal(t, "expert-9", failed.Expert)
			require.Contains(t, failed.Error(), "expert-9")
			require.NotEmpty(t, failed.Attempts, "%v", failed)
			require.Equal(t, other.Peer, failed.Attempts[0].Peer)
			require.Contains(t, failed.Error(), other.Peer)
		}
	})
	t.Run("the list says that it is gone", func(t *testing.T) {
		list, err := w.caller.Client.Experts(t.Context())
		require.NoError(t, err)
		states := map[string]expert.State{}
		for _, e := range list {
			states[e.Expert.String()] = e.State
		}
		require.Equal(t, map[string]expert.State{"expert-7": expert.StateFailed, "expert-8": expert.StateReady, "expert-9": expert.StateFailed}, states)
	})
}

func TestChaos_AModelIsReadyWhileSomebodyCouldAnswer(t *testing.T) {
	const host, standIn = "id=9,kind=identity,hidden=4", "id=8,kind=identity,hidden=4"
	first := startNode(t, "--expert", host)
	join := []string{"--bootstrap", first.Addrs[0]}
	caller := startNode(t, join...)
	file := filepath.Join(t.TempDir(), "kwaaid.yaml")
	require.NoError(t, os.WriteFile(file, []byte("fallbacks: {expert-9: [expert-8]}\n"), 0o600))
	cautious := startNode(t, append(join, "--expert", standIn, "--config", file)...)
	ready := func(h *demo.Host) int {
		resp, err := http.Get("http://" + h.API + "/v2/models/9/ready")
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	for _, h := range []*demo.Host{caller, cautious} {
		_, _, err := h.Client.Call(t.Context(), api.CallRequest{Name: "9"})
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, ready(h))
	}
	first.Kill()
	_, _, err := caller.Client.Call(t.Context(), api.CallRequest{Name: "9"})
	require.Error(t, err)
	require.Equal(t, http.StatusServiceUnavailable, ready(caller))
	res, _, err := cautious.Client.Call(t.Context(), api.CallRequest{Name: "9"})
	require.NoError(t, err)
	require.Equal(t, api.WhereFallback, res.AnsweredBy.Where)
	require.Equal(t, http.StatusOK, ready(cautious))
}

func TestChaos_TheLineToTheHostInUseFails(t *testing.T) {
	w := admit(t, care{specs: threeReplicas(), front: true})
	w.meet("7", 3)
	for _, story := range []struct {
		name  string
		fault swarmtest.Faults
	}{
		{"half open", swarmtest.Faults{Mute: true}},
		{"cut", swarmtest.Faults{Cut: true}},
		{"corrupt", swarmtest.Faults{Corrupt: 0.1}},
		{"slow", swarmtest.Faults{Delay: 300 * time.Millisecond}},
		{"frozen", swarmtest.Faults{Hold: true}},
	} {
		t.Run(story.name, func(t *testing.T) {
			w.asking(t, 4, 200, func(h *demo.Host) { w.proxyOf(h).Set(story.fault) }).fine(t)
			for _, p := range w.proxies {
				p.Set(swarmtest.Faults{})
			}
			// What was slow is asked again in its own time, since the others are faster.
			if story.fault.Delay == 0 && !story.fault.Hold {
				w.recovers(t)
			}
		})
	}
	t.Run("all corrupt: calls may fail, answers are right", func(t *testing.T) {
		for _, p := range w.proxies {
			p.Set(swarmtest.Faults{Corrupt: 0.02})
		}
		r := &record{}
		for i := range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			r.ask(ctx, w, question{"7", uint64(i) % seeds})
			cancel()
		}
		require.Zero(t, r.wrong)
	})
	require.Positive(t, w.corrupted(), "nothing was corrupted")
}

// corrupted counts the pieces that proxies changed.
func (w *ward) corrupted() (n int) {
	for _, p := range w.proxies {
		n += p.Corrupted()
	}
	return n
}

// recovers waits until every host is asked again.
func (w *ward) recovers(t *testing.T) {
	t.Helper()
	seen := map[string]bool{}
	require.Eventually(t, func() bool {
		res, _, err := w.caller.Client.Call(t.Context(), api.CallRequest{Name: "7", Rows: rowsAsked, Seed: 1})
		if err == nil {
			require.Equal(t, w.truth[question{"7", 1}], res.SHA256)
			seen[res.AnsweredBy.Peer] = true
		}
		return len(seen) == len(w.hosts)
	}, commandTimeout, time.Millisecond, "all hosts are used again")
}

func TestChaos_HalfOfASwarmIsKilledAtOnce(t *testing.T) {
	const nodes, experts, clients = 10, 50, 8
	specs := make([][]string, nodes)
	for i := range experts {
		// One replica at an even host and two at odd ones, or the other way round.
		for _, n := range []int{i, i + 3, i + 5} {
			specs[n%nodes] = append(specs[n%nodes], swarmSpec(i))
		}
	}
	w := admit(t, care{specs: specs})
	for i := range experts {
		w.meet(strconv.Itoa(i), 3)
	}
	var mu sync.Mutex
	var late []error // failures of calls that began a second after
	var wrong, early, calls int
	var killed time.Time
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	for c := range clients {
		g.Go(func() error {
			for i := c; ctx.Err() == nil; i += 7 {
				q := question{strconv.Itoa(i % experts), uint64(i) % seeds}
				begun := time.Now()
				res, _, err := w.caller.Client.Call(context.WithoutCancel(ctx), api.CallRequest{Name: q.expert, Rows: rowsAsked, Seed: q.seed})
				mu.Lock()
				calls++
				switch {
				case err == nil && res.SHA256 != w.truth[q]:
					wrong++
				case err != nil && !killed.IsZero() && begun.Sub(killed) > time.Second:
					late = append(late, fmt.Errorf("expert-%s: %w", q.expert, err))
				case err != nil:
					early++
				}
				mu.Unlock()
			}
			return nil
		})
	}
	made := func() int {
		mu.Lock()
		defer mu.Unlock()
		return calls
	}
	require.Eventually(t, func() bool { return made() > 2*experts }, commandTimeout, 5*time.Millisecond)
	mu.Lock()
	killed = time.Now()
	mu.Unlock()
	var ends sync.WaitGroup
	for n := 0; n < nodes; n += 2 {
		ends.Go(w.hosts[n].Kill)
	}
	ends.Wait()
	before := made()
	require.Eventually(t, func() bool { return time.Since(killed) > 3*time.Second && made() > before+10*experts }, commandTimeout, 5*time.Millisecond)
	stop()
	require.NoError(t, g.Wait())
	t.Logf("%d calls, %d failed in the first second", calls, early)
	require.Zero(t, wrong, "wrong answers among %d", calls)
	require.NoError(t, errors.Join(late...), "failed calls later than a second after")
}
