package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
)

// suspect is an answer with NaN or Inf, though the input had none. It is the host's failure, unless a second host gives the same
// bits: then it is the expert's answer.
type suspect struct {
	item   item
	answer Answer
}

// settle takes in how an exchange ended: every pick is reported, tasks are decided, and those that need another attempt are returned.
func (c *call) settle(ex *exchange, results []expert.Result, load expert.Load, err error) (again []int) {
	now := time.Now()
	if err == nil && len(results) != len(ex.items) {
		err = fmt.Errorf("%w: %d results for %d pairs", expert.ErrBadReply, len(results), len(ex.items))
	}
	for k := range ex.items {
		if err != nil {
			ex.items[k].err = err
		} else {
			ex.items[k].err = judge(&results[k], &ex.pairs[k], ex.pairs[k].RowCount(c.rows), c.hidden, c.d.cfg.CheckNaN)
		}
	}
	var sumCheck *sumCheck
	var checks []*check
	if ex.sum {
		c.judgeSum(ex, results)
		sumCheck = c.drawSumCheck(ex, results)
	} else {
		checks = c.drawChecks(ex, results)
	}
	c.mu.Lock()
	c.unwatch(ex)
	c.live = slices.DeleteFunc(c.live, func(other *exchange) bool { return other == ex })
	if ex.sum {
		c.takeSum(ex, results)
	}
	for k := range ex.items {
		it := &ex.items[k]
		var r *expert.Result
		if err == nil {
			r = &results[k]
		}
		c.note(ex, it, r, load, now)
		t := &c.tasks[it.task]
		t.hands--
		if !t.decided {
			c.weigh(ex, it, r, now)
			c.askHereAgain(ex, it)
		} else if checks != nil {
			checks[k] = nil // another answer was taken
		}
		if c.unattended(it.task, nil) {
			t.hands++
			again = append(again, it.task)
		}
	}
	c.mu.Unlock()
	d := c.d // the call may be over before a check is
	for _, k := range checks {
		if k != nil {
			d.checkBehind(func(ctx context.Context) { d.compare(ctx, k) })
		}
	}
	if sumCheck != nil {
		d.checkBehind(func(ctx context.Context) { d.compareSum(ctx, sumCheck) })
	}
	for k := range ex.items {
		if ex.items[k].err != nil {
			c.d.logFailure(ex, k, err != nil, now)
		}
	}
	c.tell()
	return again
}

// logFailure logs an attempt that failed: at debug, since another host is asked; what an operator should look into, louder.
func (d *Dispatcher) logFailure(ex *exchange, k int, whole bool, now time.Time) {
	it := &ex.items[k]
	level, message := zerolog.DebugLevel, "an attempt failed"
	switch kindOf(it.err, whole) {
	case registry.Garbled:
		level, message = zerolog.WarnLevel, "a host breaks the protocol and is shut out for a while"
	case registry.Mismatch:
		level, message = zerolog.InfoLevel, "a host has other weights under the same name"
	case registry.Suspect:
		level, message = zerolog.WarnLevel, "a host answers with NaN or Inf, another is asked"
	default:
	}
	d.log.WithLevel(level).Str("peer", it.pick.Text).Stringer("expert", ex.pairs[k].Expert).Str("op", opOf(it.err)).
		Dur("took", now.Sub(ex.began)).Err(it.err).Msg(message)
}

// note writes down how an attempt went, for the caller, the registry and the metrics.
func (c *call) note(ex *exchange, it *item, r *expert.Result, load expert.Load, now time.Time) {
	a := &c.tasks[it.task].attempts[it.attempt]
	a.Took, a.Err = now.Sub(ex.began), it.err
	if it.err != nil {
		a.Op = opOf(it.err)
	}
	if errors.Is(it.err, expert.ErrCancelled) {
		// It was ended because another answered: say why another was asked.
		switch {
		case ex.watch.missed:
			a.Err = fmt.Errorf("%w: silent, and missed a ping", expert.ErrTimeout)
		case ex.watch.late:
			a.Err = fmt.Errorf("%w: silent for its share of the deadline", expert.ErrTimeout)
		}
	}
	c.d.counts.attempts.Add(1)
	c.d.metrics.attempted(it.err)
	if ex.peer == "" {
		return
	}
	o := registry.Outcome{Kind: kindOf(it.err, r == nil), Took: a.Took, Load: load}
	switch o.Kind {
	case registry.Answered:
		o.Digest, o.Hidden = r.Digest, c.hidden
	case registry.Overloaded:
		if full, ok := errors.AsType[*expert.OverloadedError](it.err); ok {
			o.RetryAfter = full.RetryAfter
		}
	case registry.Mismatch:
		if r != nil {
			o.Digest = r.Digest
		}
		if it.pick.Digest.IsZero() {
			o.Kind = registry.Failed // any digest would have done
		}
	case registry.Cancelled:
		if !ex.watch.missed && (ex.watch.late || c.tooLong(it, a.Took)) {
			o.Kind = registry.TimedOut
		}
	default:
	}
	c.d.table.Report(it.pick, o, now)
}

const (
	// muchTooLong: an answer that takes four times what nineteen of twenty take will not come.
	muchTooLong = 4
	// longWithoutHistory is what an expert may take that nothing is known of.
	longWithoutHistory = time.Second
)

// tooLong tells whether an attempt that was ended without an answer had time enough for one. Where it had not, because the caller was
// in a hurry or another was quicker, nobody failed.
func (c *call) tooLong(it *item, took time.Duration) bool {
	usual, known := c.d.table.Slow(it.pick.Expert, c.tasks[it.task].rows)
	if !known {
		return took >= longWithoutHistory
	}
	return took >= max(muchTooLong*usual, longWithoutHistory/4)
}

