package serving

import (
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// freeRows: a pass reads the weights once however many rows it has, so at 16 rows one costs about twice what it costs in the
// largest batches. Up to here batches grow whatever their members' deadlines: callers with impossible ones can at worst halve
// what a host gets done.
const freeRows = 16

// withMargin adds to an estimate what it may be off by. Under overload all calls that are taken on are close to being late.
func withMargin(d time.Duration) time.Duration { return d + d/2 }

// job is one admitted pair on its way through a lane. All but what Admit sets once is guarded by Host.mu.
type job struct {
	ticket *Ticket
	lane   *lane
	pair   int     // index into the ticket's pairs
	rows   []int32 // as in expert.Pair; nil: all rows of the call
	count  int     // rows to compute

	prev, next *job   // in the lane, while waiting
	waiting    bool   // stands in its lane
	batch      *batch // whose member it is; nil before, and after its result is there
	member     int    // its place in batch.members
}

// lane is what waits for one expert in one order of operations, oldest first. impl and numerics never change; the rest is
// guarded by Host.mu.
type lane struct {
	hosted   *hosted
	impl     expert.Expert
	numerics string

	first, last *job
	jobs, rows  int  // that wait
	running     bool // a pass is under way; at most one is
	inLine      bool // waits for a slot
	next        *lane
	cost        rate // of its passes, in real time

	// The pass under way.
	passJobs, passRows int
	together           int // jobs of it and behind it when its first result went out; 0 before
	began              moment
	work               time.Duration // what the busy clock showed then

	// Of the passes before: see patience.
	ended moment // the last one
	crowd int    // jobs that were here at once, in a pass and behind it; it fades
	vain  int    // how many passes go without waiting after one that waited in vain: doubled each time
	rest  int    // how many of these are left
}

// push appends a job.
func (l *lane) push(j *job) {
	j.prev, j.next, j.waiting = l.last, nil, true
	if l.last != nil {
		l.last.next = j
	} else {
		l.first = j
	}
	l.last = j
	l.jobs++
	l.rows += j.count
}

// remove takes a waiting job out.
func (l *lane) remove(j *job) {
	if j.prev != nil {
		j.prev.next = j.next
	} else {
		l.first = j.next
	}
	if j.next != nil {
		j.next.prev = j.prev
	} else {
		l.last = j.prev
	}
	j.prev, j.next, j.waiting = nil, nil, false
	l.jobs--
	l.rows -= j.count
}

// take removes from the lane what the next pass should hold, oldest first, and gives each to join; what has expired it
// gives to drop. Beyond freeRows the pass grows only as long as all its members are expected to be answered in time.
// No more than maxRows rows are taken, but for a first job.
func (l *lane) take(now moment, maxRows int, join, drop func(*job)) {
	rows, tightest := 0, never // of the members: all rows, the first deadline
	for j := l.first; j != nil; {
		next := j.next
		if j.ticket.deadline <= now {
			l.remove(j)
			drop(j)
			j = next
			continue
		}
		rows += j.count
		tightest = min(tightest, j.ticket.deadline)
		if rows > j.count && (rows > maxRows || rows > freeRows && withMargin(l.cost.of(rows)) > time.Duration(tightest-now)) {
			return
		}
		l.remove(j)
		join(j)
		j = next
	}
}

// maxVain: where callers don't come back in time, one pass in so many finds out whether they do by now.
const maxVain = 63

// passed notes that a pass has ended, and how many jobs were here at once, in it and behind it.
func (l *lane) passed(now moment, together int) {
	l.ended, l.rest = now, max(l.rest-1, 0)
	l.crowd = max(together, l.crowd*3/4)
}

// full tells whether all who are expected are there, as far as their company costs nothing.
func (l *lane) full() bool { return l.jobs >= l.crowd || l.rows >= freeRows }

// patience returns how much longer the next pass should wait for the callers of the last one. Whoever calls in a loop is back soon after the answer;
// without the wait the first of them would have a pass for itself, and all others would wait for its end. Nobody is waited for who is not back
// within the time of a pass, nor where a deadline would be at risk.
func (l *lane) patience(now moment) time.Duration {
	pass := time.Duration(l.cost.pass)
	if l.full() || l.rest > 0 || pass < quickPass {
		return 0
	}
	until := l.ended + moment(pass)
	for j := l.first; j != nil; j = j.next {
		until = min(until, j.ticket.deadline-moment(withMargin(pass)))
	}
	return time.Duration(until - now)
}

// waited notes how a wait has ended.
func (l *lane) waited() {
	if l.full() {
		l.vain = 0
		return
	}
	l.vain = min(2*l.vain+1, maxVain)
	l.rest = l.vain
}

// wait estimates how long it takes until a job of so many rows is answered if it joins the lane now. sharing is by how many
// times slower the lane moves than if it were alone. Nothing is expected of an idle lane: whoever finds one is taken on, so
// that a wrong estimate can't lock everyone out.
func (l *lane) wait(now moment, rows int, sharing float64) time.Duration {
	if !l.running && l.first == nil {
		return 0
	}
	ahead := l.cost.of(l.rows + rows)
	if l.running {
		ahead += max(0, l.cost.of(l.passRows)-time.Duration(now-l.began))
	}
	return time.Duration(float64(ahead) * sharing)
}

// line holds the lanes that wait for a slot. Each stands in it at most once. Guarded by Host.mu.
type line struct {
	first, last *lane
	count       int
}

// push appends a lane, unless it stands in line already.
func (q *line) push(l *lane) {
	if l.inLine {
		return
	}
	l.inLine, l.next = true, nil
	if q.last != nil {
		q.last.next = l
	} else {
		q.first = l
	}
	q.last = l
	q.count++
}

// pop removes the lane that has waited longest; nil when the line is empty.
func (q *line) pop() *lane {
	l := q.first
	if l == nil {
		return nil
	}
	q.first = l.next
	if q.first == nil {
		q.last = nil
	}
	l.inLine, l.next = false, nil
	q.count--
	return l
}
