package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/demo"
)

// footprint is what a node takes when it is idle.
type footprint struct{ goroutines, streams, files, heap float64 }

// look reads the figures as they are now. The heap is what is alive: two garbage collections empty the pools too.
func look(t testing.TB, h *demo.Host) footprint {
	t.Helper()
	page := scrape(t, h.API)
	alive(t, h)
	return footprint{total(page, "go_goroutines"), total(page, "kwaai_rpc_streams"), total(page, "process_open_fds"), alive(t, h)}
}

var heapAlloc = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)

// alive has a node collect its garbage, and returns the bytes that are left.
func alive(t testing.TB, h *demo.Host) float64 {
	t.Helper()
	resp, err := http.Get("http://" + h.API + "/debug/pprof/heap?gc=1&debug=1")
	require.NoError(t, err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	found := heapAlloc.FindSubmatch(page)
	require.Len(t, found, 2, "%s", page)
	bytes, err := strconv.ParseFloat(string(found[1]), 64)
	require.NoError(t, err)
	return bytes
}

// settled leaves a node alone until its figures fall no more, and returns the lowest. Streams that nobody uses are closed after up to two
// minutes, connections to the departed are given up within one, and the runtime collects garbage every two. With a bound it goes on until
// the figures are within, for as long as departed peers are remembered, and looks less often.
func settled(t testing.TB, h *demo.Host, bound *footprint) footprint {
	t.Helper()
	const quiet, most = 130 * time.Second, 6 * time.Minute
	pause := 2 * time.Second
	if bound != nil {
		pause = 15 * time.Second // for up to 45 minutes, in which others may want to use the machine
	}
	least := look(t, h)
	for begun, fell := time.Now(), time.Now(); ; {
		switch {
		case bound != nil && (least.within(*bound) || time.Since(begun) > remembered),
			bound == nil && (time.Since(fell) > quiet || time.Since(begun) > most):
			return least
		}
		<-time.After(pause) // looking takes some of what is looked at
		now := look(t, h)
		lower := footprint{
			min(least.goroutines, now.goroutines), min(least.streams, now.streams), min(least.files, now.files), min(least.heap, now.heap),
		}
		if lower != least {
			least, fell = lower, time.Now()
		}
	}
}

// within tells whether no figure is above the bound's.
func (f footprint) within(bound footprint) bool {
	return f.goroutines <= bound.goroutines && f.streams <= bound.streams && f.files <= bound.files && f.heap <= bound.heap
}

func (f footprint) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f streams, %.0f files, %.2f MiB heap", f.goroutines, f.streams, f.files, f.heap/(1<<20))
}

const (
	// heapNoise is by how much the lowest heap of two quiet spells of one node may differ.
	heapNoise = 256 << 10
	// remembered is for how long something of a departed peer may take memory: its addresses for 15 minutes, its records for 30, and then
	// until they are looked through.
	remembered = 45 * time.Minute
)

// TestSoak has a node call and be called for KWAAID_SOAK (such as 10m) while hosts and clients come and go, and compares what it takes
// afterwards, when all of them are gone, with what it took after a minute of the same. No call may fail, and no answer be wrong.
func TestSoak(t *testing.T) {
	text := os.Getenv("KWAAID_SOAK")
	if text == "" {
		t.Skip("takes as long as KWAAID_SOAK says, and ten minutes: `make soak` runs it")
	}
	long, err := time.ParseDuration(text)
	require.NoError(t, err)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	t.Setenv("KWAAI_PPROF", "true") // of the nodes, for alive
	dice := rand.New(rand.NewPCG(seed, 0))

	// Two hosts stay; three come and go.
	w := admit(t, care{listen: everyListen, specs: [][]string{{chaosSpec}, {chaosSpec}, {chaosSpec}, {chaosSpec}, {chaosSpec}}})
	w.meet("7", 5)
	watched := map[string]*demo.Host{"caller": w.caller, "host": w.hosts[0]}
	footprints := func(bounds map[string]footprint) map[string]footprint {
		var mu sync.Mutex
		var all sync.WaitGroup
		found := map[string]footprint{}
		for name, h := range watched {
			all.Go(func() {
				var bound *footprint
				if b, ok := bounds[name]; ok {
					b.heap += heapNoise
					bound = &b
				}
				f := settled(t, h, bound)
				mu.Lock()
				defer mu.Unlock()
				found[name] = f
			})
		}
		all.Wait()
		return found
	}
	w.weather(t, time.Minute, dice)
	before := footprints(nil)
	for name := range watched {
		t.Logf("%s: %v before", name, before[name])
	}
	w.weather(t, long, dice)
	ended := time.Now()
	after := footprints(before)
	for name := range watched {
		t.Logf("%s: %v after, and %v of quiet", name, after[name], time.Since(ended).Round(time.Second))
	}
	for name := range watched {
		require.LessOrEqual(t, after[name].goroutines, before[name].goroutines, "%s: goroutines", name)
		require.LessOrEqual(t, after[name].streams, before[name].streams, "%s: streams", name)
		require.LessOrEqual(t, after[name].files, before[name].files, "%s: open files", name)
		require.LessOrEqual(t, after[name].heap, before[name].heap+heapNoise, "%s: heap", name)
	}
}

// passing are the hosts that come and go. The others stay.
const passing = 2

// weather has eight clients call for so long while hosts and clients come and go; then the hosts that pass are killed. Every answer has to
// be right.
func (w *ward) weather(t *testing.T, long time.Duration, dice *rand.Rand) {
	t.Helper()
	for n := passing; n < len(w.hosts); n++ {
		if w.hosts[n] == nil {
			w.enter(n, dice)
		}
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
		w.churn(passing+dice.IntN(len(w.hosts)-passing), dice)
	}
	require.NoError(t, g.Wait())
	for n := passing; n < len(w.hosts); n++ {
		w.hosts[n].Kill()
		w.hosts[n] = nil
	}
	t.Logf("%v: %d calls, %d failed, %d wrong, slowest %.0f ms; %d ends of hosts", long, r.calls, len(r.errs), r.wrong, r.slowest, ends)
	r.fine(t)
}

// enter starts host n with its key or as another.
func (w *ward) enter(n int, dice *rand.Rand) {
	w.t.Helper()
	args := slices.Clone(w.args[n])
	if dice.IntN(3) == 0 {
		args = append(args, "--data", w.t.TempDir()) // the last of a flag that is given twice counts
	}
	w.hosts[n] = launchNode(w.t, args...)
	ready, cancel := context.WithTimeout(w.t.Context(), commandTimeout)
	defer cancel()
	require.NoError(w.t, w.hosts[n].WaitReady(ready))
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
	w.enter(n, dice)
	client.Wait()
	pause(3 * time.Second)
}
