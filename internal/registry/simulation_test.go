package registry

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// queueing is a world of hosts that compute one row at a time, and of callers that each have a table of their own and know of the
// others only what the hosts' replies say. Its time is its own.
type queueing struct {
	speeds  []float64     // of the hosts; 1 computes a row in unit
	unit    time.Duration //
	spread  bool          // rows take times that are exponentially distributed; else all the same
	load    float64       // share of what all hosts can do together
	callers int
	calls   int
	rtt     time.Duration
}

type moment struct {
	at time.Duration
	do func(now time.Duration)
}

type agenda []moment

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at < a[j].at }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(moment)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

func (a *agenda) add(at time.Duration, do func(now time.Duration)) { heap.Push(a, moment{at, do}) }

// work draws how much each call takes, in units.
func (q *queueing) work(r *rand.Rand) float64 {
	if q.spread {
		return r.ExpFloat64()
	}
	return 1
}

func (q *queueing) interval(r *rand.Rand) time.Duration {
	var all float64
	for _, s := range q.speeds {
		all += s
	}
	return time.Duration(r.ExpFloat64() / (q.load * all) * float64(q.unit))
}

// ideal plays the calls to a single queue that serves the fastest idle host, and returns how long each took, sorted.
func (q *queueing) ideal(seed uint64) []time.Duration {
	r := rand.New(rand.NewPCG(seed, 1))
	var todo agenda
	idle := slices.Clone(q.speeds)
	type waiting struct {
		came time.Duration
		work float64
	}
	var line []waiting
	var took []time.Duration
	var serve func(now time.Duration)
	serve = func(now time.Duration) {
		for len(line) > 0 && len(idle) > 0 {
			slices.Sort(idle)
			speed := idle[len(idle)-1]
			idle = idle[:len(idle)-1]
			first := line[0]
			line = line[1:]
			todo.add(now+time.Duration(first.work/speed*float64(q.unit)), func(now time.Duration) {
				took = append(took, now-first.came+q.rtt)
				idle = append(idle, speed)
				serve(now)
			})
		}
	}
	at := time.Duration(0)
	for range q.calls {
		at += q.interval(r)
		w := q.work(r)
		todo.add(at, func(now time.Duration) {
			line = append(line, waiting{now, w})
			serve(now)
		})
	}
	for todo.Len() > 0 {
		m := heap.Pop(&todo).(moment)
		m.do(m.at)
	}
	slices.Sort(took)
	return took
}

// play plays the calls to callers that choose by Pick, and returns how long each took, sorted, and how many each host got.
func (q *queueing) play(seed uint64) (took []time.Duration, got []int) {
	r := rand.New(rand.NewPCG(seed, 1))
	dice := rand.New(rand.NewPCG(seed, 2))
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tables := make([]*Table, q.callers)
	for i := range tables {
		tables[i] = New(DefaultLimits(), start)
		for h := range q.speeds {
			tables[i].AddProvider(42, peer.ID(strconv.Itoa(h)), DHT, start)
		}
	}
	type job struct {
		work float64
		done func(now time.Duration, load expert.Load)
	}
	var todo agenda
	lines := make([][]job, len(q.speeds))
	perRow := make([]float64, len(q.speeds)) // smoothed, as hosts report it
	got = make([]int, len(q.speeds))
	var serve func(h int, now time.Duration)
	serve = func(h int, now time.Duration) {
		j := lines[h][0]
		takes := time.Duration(j.work / q.speeds[h] * float64(q.unit))
		todo.add(now+takes, func(now time.Duration) {
			lines[h] = lines[h][1:]
			perRow[h] += 0.1 * (takes.Seconds() - perRow[h])
			j.done(now, expert.Load{QueuedRows: len(lines[h]), ServiceTime: time.Duration(perRow[h] * float64(time.Second))})
			if len(lines[h]) > 0 {
				serve(h, now)
			}
		})
	}
	at := time.Duration(0)
	for i := range q.calls {
		at += q.interval(r)
		w := q.work(r)
		table := tables[i%q.callers]
		todo.add(at, func(now time.Duration) {
			began := now
			pick, err := table.Pick(Query{Expert: 42, Rows: 1}, start.Add(now), dice)
			for _, p := range pick.Meet {
				if p != "" {
					table.Connected(p, start.Add(now))
				}
			}
			if err != nil {
				panic(err)
			}
			if pick.Ping != "" { // as dispatch does; a host answers pings while it computes
				todo.add(now+q.rtt, func(now time.Duration) { table.Ponged(pick.Ping, q.rtt, start.Add(now)) })
			}
			h := int(pick.Peer[0] - '0')
			got[h]++
			todo.add(now+q.rtt/2, func(now time.Duration) {
				lines[h] = append(lines[h], job{w, func(now time.Duration, load expert.Load) {
					todo.add(now+q.rtt/2, func(now time.Duration) {
						took = append(took, now-began)
						table.Report(pick, Outcome{Kind: Answered, Took: now - began, Load: load}, start.Add(now))
					})
				}})
				if len(lines[h]) == 1 {
					serve(h, now)
				}
			})
		})
	}
	for todo.Len() > 0 {
		m := heap.Pop(&todo).(moment)
		m.do(m.at)
	}
	slices.Sort(took)
	return took, got
}

func p99(sorted []time.Duration) time.Duration { return sorted[len(sorted)*99/100] }

// TestSimulation_UnequalReplicas: six hosts of speeds 1, 1, 2, 2, 4, 4 at three quarters of their load. The p99 stays below three times
// that of an ideal single queue, and nobody starves.
func TestSimulation_UnequalReplicas(t *testing.T) {
	calls := 40_000
	if raceEnabled {
		calls = 4_000 // too few to judge a p99 by
	}
	for _, callers := range []int{1, 4, 16} {
		for _, spread := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d callers, spread %v", callers, spread), func(t *testing.T) {
				q := &queueing{
					speeds: []float64{1, 1, 2, 2, 4, 4}, unit: 8 * time.Millisecond, spread: spread, load: 0.75,
					callers: callers, calls: calls, rtt: 400 * time.Microsecond,
				}
				seed := rand.Uint64()
				ideal := q.ideal(seed)
				took, got := q.play(seed)
				t.Logf("seed %d: p99 %v, ideal %v: %.2f times; p50 %v, ideal %v; calls %v", seed, p99(took), p99(ideal),
					float64(p99(took))/float64(p99(ideal)), took[len(took)/2], ideal[len(ideal)/2], got)
				if raceEnabled {
					return
				}
				require.Less(t, p99(took), 3*p99(ideal))
				for h, n := range got {
					share := float64(n) / float64(q.calls) / (q.speeds[h] / 14)
					require.Greater(t, share, 0.3, "host %d of speed %v starves", h, q.speeds[h])
					require.Less(t, share, 1.0/0.75, "host %d of speed %v gets more than it can do", h, q.speeds[h])
				}
			})
		}
	}
}
