package dispatch

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/registry"
)

// While an exchange is silent, one timer runs for it. It rings when the exchange takes longer than nineteen of twenty do (another
// host is asked, within the budget: a hedge), when its peer has been silent for long (it is pinged; if it misses that, another host is
// asked: a retry), and when it used up its share of the deadline (likewise). The first exchange goes on all the while: an answer in
// time is never thrown away.

const (
	// hedgeFloor: below, a timer's own lateness decides rather than the host's.
	hedgeFloor = time.Millisecond
	// hedgeMargin: a quarter above what nineteen of twenty take, or the budget goes to those that are almost there, and is used up when
	// hosts are really late.
	hedgeMargin = 4
	// hedgeBlind stands in where nothing is known of how long an expert usually takes: most take a tenth of it.
	hedgeBlind = 80 * time.Millisecond
	// silence is how long a peer may be silent with a call in flight before it is pinged.
	silence = 50 * time.Millisecond
	// silenceMost: a host that computes for seconds is asked twice a second whether it is still there.
	silenceMost = 500 * time.Millisecond
	// dialPatience: a dial takes four or five round trips, which is within this on one continent, and little more around the world.
	dialPatience = 400 * time.Millisecond
	// leastShare: a shorter share of the deadline is no time in which another host could answer.
	leastShare = 20 * time.Millisecond
)

// watch is when something is to be done about an exchange that is silent. A zero time: never.
type watch struct {
	timer   *time.Timer
	hedgeAt time.Time
	pingAt  time.Time
	shareAt time.Time
	endAt   time.Time     // the call's deadline
	every   time.Duration // between two pings
	missed  bool          // it missed a ping
	late    bool          // it used up its share of the deadline
	ended   bool
}

// watchOver begins to watch over an exchange with a peer. The lock is held.
func (c *call) watchOver(ex *exchange, now time.Time) {
	w := &ex.watch
	w.endAt = c.deadline
	if ex.peer != "" {
		if c.d.cfg.Hedge && !ex.hedge {
			c.d.budget.earn()
			w.hedgeAt = now.Add(c.usual(ex))
		}
		w.every = silence
		w.pingAt = now.Add(silence)
		if share := c.deadline.Sub(now) / 2; share >= leastShare {
			w.shareAt = now.Add(share)
		}
	}
	if w.timer != nil {
		w.timer.Reset(w.next().Sub(now)) // of an earlier call in the same place
		return
	}
	w.timer = time.AfterFunc(w.next().Sub(now), func() { c.ring(ex) })
}

