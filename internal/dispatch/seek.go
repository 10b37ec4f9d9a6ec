package dispatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// hunt is how the search for somebody to ask goes, when all that were known cannot be asked.
type hunt struct {
	looked    bool          // the Finder was asked
	desperate bool          // nothing else is left: hosts that fail may be asked before their time
	renewed   bool          // once nobody new is left, those who failed may be asked again
	walks     int           // complete walks since nobody was left
	since     time.Time     // when nobody was left; zero: that was not so yet
	err       error         // of the last look-up
	absence   time.Duration // how long nobody was found
}

const (
	// huntFor: an expert that was announced a moment ago is found by the next walk or the one after; who is gone is not back within.
	huntFor = time.Second
	// firstPause, lastPause: between two walks.
	firstPause, lastPause = 20 * time.Millisecond, 200 * time.Millisecond
	// findFor: beside hosts that hang, a first look-up that finds nobody takes several seconds, and no fallback waits for that: hosts that
	// are there are found within a round trip or three.
	findFor = time.Second
	// absenceLife: an expert that nobody hosted a moment ago is not looked for on every call, where fallbacks stand in, nor one that nobody
	// answered for, where it may be left out.
	absenceLife = 10 * time.Second
	// gather: look-ups that end together share exchanges. It is short beside a look-up, and long beside planning.
	gather = 2 * time.Millisecond
)

// seekAll looks for somebody to ask for each of the tasks, all at once. Those found within a moment are returned or go on together;
// it returns the last of them. The caller holds a hand on each task, and holds one on those returned.
func (c *call) seekAll(stuck []int) (todo []int) {
	if len(stuck) == 1 {
		if c.seek(stuck[0]) {
			return stuck
		}
		return nil
	}
	found := make(chan int, len(stuck)) // so that nobody waits to tell
	for _, i := range stuck {
		c.others.Go(func() {
			if !c.seek(i) {
				i = -1
			}
			found <- i
		})
	}
	moment := time.NewTimer(gather)
	defer moment.Stop()
	for left := len(stuck); left > 0; {
		select {
		case i := <-found:
			left--
			if i < 0 {
				continue
			}
			if len(todo) == 0 {
				moment.Reset(gather)
			}
			todo = append(todo, i)
		case <-moment.C:
			if len(todo) > 0 {
				together := todo
				todo = nil
				c.others.Go(func() { c.advance(together) })
			}
		}
	}
	return todo
}

// seek looks for somebody to ask for a task. True: it is to be planned again. False: it is decided, or others have it; the hand on it
// is let go. In this order: whom the Finder knows; the fallbacks; hosts that are full, once they have room; whom a new walk finds;
// those that failed, once more.
func (c *call) seek(i int) bool {
	defer c.tell()
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &c.tasks[i]
	for {
		now := time.Now()
		exhausted := t.asking.begun > c.d.cfg.MaxRetries
		over := c.over(now)
		switch {
		case t.decided:
			t.hands--
			return false
		case over != nil:
			c.noteVain(t, over, now)
			if soonest := t.asking.none.Soonest; soonest > 0 { // it waited for room
				over = fmt.Errorf("%w: %w", over, &expert.OverloadedError{RetryAfter: soonest})
			}
			return c.giveUp(i, over)
		case t.refused != nil:
			return c.giveUp(i, t.refused)
		case !exhausted && t.asking.none.Known == 0 && !t.hunt.looked && !c.vain(t, now):
			t.hunt.looked = true
			if c.findFirst(t, now) {
				return true
			}
		case c.fallBack(t, now):
			return true
		case c.vain(t, now):
			return c.giveUp(i, c.reason(t))
		default:
			more, reason := c.lastChance(i, now)
			if reason != nil {
				return c.giveUp(i, reason)
			}
			if more {
				return true
			}
		}
	}
}

// vain tells whether nobody is to be looked for: the pair is optional, and a call for its expert ended in vain a moment ago.
func (c *call) vain(t *task, now time.Time) bool {
	if !c.req.Optional || t.asking.none.Soonest > 0 { // who is full has room soon
		return false
	}
	age, unanswered := c.d.table.UnansweredSince(t.pair.Expert, now)
	return unanswered && age < absenceLife
}

