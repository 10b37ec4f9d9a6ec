package serving

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// now is any time but the host's first.
const now = moment(time.Hour)

func ms(n int) moment { return moment(n) * moment(time.Millisecond) }

// standing puts a script's jobs into a lane: jobs of some rows and, in milliseconds from now, their deadlines (0: none).
func standing(l *lane, jobs ...[2]int) {
	for i, j := range jobs {
		ticket := &Ticket{deadline: never}
		if j[1] != 0 {
			ticket.deadline = now + ms(j[1])
		}
		l.push(&job{ticket: ticket, lane: l, pair: i, count: j[0]})
	}
}

// taken runs take and returns which jobs joined and which were dropped.
func taken(l *lane, maxRows int) (joined, dropped []int) {
	l.take(now, maxRows, func(j *job) { joined = append(joined, j.pair) }, func(j *job) { dropped = append(dropped, j.pair) })
	return joined, dropped
}

func TestTake_EverythingThatWaits(t *testing.T) {
	l := &lane{}
	standing(l, [2]int{1, 0}, [2]int{30, 50}, [2]int{500, 0})
	joined, dropped := taken(l, 4096)
	require.Equal(t, []int{0, 1, 2}, joined)
	require.Empty(t, dropped)
	require.Nil(t, l.first)
	require.Zero(t, l.rows)
}

func TestTake_NoMoreThanMaxRowsOldestFirst(t *testing.T) {
	l := &lane{}
	standing(l, [2]int{60, 0}, [2]int{40, 0}, [2]int{1, 0})
	joined, _ := taken(l, 100)
	require.Equal(t, []int{0, 1}, joined)
	joined, _ = taken(l, 100)
	require.Equal(t, []int{2}, joined)
}

func TestTake_DropsWhatHasExpired(t *testing.T) {
	l := &lane{}
	standing(l, [2]int{1, -1}, [2]int{1, 5}, [2]int{1, -7})
	joined, dropped := taken(l, 100)
	require.Equal(t, []int{1}, joined)
	require.Equal(t, []int{0, 2}, dropped)
}

func TestTake_GrowsNoLongerThanItsMembersCanWait(t *testing.T) {
	l := &lane{}
	l.cost.add(time.Second, 1000) // 1 ms a row
	// 100 rows take 100 ms, 150 with the margin: the second job can wait for itself, but not for the third as well.
	standing(l, [2]int{50, 0}, [2]int{50, 170}, [2]int{50, 0}, [2]int{50, 0})
	joined, _ := taken(l, 4096)
	require.Equal(t, []int{0, 1}, joined)
	joined, _ = taken(l, 4096)
	require.Equal(t, []int{2, 3}, joined)
}

func TestTake_AnImpatientCallDoesNotMakeBatchesSmall(t *testing.T) {
	l := &lane{}
	l.cost.add(time.Second, 1000)
	standing(l, [2]int{1, 1}, [2]int{8, 0}, [2]int{7, 0}, [2]int{1, 0})
	joined, _ := taken(l, 4096)
	require.Equal(t, []int{0, 1, 2}, joined)
}

func TestTake_OneJobAtLeastWhateverTheEstimate(t *testing.T) {
	l := &lane{}
	l.cost.add(time.Hour, 1)
	standing(l, [2]int{200, 1})
	joined, _ := taken(l, 100)
	require.Equal(t, []int{0}, joined)
}

func TestWait_CountsWhatIsAheadAndWhatIsLeftOfThePass(t *testing.T) {
	l := &lane{}
	l.cost.add(time.Second, 1000)
	require.Zero(t, l.wait(now, 500, 1), "nothing is expected of an idle lane")
	l.running, l.passRows, l.began = true, 100, now-ms(30)
	require.Equal(t, 570*time.Millisecond, l.wait(now, 500, 1))
	standing(l, [2]int{10, 0})
	require.Equal(t, 1160*time.Millisecond, l.wait(now, 500, 2))
	l.began = 0
	require.Equal(t, 510*time.Millisecond, l.wait(now, 500, 1))
}

// A lane against a slice.
func TestLane_KeepsItsJobsInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &lane{}
		var want []*job
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				j := &job{count: rapid.IntRange(1, 9).Draw(t, "rows")}
				l.push(j)
				want = append(want, j)
			},
			"remove": func(t *rapid.T) {
				if len(want) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(want)-1).Draw(t, "which")
				l.remove(want[i])
				require.False(t, want[i].waiting)
				want = append(want[:i:i], want[i+1:]...)
			},
			"": func(t *rapid.T) {
				rows, i := 0, 0
				var previous *job
				for j := l.first; j != nil; j = j.next {
					require.Less(t, i, len(want))
					require.Same(t, want[i], j)
					require.Same(t, previous, j.prev)
					require.True(t, j.waiting)
					rows += j.count
					previous = j
					i++
				}
				require.Len(t, want, i)
				require.Same(t, previous, l.last)
				require.Equal(t, rows, l.rows)
			},
		})
	})
}

