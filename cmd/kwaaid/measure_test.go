package main

import (
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/demo"
)

// The measured runs behind `make chaos` and `make layers`. Those of `make chaos` are as the chaos tests, but ten times each, and with how
// long the slowest answer took. They are verdicts on this machine too, so `make test` leaves them out.

// measured leaves a test out unless it was asked for.
func measured(t *testing.T) {
	t.Helper()
	if os.Getenv("KWAAID_MEASURE") == "" {
		t.Skip("measures this machine too: `make chaos` and `make layers` run it")
	}
}

// measuredRuns is how often each story is told; its figure is the median.
const measuredRuns = 10

func TestMeasure_SlowestAnswerWhileTheHostInUseEnds(t *testing.T) {
	measured(t)
	for _, story := range []struct {
		name    string
		strike  func(*demo.Host)
		clients int
		limit   float64 // of the median of the slowest answers, in ms
	}{
		{"killed, 1 client", kill, 1, 100},
		{"frozen, 1 client", freeze, 1, 300},
		{"killed, 8 clients", kill, 8, 100},
		{"frozen, 8 clients", freeze, 8, 300},
	} {
		t.Run(story.name, func(t *testing.T) {
			var slowest []float64
			for run := range measuredRuns {
				t.Run(strconv.Itoa(run), func(t *testing.T) {
					w := admit(t, care{listen: everyListen, specs: threeReplicas()})
					w.meet("7", 3)
					r := w.asking(t, story.clients, 200, story.strike)
					t.Logf("%s: slowest answer %.1f ms, %d failed, %d wrong; it tried %+v", story.name, r.slowest, len(r.errs), r.wrong, r.tried)
					r.fine(t)
					slowest = append(slowest, r.slowest)
				})
			}
			require.NotEmpty(t, slowest)
			slices.Sort(slowest)
			median := (slowest[(len(slowest)-1)/2] + slowest[len(slowest)/2]) / 2
			t.Logf("%s: median %.1f ms of %.1f", story.name, median, slowest)
			require.Less(t, median, story.limit)
		})
	}
}