// hopeful counts the hands on a task from which an answer may come. Where it may be left out, a host that missed a ping is not waited for: it may
// be gone without a word, and each call would take all of its time.
func (c *call) hopeful(i int) int {
	n := c.tasks[i].hands
	if c.req.Optional {
		for _, ex := range c.live {
			if ex.watch.missed && ex.carries(i) {
				n--
			}
		}
	}
	return n
}

// noteVain notes, when a call's time is over, that nobody answered for a task though others than those known were being looked for.
func (c *call) noteVain(t *task, over error, now time.Time) {
	if !t.hunt.since.IsZero() && t.asking.none.Soonest == 0 && errors.Is(over, expert.ErrDeadlineExceeded) {
		c.d.table.Unanswered(t.pair.Expert, now)
	}
}

// giveUp lets the hand on a task go; it fails for the reason unless others still wait for an answer. It returns false.
func (c *call) giveUp(i int, reason error) bool {
	t := &c.tasks[i]
	t.hands--
	if c.hopeful(i) == 0 {
		c.fail(i, reason)
		c.blame(t, time.Now())
	}
	return false
}

// unlocked runs f, which may block, without the lock and with a context that ends when the call needs no search any more.
func (c *call) unlocked(f func(ctx context.Context)) {
	if c.stop == nil {
		c.search, c.stop = context.WithDeadline(c.ctx, c.deadline)
	}
	search := c.search
	c.mu.Unlock()
	defer c.mu.Lock()
	f(search)
}

// findFirst asks the Finder, and tells whether it knew anybody.
func (c *call) findFirst(t *task, now time.Time) bool {
	id, patience := t.asking.id, c.deadline.Sub(now)
	if len(c.fallbacks(t)) > 0 {
		if age, absent := c.d.table.AbsentSince(id, now); absent && age < absenceLife {
			return false
		}
		patience = min(patience, findFor)
	}
	var found int
	var err error
	c.unlocked(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		found, err = c.d.find(ctx, id)
	})
	t.hunt.err = err
	if err == nil && found == 0 && id == t.pair.Expert {
		t.hunt.walks++
		t.hunt.since = now
	}
	return found > 0
}

// fallbacks returns the experts that are still to be asked in the task's place. None stands in for pinned weights.
func (c *call) fallbacks(t *task) []expert.ID {
	if !t.listed {
		t.listed = true
		if t.pair.Digest.IsZero() {
			t.fallbacks = c.d.table.Fallbacks(t.pair.Expert, c.hidden)
		}
	}
	return t.fallbacks
}

// fallBack turns to the next fallback; false when there is none. Whether the expert itself can be found again is looked into behind it.
func (c *call) fallBack(t *task, now time.Time) bool {
	for len(c.fallbacks(t)) > 0 {
		id := t.fallbacks[0]
		t.fallbacks = t.fallbacks[1:]
		if t.asking.id == t.pair.Expert {
			t.first = t.asking
			if age, absent := c.d.table.AbsentSince(t.pair.Expert, now); !absent || age >= absenceLife {
				c.d.startWalk(t.pair.Expert)
			}
		}
		var next asked
		var err error
		c.unlocked(func(context.Context) { next, err = c.ask(id, expert.Digest{}) })
		if err != nil {
			continue // it takes rows of another width
		}
		t.asking = next
		t.hunt.looked = false
		return true
	}
	return false
}