func TestLine_TakesTurns(t *testing.T) {
	var q line
	a, b := &lane{}, &lane{}
	require.Nil(t, q.pop())
	q.push(a)
	q.push(b)
	q.push(a)
	require.Equal(t, 2, q.count)
	require.Same(t, a, q.pop())
	q.push(a)
	require.Same(t, b, q.pop())
	require.Same(t, a, q.pop())
	require.Nil(t, q.pop())
	require.Zero(t, q.count)
}

func TestRate_CountsPassesByTheirRows(t *testing.T) {
	var r rate
	require.Zero(t, r.perRow())
	require.Zero(t, r.of(5))
	r.add(time.Millisecond, 1)
	require.Equal(t, time.Millisecond, r.perRow())
	for range 200 {
		r.add(64*time.Millisecond, 64)
		r.add(8*time.Millisecond, 1)
	}
	require.InDelta(t, float64(72*time.Millisecond)/65, float64(r.perRow()), float64(30*time.Microsecond))
}

func TestBusyClock_RunsByTheShareOfEachPass(t *testing.T) {
	var c busyClock
	require.Zero(t, c.change(ms(0), 1))
	require.Equal(t, 10*time.Millisecond, c.change(ms(10), 1))
	require.Equal(t, 20*time.Millisecond, c.change(ms(30), -1))
	require.Equal(t, 25*time.Millisecond, c.change(ms(35), -1))
	require.Equal(t, 25*time.Millisecond, c.change(ms(99), 1), "it stands still while nothing runs")
}

func TestRate_IsTypicallyWhatItWasBeforeAnOutlier(t *testing.T) {
	var r rate
	require.Zero(t, r.typically(5))
	for range 100 {
		r.add(8*time.Microsecond, 4)
	}
	require.Equal(t, 8*time.Microsecond, r.typically(1), "a pass")
	require.Equal(t, 20*time.Microsecond, r.typically(10), "by its rows")
	r.add(time.Second, 4)
	require.LessOrEqual(t, r.typically(1), 10*time.Microsecond)
	for range 100 {
		r.add(time.Millisecond, 4)
	}
	require.Equal(t, time.Millisecond, r.typically(1))
	for range 100 {
		r.add(time.Microsecond, 4)
	}
	require.Equal(t, time.Microsecond, r.typically(1))
}

// busyLane returns a lane whose passes take 10 ms, the last of which has ended just now with so many jobs while others waited.
func busyLane(jobs int, waiting ...[2]int) *lane {
	l := &lane{}
	l.cost.add(10*time.Millisecond, jobs)
	standing(l, waiting...)
	l.passed(now, jobs+l.jobs)
	return l
}

func TestPatience_LastsAPassUntilAllAreThere(t *testing.T) {
	l := busyLane(6, [2]int{1, 0}, [2]int{1, 0})
	require.Equal(t, 10*time.Millisecond, l.patience(now))
	require.Equal(t, 3*time.Millisecond, l.patience(now+ms(7)))
	require.LessOrEqual(t, l.patience(now+ms(10)), time.Duration(0), "who is not back by now does not come back soon")
	standing(l, [2]int{1, 0}, [2]int{1, 0}, [2]int{1, 0}, [2]int{1, 0}, [2]int{2, 0})
	require.Positive(t, l.patience(now))
	standing(l, [2]int{1, 0})
	require.Zero(t, l.patience(now), "all 8 are there")
}

func TestPatience_NoneForALoneCallerNorForManyRows(t *testing.T) {
	l := busyLane(1)
	standing(l, [2]int{1, 0})
	require.Zero(t, l.patience(now), "nobody else was there")
	l = busyLane(64)
	standing(l, [2]int{freeRows, 0})
	require.Zero(t, l.patience(now), "more rows would not come for nothing")
}

func TestPatience_PutsNoDeadlineAtRisk(t *testing.T) {
	l := busyLane(8)
	standing(l, [2]int{1, 0}, [2]int{1, 20})
	require.Equal(t, 5*time.Millisecond, l.patience(now), "20 ms less a pass and its margin")
	standing(l, [2]int{1, 12})
	require.LessOrEqual(t, l.patience(now), time.Duration(0))
}

func TestPatience_GetsRarerWhereNobodyComes(t *testing.T) {
	l := busyLane(8, [2]int{1, 0})
	waits := 0
	for range 1000 {
		l.passed(now, 8)
		if l.patience(now) > 0 {
			waits++
			l.waited()
		}
	}
	require.InDelta(t, 6+1000/(maxVain+1), waits, 2)
	for l.patience(now) <= 0 {
		l.passed(now, 8)
	}
	standing(l, [2]int{freeRows, 0})
	l.waited()
	l.remove(l.last)
	l.passed(now, 8)
	require.Positive(t, l.patience(now), "they came back once, so they are waited for again")
}

func TestCrowd_FadesWhenCallersLeave(t *testing.T) {
	l := busyLane(16)
	passes := 0
	for ; l.crowd > 1; passes++ {
		l.passed(now, 1)
	}
	require.Less(t, passes, 10)
}