// weigh decides what follows from an attempt's end for its task, which is not decided yet.
func (c *call) weigh(ex *exchange, it *item, r *expert.Result, now time.Time) {
	t := &c.tasks[it.task]
	if it.err == nil {
		a := c.answer(ex, it, r)
		if t.refused != nil && a.Where != WhereFallback {
			c.d.table.Blame(a.Expert, t.refuser, now) // it could be done after all
		}
		c.decide(it.task, a)
		c.blame(t, now)
		return
	}
	if over := c.over(now); over != nil {
		c.noteVain(t, over, now)
		c.fail(it.task, over)
		return
	}
	if errors.Is(it.err, errNotFinite) {
		t.askedOf(it).last = it.err
		if ex.sum {
			t.takeApart(it, ex.peer)
		} else {
			c.suspect(it, c.answer(ex, it, r))
		}
		return
	}
	if errors.Is(it.err, expert.ErrCancelled) {
		return // it was ended from here: it says nothing
	}
	asked := t.askedOf(it)
	asked.last = it.err
	fallback := asked.id != t.pair.Expert
	switch {
	case errors.Is(it.err, expert.ErrDialFailed):
		asked.begun-- // it was asked nothing: a record outlives its host, and many may be gone
	case errors.Is(it.err, expert.ErrInvalidArgument) && !fallback:
		// The request is wrong, so nobody will do it. This node is believed at once, a peer when another says the same.
		if ex.peer == "" || t.refused != nil {
			c.fail(it.task, it.err)
		} else {
			t.refused, t.refuser = it.err, ex.peer
		}
	case ex.sum && r == nil && errors.Is(it.err, expert.ErrUnimplemented):
		t.takeApart(it, ex.peer) // a host of an earlier version, which knows no sums
	case errors.Is(it.err, expert.ErrTooLarge), errors.Is(it.err, expert.ErrUnimplemented):
		if ex.peer == "" {
			asked.cannot = true
		} else {
			asked.unable = append(asked.unable, ex.peer)
		}
	case errors.Is(it.err, expert.ErrOverloaded):
		t.full = true
		fallthrough
	case errors.Is(it.err, expert.ErrDigestMismatch) && !it.pick.Digest.IsZero():
		// The registry leaves the peer out for as long as that holds; afterwards it may be asked again.
		asked.tried = slices.DeleteFunc(asked.tried, func(p peer.ID) bool { return p == ex.peer })
	}
}

// askHereAgain has this node asked once more, if nobody else can be, for what it had no room for, where it computed other pairs of the exchange:
// these are done, and were what filled its queue, or a good part. So a batch that is larger than the queue is computed piece by piece.
func (c *call) askHereAgain(ex *exchange, it *item) {
	t := &c.tasks[it.task]
	if ex.peer != "" || t.decided || !errors.Is(it.err, expert.ErrOverloaded) {
		return
	}
	if slices.ContainsFunc(ex.items, func(other item) bool { return other.err == nil }) {
		asked := t.askedOf(it)
		asked.again = true
		asked.begun-- // there is an end to it: each time a pair less is left
	}
}

// askedOf returns the expert that an attempt was made for: the one that is asked now, or the pair's own, when a fallback is asked
// meanwhile. Of fallbacks that were asked before nothing needs to be known any more.
func (t *task) askedOf(it *item) *asked {
	switch id := t.attempts[it.attempt].Expert; id {
	case t.asking.id:
		return &t.asking
	case t.pair.Expert:
		return &t.first
	default:
		return &asked{id: id}
	}
}

// answer makes the answer that a result is.
func (c *call) answer(ex *exchange, it *item, r *expert.Result) Answer {
	a := Answer{
		Output: r.Output, Sum: r.Sum, Peer: ex.peer, PeerText: it.pick.Text, Where: WhereRemote, Digest: r.Digest, Numerics: r.Numerics,
		Memory: r.Memory,
	}
	t := &c.tasks[it.task]
	a.Expert = t.attempts[it.attempt].Expert
	switch {
	case a.Expert != t.pair.Expert:
		a.Where = WhereFallback
	case ex.peer == "":
		a.Where = WhereLocal
	}
	return a
}

// suspect keeps an answer with NaN or Inf until another host gives the same, or a finite one. The host of a finite answer shows those
// before it to be wrong; the registry learns that when the task is decided.
func (c *call) suspect(it *item, a Answer) {
	t := &c.tasks[it.task]
	for _, s := range t.suspects {
		if s.answer.Expert != a.Expert || s.answer.Peer == a.Peer || !sameBits(s.answer.Output, a.Output) {
			continue
		}
		t.attempts[s.item.attempt].Err, t.attempts[it.attempt].Err = nil, nil
		c.decide(it.task, a)
		return
	}
	t.suspects = append(t.suspects, suspect{*it, a})
}

// blame tells the registry of the hosts whose answers turned out to be wrong: all whose NaN or Inf nobody confirmed.
func (c *call) blame(t *task, now time.Time) {
	for _, s := range t.suspects {
		if s.answer.Peer != "" && t.attempts[s.item.attempt].Err != nil {
			c.d.table.Blame(s.answer.Expert, s.answer.Peer, now)
		}
	}
}

// sameBits tells whether two outputs are equal bit for bit.
func sameBits(a, b *tensor.Dense) bool {
	return slices.EqualFunc(a.Float32s(), b.Float32s(), func(x, y float32) bool {
		return math.Float32bits(x) == math.Float32bits(y)
	})
}
