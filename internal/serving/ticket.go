package serving

import (
	"context"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Ticket is a call that was taken on, at least in part. It belongs to one goroutine. Use it so: Refused if that is of
// interest, Run once if the payload is there, Release.
type Ticket struct {
	host   *Host
	rows   int
	hidden int
	pairs  []expert.Pair

	refused []error // nil, or one per pair
	jobs    []job   // of the admitted pairs
	bytes   int64   // reserved for them
	results []expert.Result

	// Of Run.
	input    *tensor.Dense
	values   []float32     // of input
	deadline moment        // set before the jobs enter their lanes, and not changed while they are there
	pending  int           // jobs in a lane or a batch; guarded by Host.mu
	done     chan struct{} // gets one token when another goroutine takes pending to 0; of size 1, so that never blocks
}

// ticket returns an empty ticket.
func (h *Host) ticket(rows, hidden int, pairs []expert.Pair) *Ticket {
	t := h.tickets.Get().(*Ticket)
	t.rows, t.hidden, t.pairs = rows, hidden, pairs
	if cap(t.jobs) < len(pairs) {
		t.jobs = make([]job, 0, len(pairs))
	}
	if cap(t.results) < len(pairs) {
		t.results = make([]expert.Result, len(pairs))
	}
	t.results = t.results[:len(pairs)]
	return t
}

// refuse notes why a pair isn't taken.
func (t *Ticket) refuse(pair int, err error) {
	if t.refused == nil {
		t.refused = make([]error, len(t.pairs))
	}
	t.refused[pair] = err
	t.fail(pair, err)
}

// fail sets a pair's result.
func (t *Ticket) fail(pair int, err error) {
	t.results[pair] = expert.Result{Err: err}
	t.host.metrics.refuse(err)
}

// Refused returns why pairs were not taken on, one entry per pair, nil for those that were; nil when all were. Valid until Release.
func (t *Ticket) Refused() []error { return t.refused }

// Release gives back what Admit reserved. The ticket, its results and what Refused returned must not be used any more; the
// tensors of the results may. Call it once the reply is out: Drain waits for that.
func (t *Ticket) Release() {
	h := t.host
	var unloaded []*hosted
	if len(t.jobs) > 0 {
		h.mu.Lock()
		for i := range t.jobs {
			j := &t.jobs[i]
			e := j.lane.hosted
			h.queued -= j.count
			e.rows -= j.count
			if e = h.unref(e, 1); e != nil {
				unloaded = append(unloaded, e)
			}
		}
		h.bytes -= t.bytes
		h.taken--
		if h.draining && h.taken == 0 {
			close(h.drained)
		}
		h.metrics.queued(h.queued)
		h.mu.Unlock()
	}
	for _, e := range unloaded {
		h.unload(e)
	}
	clear(t.jobs)
	clear(t.results)
	*t = Ticket{host: h, jobs: t.jobs[:0], results: t.results[:0], done: t.done}
	h.tickets.Put(t)
}

// Local answers a call from this node through the same queue. It keeps no reference to x or pairs.
func (h *Host) Local(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) []expert.Result {
	rows, hidden := 0, 0
	if x != nil && x.Dims() == 2 {
		rows, hidden = x.Shape()[0], x.Shape()[1]
	}
	t := h.Admit(rows, hidden, pairs)
	defer t.Release()
	return append([]expert.Result(nil), t.Run(ctx, x)...)
}
