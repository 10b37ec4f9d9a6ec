package serving

import (
	"fmt"
	"strings"

	"github.com/kwaai/kwaaid/internal/expert"
)

// fairShare: an expert may hold at most so many times the rows that are left free beside it, so that one busy expert never
// takes the queue's last rows: alone it gets 4/5 of the queue, two such experts get 4/9 each.
const fairShare = 4

// Admit decides the fate of every pair of a call of so many rows, hidden wide, before its payload is read, and reserves room
// for those that it takes. It costs little and never blocks. Refusals match a sentinel of package expert:
//
//	ErrNotReady          the host drains, or the expert is loading, draining or failed
//	ErrNotFound          nothing is hosted under this ID
//	ErrInvalidArgument   an empty batch, a row that isn't in it, rows of another width than the expert's
//	ErrTooLarge          more rows than max_rows, more bytes than the queue holds
//	ErrDigestMismatch    other weights than the pair pins
//	ErrUnimplemented     another order of operations than the pair wants
//	ErrOverloaded        no room now; an OverloadedError that says when to come again
//
// The ticket holds on to pairs until Release, which has to be called exactly once, on every path.
func (h *Host) Admit(rows, hidden int, pairs []expert.Pair) *Ticket {
	t := h.ticket(rows, hidden, pairs)
	input := int64(rows) * int64(hidden) * 4

	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range pairs {
		l, count, err := h.judge(rows, hidden, &pairs[i])
		if err == nil {
			bytes := int64(count) * int64(hidden) * 4
			if len(t.jobs) == 0 {
				bytes += input
			}
			err = h.reserve(t, l.hosted, count, bytes)
		}
		if err != nil {
			t.refuse(i, err)
			continue
		}
		t.jobs = append(t.jobs, job{ticket: t, lane: l, pair: i, rows: pairs[i].Rows, count: count})
	}
	if len(t.jobs) > 0 {
		h.taken++
		h.metrics.queued(h.queued)
	}
	return t
}

// judge tells in which lane a pair belongs and how many rows it has, or why it is refused. Called with mu held.
func (h *Host) judge(rows, hidden int, p *expert.Pair) (*lane, int, error) {
	if h.draining {
		return nil, 0, ErrClosed
	}
	e, ok := h.experts[p.Expert]
	switch {
	case !ok:
		return nil, 0, fmt.Errorf("%s: %w on this node", p.Expert, expert.ErrNotFound)
	case e.state != expert.StateReady:
		return nil, 0, h.notReady(e)
	case !p.Digest.IsZero() && p.Digest != e.spec.Digest:
		return nil, 0, fmt.Errorf("%w: %s has %s here, expected %s", expert.ErrDigestMismatch, p.Expert, e.spec.Digest, p.Digest)
	case hidden != e.spec.Hidden:
		return nil, 0, fmt.Errorf("%w: rows of %d elements: %s expects %d", expert.ErrInvalidArgument, hidden, p.Expert, e.spec.Hidden)
	}
	count := p.RowCount(rows)
	if count < 1 {
		return nil, 0, fmt.Errorf("%w: empty batch: expected at least one row for %s", expert.ErrInvalidArgument, p.Expert)
	}
	if count > h.cfg.MaxRows {
		return nil, 0, fmt.Errorf("%w: %d rows for %s: expected at most %d", expert.ErrTooLarge, count, p.Expert, h.cfg.MaxRows)
	}
	for _, r := range p.Rows {
		if r < 0 || int(r) >= rows {
			return nil, 0, fmt.Errorf("%w: row %d for %s: expected 0 to %d", expert.ErrInvalidArgument, r, p.Expert, rows-1)
		}
	}
	for i := range e.lanes {
		if p.Takes(e.lanes[i].numerics) {
			return &e.lanes[i], count, nil
		}
	}
	return nil, 0, fmt.Errorf("%w: numerics %q: %s computes in %s here", expert.ErrUnimplemented, p.Numerics, p.Expert, e.numerics())
}

// numerics lists the orders of operations that the expert can compute in.
func (e *hosted) numerics() string {
	names := make([]string, len(e.lanes))
	for i := range e.lanes {
		names[i] = e.lanes[i].numerics
	}
	return strings.Join(names, ", ")
}

// notReady says that an expert takes no calls. Why it failed stays here: callers may be strangers. Called with mu held.
func (h *Host) notReady(e *hosted) error {
	return fmt.Errorf("%s: %w: %s", e.id, expert.ErrNotReady, e.state)
}

// reserve takes room in the queue. Called with mu held.
func (h *Host) reserve(t *Ticket, e *hosted, count int, bytes int64) error {
	if bytes > h.cfg.QueueBytes {
		return fmt.Errorf("%w: input and output of %s take %s: expected at most %s (send fewer rows)",
			expert.ErrTooLarge, e.id, bytesText(bytes), bytesText(h.cfg.QueueBytes))
	}
	left := h.cfg.QueueRows - h.queued - count
	crowds := len(h.experts) > 1 && e.rows > fairShare*left
	if left < 0 || crowds || h.bytes+bytes > h.cfg.QueueBytes {
		return &expert.OverloadedError{RetryAfter: h.retryAfter(count)}
	}
	h.queued += count
	h.bytes += bytes
	t.bytes += bytes
	e.rows += count
	e.refs++
	return nil
}
