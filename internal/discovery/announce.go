package discovery

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

const (
	// announceEvery is the time between two rounds, so that a record survives two that fail.
	announceEvery = 10 * time.Minute
	// jitter spreads the rounds of nodes that started together: each waits between 0.9 and 1.1 times announceEvery.
	jitter = 0.1
	// retryAfter is how soon experts are announced again that nobody acknowledged; doubled up to announceEvery.
	retryAfter = 5 * time.Second
	// tick is how often a node looks at what tells it nothing by itself: the size of the routing table, reachability.
	tick = time.Second
)

// Hosted tells which experts this node hosts. Safe for concurrent use.
type Hosted interface {
	// Ready returns the experts that have passed their canary and take calls, and a channel that is closed when that changes:
	// ask again then. The caller keeps the slice.
	Ready() (ids []expert.ID, changed <-chan struct{})
}

// announcer is what is known of this node's announcements.
type announcer struct {
	withdraw  func()        // closes withdrawn; twice is fine
	withdrawn chan struct{} // closed by Withdraw

	mu     sync.Mutex
	rounds int
	tried  map[expert.ID]bool      // ready experts that a round ran with, whatever came of it
	valid  map[expert.ID]time.Time // when a peer last acknowledged the expert
	err    error                   // of the last round
}

func newAnnouncer() *announcer {
	a := &announcer{withdrawn: make(chan struct{}), tried: map[expert.ID]bool{}, valid: map[expert.ID]time.Time{}}
	a.withdraw = sync.OnceFunc(func() { close(a.withdrawn) })
	return a
}

// Withdraw stops announcing for good; a round under way is cut short. Records that others keep run out within 30 minutes, so that
// whoever drains has to tell his callers too. Twice is fine.
func (s *Service) Withdraw() { s.announcer.withdraw() }

// announce keeps the ready experts announced until ctx ends or Withdraw: new ones at once, all of them every ten minutes, and
// whenever the swarm has grown so much that others than those who were told are nearest to the keys.
func (s *Service) announce(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-s.announcer.withdrawn:
			cancel()
		case <-ctx.Done():
		}
	})
	if !s.waitJoined(ctx) { // a round without anybody to tell would have to be repeated at once
		return
	}
	clock := time.NewTicker(tick)
	defer clock.Stop()
	plan := schedule{pause: retryAfter}
	for {
		ids, changed := s.hosted.Ready()
		s.announcer.forget(ids)
		for again := false; !again; {
			now := time.Now()
			due := ids
			full := plan.full(now, s.tableSize())
			if !full {
				due = s.announcer.missing(ids, plan.retryDue(now))
			}
			if full || len(due) > 0 {
				failed := s.round(ctx, due)
				plan.ran(time.Now(), full, failed, rand.Float64())
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
				again = true
			case <-clock.C:
			}
		}
	}
}

// schedule decides when to announce. It knows no clock and no dice but those it is handed.
type schedule struct {
	next  time.Time     // of the next full round; zero: at once
	retry time.Time     // when those that failed are tried again; zero: none failed
	pause time.Duration // between this retry and the one after
	told  int           // peers in the routing table at the last full round, or fewer if some have left since
}

// full tells whether all experts are to be announced now: when it is time, or when the routing table has more than doubled. A
// swarm that grows to 10,000 passes 13 doublings.
func (p *schedule) full(now time.Time, table int) bool {
	p.told = min(p.told, table)
	full := !now.Before(p.next) || table > 2*p.told
	if full {
		p.told = table
	}
	return full
}

func (p *schedule) retryDue(now time.Time) bool { return !p.retry.IsZero() && !now.Before(p.retry) }

// ran notes a round that ended at now; dice is in [0, 1).
func (p *schedule) ran(now time.Time, full, failed bool, dice float64) {
	spread := func(d time.Duration) time.Duration { return d + time.Duration(float64(d)*jitter*(2*dice-1)) }
	if full {
		p.next = now.Add(spread(announceEvery))
	}
	if !failed {
		p.retry, p.pause = time.Time{}, retryAfter
		return
	}
	p.retry = now.Add(spread(p.pause))
	p.pause = min(2*p.pause, announceEvery)
}

// round announces experts, and tells whether some of them were acknowledged by nobody.
func (s *Service) round(ctx context.Context, ids []expert.ID) (failed bool) {
	start := time.Now()
	done, err := s.sweep(ctx, ids)
	if ctx.Err() != nil {
		return true
	}
	announced := s.announcer.note(ids, done, err, time.Now())
	took := time.Since(start)
	s.metrics.round(took, announced)
	switch {
	case err != nil:
		s.log.Warn().Err(err).Int("experts", len(ids)).Int("acknowledged", len(done)).Dur("took", took).Msg("announcing failed in part")
	case len(ids) > 0:
		s.log.Info().Int("experts", len(ids)).Dur("took", took).Msg("experts announced")
	}
	return len(done) < len(ids)
}

// note takes a round's outcome in and returns how many experts are announced now.
func (a *announcer) note(ids []expert.ID, done map[expert.ID]bool, err error, now time.Time) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rounds++
	a.err = err
	for _, id := range ids {
		a.tried[id] = true
		if done[id] {
			a.valid[id] = now
		}
	}
	return a.count(now)
}

// missing lists those of ids that no round ran with yet, and with failed also those that were never acknowledged.
func (a *announcer) missing(ids []expert.ID, failed bool) []expert.ID {
	a.mu.Lock()
	defer a.mu.Unlock()
	var due []expert.ID
	for _, id := range ids {
		_, ok := a.valid[id]
		if !a.tried[id] || failed && !ok {
			due = append(due, id)
		}
	}
	return due
}

// forget drops all but ids.
func (a *announcer) forget(ids []expert.ID) {
	ready := make(map[expert.ID]bool, len(ids))
	for _, id := range ids {
		ready[id] = true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.tried {
		if !ready[id] {
			delete(a.tried, id)
			delete(a.valid, id)
		}
	}
}

// count is called with mu held.
func (a *announcer) count(now time.Time) int {
	n := 0
	for _, t := range a.valid {
		if now.Sub(t) < recordValidity {
			n++
		}
	}
	return n
}
