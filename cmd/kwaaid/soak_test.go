package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/demo"
)

// footprint is what a node takes when it is idle.
type footprint struct{ goroutines, streams, files, heap float64 }

// footprintOf looks at a node a few times and takes the least: what it holds for good.
func footprintOf(t testing.TB, h *demo.Host) footprint {
	t.Helper()
	f := footprint{math.Inf(1), math.Inf(1), math.Inf(1), math.Inf(1)}
	for range 10 {
		page := scrape(t, h.API)
		f.goroutines = min(f.goroutines, total(page, "go_goroutines"))
		f.streams = min(f.streams, total(page, "kwaai_rpc_streams"))
		f.files = min(f.files, total(page, "process_open_fds"))
		f.heap = min(f.heap, total(page, "go_memstats_heap_alloc_bytes"))
		// A garbage collection happens between two looks where something was allocated.
		for range 20 {
			_, _, err := h.Client.Call(t.Context(), api.CallRequest{Name: "7", Rows: 512})
			require.NoError(t, err)
		}
	}
	return f
}

// within tells whether it is no more than before: connections to the same peers, and what is remembered of the departed, may differ by a little.
func (f footprint) within(before footprint) bool {
	return f.goroutines <= before.goroutines*1.1+20 && f.streams <= before.streams+8 && f.files <= before.files+8 && f.heap <= before.heap*1.25+8<<20
}

func (f footprint) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f streams, %.0f files, %.1f MiB heap", f.goroutines, f.streams, f.files, f.heap/(1<<20))
}

// TestSoak has a node call and be called for KWAAID_SOAK (such as 10m) while hosts and clients come and go, and compares what it takes
// afterwards with what it took before. No call may fail, and no answer be wrong.
func TestSoak(t *testing.T) {
	text := os.Getenv("KWAAID_SOAK")
	if text == "" {
		t.Skip("takes as long as KWAAID_SOAK says: `make soak` runs it")
	}
	long, err := time.ParseDuration(text)
	require.NoError(t, err)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))

	// Two hosts stay, the caller among their callers; three come and go.
	w := admit(t, care{listen: everyListen, specs: [][]string{{chaosSpec}, {chaosSpec}, {chaosSpec}, {chaosSpec}, {chaosSpec}}})
	w.meet("7", 5)
	w.asking(t, 8, 4000, nil).fine(t)
	watched := map[string]*demo.Host{"caller": w.caller, "host": w.hosts[0]}
	before := map[string]footprint{}
	for name, h := range watched {
		before[name] = footprintOf(t, h)
		t.Logf("%s before: %v", name, before[name])
	}

	until := time.Now().Add(long)
	r := &record{}
	var g errgroup.Group
	for c := range 8 {
		g.Go(func() error {
			for i := c; time.Now().Before(until); i++ {
				r.ask(t.Context(), w, question{"7", uint64(i) % seeds})
			}
			return nil
		})
	}
	ends := 0
	for ; time.Now().Before(until); ends++ {
		w.churn(2+dice.IntN(3), dice)
	}
	require.NoError(t, g.Wait())
	t.Logf("%d calls, %d failed, %d wrong, slowest %.0f ms; %d ends of hosts", r.calls, len(r.errs), r.wrong, r.slowest, ends)

	for name, h := range watched {
		var after footprint
		deadline := time.Now().Add(3 * time.Minute) // connections to the departed, and their streams, time out
		for after = footprintOf(t, h); !after.within(before[name]) && time.Now().Before(deadline); after = footprintOf(t, h) {
			<-time.After(5 * time.Second) // looking takes some of what is looked at
		}
		t.Logf("%s after: %v", name, after)
		require.True(t, after.within(before[name]), "%s: %v after, %v before", name, after, before[name])
	}
	r.fine(t)
}

// churn ends host n in one of several ways and brings it back, with its key or as another; a client joins and leaves meanwhile.
func (w *ward) churn(n int, dice *rand.Rand) {
	w.t.Helper()
	h := w.hosts[n]
	pause := func(most time.Duration) { <-time.After(time.Duration(dice.Int64N(int64(most)))) }
	var client sync.WaitGroup
	client.Go(func() { kwaaid(w.t, "call", "7", "--bootstrap", w.hosts[0].Addrs[0]) })
	switch dice.IntN(3) {
	case 0:
		h.Kill()
	case 1:
		require.NoError(w.t, h.Freeze())
		pause(4 * time.Second)
		h.Kill()
	case 2:
		end, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
		require.NoError(w.t, h.Stop(end))
		cancel()
	}
	pause(2 * time.Second)
	args := slices.Clone(w.args[n])
	if dice.IntN(3) == 0 {
		args = append(args, "--data", w.t.TempDir()) // the last of a flag that is given twice counts
	}
	w.hosts[n] = launchNode(w.t, args...)
	ready, cancel := context.WithTimeout(w.t.Context(), commandTimeout)
	defer cancel()
	require.NoError(w.t, w.hosts[n].WaitReady(ready))
	client.Wait()
	pause(3 * time.Second)
}
