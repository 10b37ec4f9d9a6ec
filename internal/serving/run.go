package serving

import (
	"context"
	"fmt"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// quickPass: passes that take less are computed in their caller's goroutine. Handing a pass to another goroutine and back
// costs about a microsecond, so above this it is lost in the pass, and what it buys is worth more: callers that are ready to
// run join the batch, and a caller whose ctx ends can leave.
const quickPass = 50 * time.Microsecond

// Run computes the admitted pairs on x, [rows, hidden] as it was admitted, and returns one result per pair, those refused by
// Admit included. Errors match a sentinel of package expert. When ctx ends, pairs that have their result keep it, the others
// get ErrDeadlineExceeded or ErrCancelled, and Run returns at once, unless a quick expert's pass is reading x: then once that
// is over. After Run nobody reads x.
//
// The slice is valid until Release. The outputs stay valid; they may share memory with x (identity) and with other callers'
// outputs (rows of one batch), so don't write to them.
func (t *Ticket) Run(ctx context.Context, x *tensor.Dense) []expert.Result {
	if len(t.jobs) == 0 {
		return t.results
	}
	if err := t.enter(ctx, x); err != nil {
		for i := range t.jobs {
			t.fail(t.jobs[i].pair, err)
		}
		return t.results
	}
	h, now := t.host, t.host.now()
	h.mu.Lock()
	quick := h.submit(t, now) //nolint:contextcheck // see there
	others := t.pending > 0
	h.endGathering(now)
	h.mu.Unlock()
	if quick != nil {
		t.compute(ctx, quick)
	}
	if others {
		select {
		case <-t.done:
		case <-ctx.Done():
			t.leave(ctx)
		}
	}
	return t.results
}

// enter checks the input, and takes note of it.
func (t *Ticket) enter(ctx context.Context, x *tensor.Dense) error {
	if ctx.Err() != nil {
		return ctxError(ctx)
	}
	values, err := expert.Rows(x, t.hidden)
	if err != nil {
		return err
	}
	if rows := x.Shape()[0]; rows != t.rows {
		return fmt.Errorf("%w: expected the %d rows that were announced, found %d", expert.ErrInvalidArgument, t.rows, rows)
	}
	t.input, t.values = x, values
	t.deadline = never
	if deadline, ok := ctx.Deadline(); ok {
		t.deadline = moment(deadline.Sub(t.host.epoch))
	}
	if t.host.cfg.RefuseNonFinite && !expert.Finite(values) {
		t.refuseNonFinite()
	}
	return nil
}

// refuseNonFinite drops the jobs that ask for a row with NaN or Inf in it.
func (t *Ticket) refuseNonFinite() {
	for i := range t.jobs {
		j := &t.jobs[i]
		if row := firstNonFinite(t.values, j.rows, j.count, t.hidden); row >= 0 {
			t.fail(j.pair, fmt.Errorf("%w: row %d for %s holds NaN or Inf: expected finite values",
				expert.ErrInvalidArgument, row, j.lane.hosted.id))
		}
	}
}

// submit puts the ticket's jobs into their lanes and starts what can start now. It returns a job that the caller has to
// compute itself, with its lane and a slot taken for it; nil when there is none. Called with mu held.
func (h *Host) submit(t *Ticket, now moment) (quick *job) {
	for i := range t.jobs {
		j := &t.jobs[i]
		if t.results[j.pair].Err != nil {
			continue
		}
		l := j.lane
		if l.hosted.state == expert.StateFailed {
			t.fail(j.pair, h.notReady(l.hosted))
			continue
		}
		if err := h.tooLate(l, j.count, t.deadline, now); err != nil {
			t.fail(j.pair, err)
			continue
		}
		l.push(j)
		t.pending++
		if !l.running {
			h.line.push(l)
		}
	}
	for h.slots > 0 {
		l := h.line.pop()
		if l == nil {
			return quick
		}
		h.slots--
		l.running = true
		// Slots are free only when no lane waits, so what stands in this one is the ticket's own.
		if j := l.first; quick == nil && j == l.last && l.cost.typically(j.count) < quickPass {
			quick = j
			l.remove(j)
			t.pending--
			h.begin(l, 1, j.count, now)
		} else {
			go h.work(l)
		}
	}
	return quick
}

// tooLate refuses a job that is expected to be answered after its deadline, so that the caller can ask elsewhere now. Called
// with mu held.
func (h *Host) tooLate(l *lane, rows int, deadline, now moment) error {
	if deadline == never {
		return nil
	}
	sharing := max(1, float64(h.line.count+h.busy.running)/float64(h.width))
	if withMargin(l.wait(now, rows, sharing)) > time.Duration(deadline-now) {
		return &expert.OverloadedError{RetryAfter: h.retryAfter(rows)}
	}
	return nil
}

// compute makes a pass for one job in its caller's goroutine, on the caller's own rows.
func (t *Ticket) compute(ctx context.Context, j *job) {
	h, e := t.host, j.lane.hosted
	x, values, buffer := t.input, t.values, []float32(nil)
	if j.rows != nil {
		x = nil
		if first, ok := span(j.rows); ok {
			values = values[first*t.hidden : (first+j.count)*t.hidden]
		} else {
			buffer = h.buffers.get(j.count * t.hidden)
			gather(buffer, values, j.rows, t.hidden)
			values = buffer
		}
	}
	y, err := h.forward(ctx, j.lane.impl, x, values, t.hidden)
	if buffer != nil && !sameMemory(y.values, buffer) {
		h.buffers.put(buffer)
	}
	h.examine(ctx, e, err)
	if err != nil {
		t.fail(j.pair, err)
	} else {
		r := y.part(0, j.count, t.hidden)
		r.Digest, r.Numerics = e.spec.Digest, j.lane.numerics
		t.results[j.pair] = r
		y.release()
	}

	if next := h.end(j.lane); next != nil {
		go h.work(next) //nolint:contextcheck // it works for others
	}
}

// leave takes the ticket's unanswered jobs out of their lanes and batches. When it returns, nobody reads the input any more.
func (t *Ticket) leave(ctx context.Context) {
	h, err := t.host, ctxError(ctx)
	var left []*batch
	h.mu.Lock()
	answered := t.pending == 0
	for i := range t.jobs {
		switch j := &t.jobs[i]; {
		case j.waiting:
			j.lane.remove(j)
			t.pending--
			t.fail(j.pair, err)
		case j.batch != nil:
			left = append(left, j.batch)
			j.batch.leave(j)
			t.pending--
			t.fail(j.pair, err)
		}
	}
	h.mu.Unlock()
	if answered {
		<-t.done // whoever took pending to 0 is about to send it
	}
	for _, b := range left {
		b.reading.Wait()
	}
}