// next is when the timer has to ring.
func (w *watch) next() time.Time {
	next := w.endAt
	for _, at := range [...]time.Time{w.hedgeAt, w.pingAt, w.shareAt} {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// due tells whether the time has come, and clears it.
func due(at *time.Time, now time.Time) bool {
	if at.IsZero() || now.Before(*at) {
		return false
	}
	*at = time.Time{}
	return true
}

// unwatch ends the watch. The lock is held.
func (c *call) unwatch(ex *exchange) {
	ex.watch.ended = true
	if !ex.watch.timer.Stop() {
		c.stray = true
	}
}

// usual is how long nineteen of twenty exchanges like this one take, and a little more: as long as the slowest of its pairs.
func (c *call) usual(ex *exchange) time.Duration {
	longest := hedgeFloor
	for k := range ex.items {
		t := &c.tasks[ex.items[k].task]
		usual, known := c.d.table.Slow(ex.pairs[k].Expert, t.rows)
		if !known {
			usual = hedgeBlind
		}
		longest = max(longest, usual+usual/hedgeMargin)
	}
	return longest
}

// ring does what is due, in the timer's goroutine. The exchange is not over yet, or nothing is done: so the goroutine that runs it,
// and with it the call, is still there.
func (c *call) ring(ex *exchange) {
	c.mu.Lock()
	w := &ex.watch
	if w.ended {
		c.mu.Unlock()
		return
	}
	c.others.Add(1)
	defer c.others.Done()
	now := time.Now()
	if due(&w.endAt, now) {
		ex.end(errDeadline)
		c.mu.Unlock()
		return
	}
	if due(&w.hedgeAt, now) {
		c.hedge(ex, now)
	}
	if due(&w.shareAt, now) {
		w.late = true
		c.retryElsewhere(ex)
	}
	ping := due(&w.pingAt, now)
	c.rewind(w, now)
	c.mu.Unlock()
	if ping {
		c.ping(ex)
	}
}

// rewind sets the timer for what is to be done next, if anything. The lock is held.
func (c *call) rewind(w *watch, now time.Time) {
	if next := w.next(); !next.IsZero() {
		w.timer.Reset(next.Sub(now))
	}
}

// ping asks the silent peer for a sign of life. If none comes, its pairs are asked elsewhere.
func (c *call) ping(ex *exchange) {
	dialled := !c.d.connected(ex.peer)
	alive := dialled || c.d.alive(ex.ctx, ex.peer)
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &ex.watch
	if w.ended {
		return
	}
	now := time.Now()
	if until := ex.began.Add(dialPatience); dialled && !w.late {
		if now.Before(until) {
			w.pingAt = until
			c.rewind(w, now)
			return
		}
		// A frozen host takes connections and says nothing. The dial goes on, but nobody waits for it alone.
		w.late, w.shareAt = true, time.Time{}
		c.retryElsewhere(ex)
	}
	if alive {
		w.every = min(2*w.every, silenceMost)
		w.pingAt = now.Add(w.every)
		c.rewind(w, now)
		return
	}
	w.missed = true
	c.retryElsewhere(ex)
}

// waiting returns the tasks of an exchange that wait for it alone.
func (c *call) waiting(ex *exchange) (tasks []int) {
	for k := range ex.items {
		if i := ex.items[k].task; c.unattended(i, ex) {
			tasks = append(tasks, i)
		}
	}
	return tasks
}

// unattended tells whether nobody does anything for a task: nobody looks for another host, and whoever was asked, beside the given
// exchange, is doubted.
func (c *call) unattended(i int, beside *exchange) bool {
	t := &c.tasks[i]
	if t.decided {
		return false
	}
	seekers := t.hands
	for _, ex := range c.live {
		if !ex.carries(i) {
			continue
		}
		seekers--
		if ex != beside && !ex.watch.missed && !ex.watch.late {
			return false
		}
	}
	return seekers == 0
}

// carries tells whether a task is among the exchange's.
func (ex *exchange) carries(i int) bool {
	for k := range ex.items {
		if ex.items[k].task == i {
			return true
		}
	}
	return false
}

// retryElsewhere asks other hosts for what waits for the exchange, or fallbacks where there are none. The lock is held.
func (c *call) retryElsewhere(ex *exchange) {
	todo := c.waiting(ex)
	for _, i := range todo {
		c.tasks[i].hands++
	}
	if len(todo) > 0 {
		c.others.Go(func() { c.advance(todo) })
	}
}

// hedge asks other hosts for what waits for the exchange, if the budget allows. Experts whose hosts are full are not asked for twice.
// The lock is held.
func (c *call) hedge(ex *exchange, now time.Time) {
	var start []*exchange
	for _, i := range c.waiting(ex) {
		t := &c.tasks[i]
		if t.full {
			continue
		}
		pick, ok := c.pick(i, now, start)
		if !ok {
			continue
		}
		if !joins(start, pick.Peer) && !c.d.budget.spend() {
			c.d.table.Report(pick, registry.Outcome{Kind: registry.Cancelled}, now)
			c.d.counts.refused.Add(1)
			c.d.metrics.hedgeRefused()
			ex.watch.pingAt = now // if it is gone, another may be asked all the same
			break
		}
		t.asking.tried = append(t.asking.tried, pick.Peer)
		t.hands++
		start = c.join(start, i, pick)
	}
	for _, second := range start {
		second.hedge = true
		c.launch(second, now)
		c.d.counts.hedges.Add(1)
		c.d.metrics.hedged()
		c.others.Go(func() { c.advance(c.run(second)) })
	}
}

func joins(start []*exchange, p peer.ID) bool {
	for _, ex := range start {
		if ex.peer == p {
			return true
		}
	}
	return false
}
