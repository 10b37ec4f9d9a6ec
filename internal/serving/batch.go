package serving

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// batch is one pass over the rows of many jobs.
type batch struct {
	lane    *lane
	members []member
	rows    int
	quick   bool // a row takes little longer to compute than to copy

	// reading is 1 from when the batch is formed until its members' inputs are not read any more: a caller who leaves waits
	// for that, and can then have its input back.
	reading sync.WaitGroup

	jobs    []*job // of the members, by index; nil once it has left or got its result. Guarded by Host.mu
	present int    // how many are not nil; likewise
	cancel  context.CancelFunc
}

// member is one job's part of a batch: rows [first, first+count). It is the worker's alone.
type member struct {
	first, count int
	values       []float32 // the job's input; read only while batch.reading is 1
	rows         []int32   // which of its rows; likewise
}

// work makes passes until no lane waits for a slot. The lane it starts with, and a slot, are taken for it.
func (h *Host) work(l *lane) {
	for l != nil {
		// Whoever can run now may join the batch. This costs nothing when nobody can.
		runtime.Gosched()
		h.gatherCallers(l)
		if b, ctx := h.form(l); b != nil {
			h.pass(ctx, b)
		}
		l = h.end(l)
	}
}

// gathering is a lane's wait for callers.
type gathering struct {
	lane *lane
	over chan struct{} // closed when there is nothing to wait for any more
}