// lastChance is for a task with nobody left to ask and no fallbacks left: it returns to the expert itself, and waits or walks. more:
// there may be somebody now. reason: it is to be given up. Hosts that missed a ping or failed
// are asked before their time first.
func (c *call) lastChance(i int, now time.Time) (more bool, reason error) {
	t := &c.tasks[i]
	if t.asking.id != t.pair.Expert {
		t.asking = t.first
		t.hunt.looked = true
	}
	if !t.hunt.desperate {
		t.hunt.desperate = true
		return true, nil
	}
	if t.hunt.since.IsZero() {
		t.hunt.since = now
	}
	a := &t.asking
	t.hunt.absence = now.Sub(t.hunt.since)
	switch {
	case a.begun > c.d.cfg.MaxRetries:
		return false, fmt.Errorf("%w after %d attempts: %w", expert.ErrRetriesExhausted, a.begun, c.reason(t))
	case a.none.Soonest > 0 && t.hunt.walks > 0:
		if now.Add(a.none.Soonest).After(c.deadline) {
			return false, &expert.OverloadedError{RetryAfter: a.none.Soonest}
		}
		// A little apart, or all that were refused together come again together.
		c.pause(a.none.Soonest + a.none.Soonest*time.Duration(c.d.dice.IntN(256))/1024)
		return true, nil
	case t.hunt.absence >= huntFor && c.hopeful(i) > 1:
		// Hosts that were asked are silent: until one of them answers, others may come back.
		c.pause(lastPause)
		t.hunt.renewed = true
		return true, nil
	case t.hunt.absence >= huntFor, t.hunt.walks > 0 && c.settled(t):
		c.d.table.Unanswered(t.pair.Expert, now)
		return false, c.reason(t)
	}
	if t.hunt.walks > 0 {
		c.pause(min(firstPause<<min(t.hunt.walks-1, 8), lastPause))
	}
	var err error
	id, patience := a.id, c.deadline.Sub(now)
	if a.none.Soonest > 0 {
		patience = min(patience, a.none.Soonest) // then those that are full have room
	}
	if c.req.Optional {
		patience = min(patience, huntFor-t.hunt.absence) // beside a frozen peer a walk takes several seconds
	}
	c.unlocked(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_, err = c.d.walk(ctx, id)
	})
	t.hunt.walks++
	t.hunt.err = err
	t.hunt.renewed = true
	return true, nil
}

// forgive lets hosts that failed be asked again, as far as their breakers let them: not those that are still at it, not those whose answer
// is doubted, and not those that cannot do it.
func (c *call) forgive(i int) {
	t := &c.tasks[i]
	t.asking.tried = append(t.asking.tried[:0], t.asking.unable...)
	for _, s := range t.suspects {
		t.asking.tried = append(t.asking.tried, s.answer.Peer)
	}
	for _, ex := range c.live {
		if ex.carries(i) {
			t.asking.tried = append(t.asking.tried, ex.peer)
		}
	}
}

// settled tells whether another walk would change nothing: there are hosts, and they said what they have to say.
func (c *call) settled(t *task) bool {
	none := &t.asking.none
	return len(t.suspects) > 0 || none.Known == 0 && t.asking.cannot || none.Known > 0 && none.Other+len(t.asking.unable) >= none.Known
}

// pause waits without the lock, or until nobody needs the search any more.
func (c *call) pause(d time.Duration) {
	c.unlocked(func(ctx context.Context) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	})
}

// reason says why nobody answered for the expert of the task.
func (c *call) reason(t *task) error {
	a := &t.asking
	switch {
	case a.none.Known > 0 && a.none.Other == a.none.Known:
		return fmt.Errorf("%w: %d hosts of %s are known, all with other weights than %v", expert.ErrDigestMismatch, a.none.Known, a.id, a.digest)
	case a.last != nil && !errors.Is(a.last, expert.ErrNotFound):
		return a.last
	case a.none.Known == 0 && !a.other.IsZero():
		return fmt.Errorf("%w: this node hosts %s with the weights %v, and nobody else is found", expert.ErrDigestMismatch, a.id, a.other)
	case a.none.Known > 0 && a.last == nil:
		none := a.none
		return fmt.Errorf("%w: %w", expert.ErrNotReady, &none)
	case a.none.Known == 0 && a.unready != nil:
		return a.unready
	case t.hunt.err != nil:
		return fmt.Errorf("%w: this node does not host it, no host is configured, and the look-up in the DHT failed: %w",
			expert.ErrNotFound, t.hunt.err)
	case t.hunt.walks == 0:
		return fmt.Errorf("%w: this node does not host it, no host is configured, and nobody was found a moment ago", expert.ErrNotFound)
	default:
		return fmt.Errorf("%w: this node does not host it, no host is configured, and %d walks of the DHT within %v found nobody",
			expert.ErrNotFound, t.hunt.walks, t.hunt.absence.Round(time.Millisecond))
	}
}