// gatherCallers waits until the callers that a lane expects back are there, as long as its patience lasts. It does not where
// other lanes have work, whose passes leave no CPU idle meanwhile.
func (h *Host) gatherCallers(l *lane) {
	var g *gathering
	var patience time.Duration
	h.mu.Lock()
	if h.gathering == nil && h.line.first == nil && h.busy.running == 0 && h.last == l {
		if patience = l.patience(h.now()); patience > 0 {
			g = &gathering{lane: l, over: make(chan struct{})}
			h.gathering = g
		}
	}
	h.mu.Unlock()
	if g == nil {
		return
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-g.over:
		return
	case <-timer.C:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gathering == g {
		h.gathering = nil
		l.waited()
	}
}

// endGathering ends the wait of the lane that waits for callers, if there is nothing to wait for any more. Called with mu held.
func (h *Host) endGathering(now moment) {
	g := h.gathering
	if g == nil || h.line.first == nil && g.lane.patience(now) > 0 {
		return
	}
	if h.line.first == nil {
		g.lane.waited()
	}
	h.gathering = nil
	close(g.over)
}

// form makes a batch of what waits in a lane; nil when nothing does. The batch holds a reference to its expert: its members
// may all leave before it ends.
func (h *Host) form(l *lane) (*batch, context.Context) {
	b := &batch{lane: l}
	var answered []*Ticket
	now := h.now()
	h.mu.Lock()
	drop := func(j *job, err error) {
		j.ticket.fail(j.pair, err)
		if j.ticket.answered() {
			answered = append(answered, j.ticket)
		}
	}
	for l.first != nil && l.hosted.state == expert.StateFailed {
		j := l.first
		l.remove(j)
		drop(j, h.notReady(l.hosted))
	}
	l.take(now, h.cfg.MaxRows, func(j *job) {
		j.batch, j.member = b, len(b.members)
		b.jobs = append(b.jobs, j)
		b.members = append(b.members, member{first: b.rows, count: j.count, values: j.ticket.values, rows: j.rows})
		b.rows += j.count
	}, func(j *job) {
		drop(j, fmt.Errorf("%w: while it waited for %s", expert.ErrDeadlineExceeded, l.hosted.id))
	})
	var ctx context.Context
	if b.rows > 0 {
		ctx, b.cancel = context.WithCancel(context.Background())
		b.present = len(b.jobs)
		b.quick = l.cost.perRow() < time.Duration(l.hosted.spec.Hidden)*copyNanos
		b.reading.Add(1)
		l.hosted.refs++
		h.begin(l, len(b.jobs), b.rows, now)
	}
	h.mu.Unlock()
	for _, t := range answered {
		t.done <- struct{}{}
	}
	if b.rows == 0 {
		return nil, nil
	}
	return b, ctx
}

// answered counts one result that another goroutine than the ticket's delivers; true: it was the last, so a token is due.
// Called with mu held; the token is sent after that, and the ticket is not touched any more.
func (t *Ticket) answered() bool {
	t.pending--
	return t.pending == 0
}

// leave takes a member out; when it is the last, the pass is told to stop. Called with mu held.
func (b *batch) leave(j *job) {
	b.jobs[j.member], j.batch = nil, nil
	b.present--
	if b.present == 0 {
		b.cancel()
	}
}

// pass computes a batch and shares out the results.
func (h *Host) pass(ctx context.Context, b *batch) {
	e := b.lane.hosted
	hidden := e.spec.Hidden
	input, copied := h.gather(b)
	if copied {
		b.reading.Done()
	}

	var shared bool // an output has the input's memory
	run := func(first, count int) (output, error) {
		x := input[first*hidden : (first+count)*hidden]
		y, err := h.forward(ctx, b.lane.impl, nil, x, hidden)
		h.examine(ctx, e, err)
		shared = shared || sameMemory(y.values, x)
		return y, err
	}
	y, err := run(0, b.rows)
	if !copied {
		b.reading.Done()
	}
	switch {
	case err == nil:
		for i, m := range b.members {
			h.deliver(b, i, y.part(m.first, m.count, hidden))
		}
		y.release()
	case len(b.members) == 1:
		h.deliver(b, 0, expert.Result{Err: err})
	default:
		// One of them is at fault: each alone, so that the others don't suffer for it.
		for i, m := range b.members {
			if err := h.failed(e); err != nil {
				h.deliver(b, i, expert.Result{Err: err})
				continue
			}
			y, err := run(m.first, m.count)
			if err != nil {
				h.deliver(b, i, expert.Result{Err: err})
				continue
			}
			h.deliver(b, i, y.part(0, m.count, hidden))
			y.release()
		}
	}
	b.cancel()
	if copied && !shared {
		h.buffers.put(input)
	}

	h.mu.Lock()
	unloaded := h.unref(e, 1)
	h.mu.Unlock()
	h.unload(unloaded)
}

// copyNanos: copying an element takes about a nanosecond, at 4 GB/s with a margin for the other direction. A copy is worth
// its time when that is a twentieth of the pass.
const copyNanos = 20

// gather returns the batch's rows one behind the other: a copy from the pool, or a lone call's own rows. Those are used where
// a copy would cost more than a little of the pass; a pass so quick for its rows is soon over, and a caller who leaves can
// wait for it.
func (h *Host) gather(b *batch) (input []float32, copied bool) {
	hidden := b.lane.hosted.spec.Hidden
	if m := b.members[0]; len(b.members) == 1 && b.quick {
		if m.rows == nil {
			return m.values, false
		}
		if first, ok := span(m.rows); ok {
			return m.values[first*hidden : (first+m.count)*hidden], false
		}
	}
	input = h.buffers.get(b.rows * hidden)
	for i := range b.members {
		m := &b.members[i]
		gather(input[m.first*hidden:(m.first+m.count)*hidden], m.values, m.rows, hidden)
		m.values, m.rows = nil, nil
	}
	return input, true
}

// deliver hands a member its result, unless it has left.
func (h *Host) deliver(b *batch, i int, r expert.Result) {
	if r.Err == nil {
		r.Digest, r.Numerics = b.lane.hosted.spec.Digest, b.lane.numerics
	}
	var last *Ticket
	h.mu.Lock()
	if l := b.lane; l.together == 0 { // who is answered may be back, and behind the pass, before it has ended
		l.together = l.passJobs + l.jobs
	}
	j := b.jobs[i]
	taken := j != nil
	if taken {
		b.jobs[i], j.batch = nil, nil
		b.present--
		if r.Err != nil {
			j.ticket.fail(j.pair, r.Err)
		} else {
			j.ticket.results[j.pair] = r
		}
		if j.ticket.answered() {
			last = j.ticket
		}
	}
	h.mu.Unlock()
	if last != nil {
		last.done <- struct{}{}
	}
	if !taken {
		expert.Release(r.Memory)
	}
}

// begin notes that a lane's pass starts. Called with mu held.
func (h *Host) begin(l *lane, jobs, rows int, now moment) {
	l.passJobs, l.passRows, l.together, l.began, l.work = jobs, rows, 0, now, h.busy.change(now, 1)
}

// end notes that a lane's pass is over, if there was one, and passes its slot on: to the lane that it returns, for which the
// caller has to see to it that work is called. nil: no lane waits, and the slot is free.
func (h *Host) end(l *lane) *lane {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if rows := l.passRows; rows > 0 {
		took, share := time.Duration(now-l.began), h.busy.change(now, -1)-l.work
		l.cost.add(took, rows)
		h.speed.add(share, rows)
		h.done += uint64(rows)
		l.hosted.done += uint64(rows)
		h.metrics.passed(rows, took)
		l.passed(now, cmp.Or(l.together, l.passJobs+l.jobs))
		h.last = l
	}
	l.passRows, l.running = 0, false
	if l.first != nil {
		h.line.push(l)
	}
	next := h.line.pop()
	if next == nil {
		h.slots++
		return nil
	}
	next.running = true
	return next
}

// examine looks at an expert whose pass may have failed. After a panic it may be damaged: it has to answer its canary before
// its lane goes on, or it is failed; whoever waits for the pass has no say in that. The caller holds a reference to it.
func (h *Host) examine(ctx context.Context, e *hosted, err error) {
	if err == nil {
		return
	}
	p, ok := errors.AsType[*panicError](err)
	if !ok {
		return
	}
	h.metrics.panicked()
	h.log.Error().Stringer("expert", e.id).Str("panic", fmt.Sprint(p.value)).Bytes("stack", p.stack).Msg("expert panicked")
	h.mu.Lock()
	e.refs++
	h.mu.Unlock()
	if err := h.prove(context.WithoutCancel(ctx), e); err != nil {
		h.log.Error().Err(err).Stringer("expert", e.id).Msg("expert withdrawn")
	}
}

// failed returns the error of those who wait for an expert that failed meanwhile; nil when it did not.
func (h *Host) failed(e *hosted) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.state != expert.StateFailed {
		return nil
	}
	return h.notReady(e)
}
