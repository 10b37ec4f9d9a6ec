package registry

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Dice draws a number from 0 to n-1. *rand.Rand of math/rand/v2 is one. It is used under the table's lock, one draw at a time.
type Dice interface{ IntN(n int) int }

// Query says what is to be computed.
type Query struct {
	Expert expert.ID
	Rows   int
	Digest expert.Digest // the weights that are meant; zero: those that unpinned calls use
	Tried  []peer.ID     // left out
	Shared []peer.ID     // peers that get other rows of the same batch: preferred, unless they are busier

	// Desperate: nothing else is left to be done for the call. Then peers that missed a ping are asked, for they may merely be slow,
	// and those whose breaker is open are probed before their rest is over.
	Desperate bool
}

// Pick is a provider that was chosen. Its rows count as under way until it is reported.
type Pick struct {
	Expert expert.ID
	Peer   peer.ID
	Text   string        // Peer in base58
	Digest expert.Digest // to ask for; zero: any
	Stale  bool          // the expert was not looked up lately: others may host it by now
	Ping   peer.ID       // a provider to be pinged, by Ponged or PingMissed: it is in doubt, or its line not well known; empty: none

	// Meet are providers without connection, to be reached behind the call, by Connected or Unreached; the empty ones are none.
	Meet [meetAtOnce]peer.ID

	entry      *entry
	host       *host
	stats      *stats
	at         tick
	rows       int32
	work       float32 // rows to be computed until the answer, these included
	probePeer  bool    // it holds the probe of the peer's breaker
	probeStats bool    // it holds the probe of the breaker of this expert at the peer
}

// NoneError says why nobody could be picked. It counts the providers known, and why each was left out.
type NoneError struct {
	Expert  expert.ID
	Known   int           // providers known
	Tried   int           // tried by this call
	Other   int           // with other weights under the same name
	Open    int           // breaker open, shut out, draining, gone
	Resting int           // full, or not ready
	Soonest time.Duration // until the first that rests for being full may be asked again; 0: none rests for that
}

// ErrNone: no provider can be asked now. See NoneError for the reasons.
var ErrNone = errors.New("no provider to ask")

func (e *NoneError) Error() string {
	if e.Known == 0 {
		return fmt.Sprintf("no provider of %s is known", e.Expert)
	}
	var parts []string
	for _, c := range []struct {
		n    int
		what string
	}{
		{e.Tried, "tried"}, {e.Other, "with other weights"}, {e.Open, "out of reach or failing"}, {e.Resting, "full or not ready"},
	} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	return fmt.Sprintf("of %d providers of %s none is left: %s", e.Known, e.Expert, strings.Join(parts, ", "))
}

// Unwrap makes errors.Is(err, ErrNone) hold.
func (e *NoneError) Unwrap() error { return ErrNone }

const (
	// slowStart: a peer that was gone may have cold caches, and all callers find it idle at once. Its share grows from leastShare
	// to a full one. For one that dies again and again it takes twice as long each time, up to slowStartMost.
	slowStart, slowStartMost = 2 * time.Second, time.Minute
	leastShare               = 0.1
	// alike: waits that differ by less are the same as far as anybody can tell; or the one that seems a trifle better would get all
	// there is.
	alike = 0.85
	// frameCost: a frame of its own costs the caller and the host about so much, in seconds; rows that can share one may wait as long.
	frameCost = 200e-6
	// lineLife: a line that was slow when it was measured may not be any more. A ping costs about as much as a call; the next one, should
	// it have been an accident, comes as soon.
	lineLife = 15 * time.Second
	// cutsToDoubt: one call that was cut off may have been slow; of a host that says nothing to two in a row a ping tells whether it is
	// still there, before the calls that it is given meanwhile use up the hedges.
	cutsToDoubt = 2
	// doubtRest is how soon a host in doubt is to be pinged again: the time that a ping is given.
	doubtRest = 50 * time.Millisecond
	// meetAtOnce: a record outlives its host by up to half an hour, so where hosts come and go many of those known are gone. Who would be
	// the next to be asked is dialled while the first is.
	meetAtOnce = 2
	// meetAgain is how soon a peer is dialled again behind calls.
	meetAgain = time.Second
	// lastResortRest: when nobody else is left, a peer without connection is dialled again, one that fails is probed, and one that did not have
	// the expert is asked whether it has it by now, but not on every call.
	lastResortRest = 250 * time.Millisecond
	// diceFaces: shares are drawn to a thousandth.
	diceFaces = 1000
)

// reason says why a provider is left out.
type reason uint8

const (
	pickable reason = iota
	tried
	other
	open
	resting // the host is full
	unready // it does not have the expert ready
	expired
)

// why tells whether a provider can be picked.
func (p *provider) why(q *Query, digest expert.Digest, now tick) reason {
	h, s := p.host, p.current()
	switch {
	case p.expired(now):
		return expired
	case slices.Contains(q.Tried, h.id):
		return tried
	case h.shut > now, h.draining:
		return open
	case p.other(digest, now):
		return other
	case !h.breaker.allows(now) && !(q.Desperate && h.suspect), s != nil && !s.breaker.allows(now):
		return open
	case h.rest > now:
		return resting
	case s != nil && s.until() > now:
		return unready
	default:
		return pickable
	}
}

func (p *provider) expired(now tick) bool {
	heard := p.seen
	if p.stats != nil {
		heard = max(heard, p.stats.at)
	}
	return p.source != Static && now-heard > tick(providerLife)
}

// Pick chooses who is to compute the rows: of two providers drawn at random, the one with the smaller expected wait. The first is drawn
// the more often the quicker it is when it is idle, or two slow ones would be drawn as often as two quick ones. Those without connection
// are drawn only where there is none with one; they are to be met behind the call. Exactly one Report must follow. The error is
// a *NoneError.
func (t *Table) Pick(q Query, now time.Time, dice Dice) (Pick, error) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.experts[q.Expert]
	if e == nil {
		return Pick{}, &NoneError{Expert: q.Expert}
	}
	t.touch(q.Expert)
	digest := q.Digest
	if digest.IsZero() {
		digest = e.elect(at)
	}
	t.dropExpired(e, at)

	// Those who can be picked, the first list that is not empty is drawn from: the connected, those held back by their slow
	// start, the strangers, who have to be dialled, the doubted.
	var buffer [64]*provider
	good, back, strangers, doubted := buffer[:0:16], buffer[16:16:32], buffer[32:32:48], buffer[48:48]
	none := NoneError{Expert: q.Expert, Known: len(e.providers)}
	var ping peer.ID
	for i := range e.providers {
		p := &e.providers[i]
		switch p.why(&q, digest, at) {
		case pickable:
			switch {
			case p.host.doubted():
				doubted = append(doubted, p)
				if at-p.host.pingAt >= tick(doubtRest) {
					ping = p.host.id
				}
			case p.host.stranger():
				strangers = append(strangers, p)
			case p.host.heldBack(at, dice):
				back = append(back, p)
			default:
				good = append(good, p)
			}
		case tried:
			none.Tried++
		case other:
			none.Other++
		case open:
			none.Open++
		case resting:
			none.Resting++
			if left := time.Duration(p.host.rest - at); none.Soonest == 0 || left < none.Soonest {
				none.Soonest = left
			}
		case unready:
			none.Resting++
		case expired: // dropped above
		}
	}
	for _, next := range [][]*provider{back, strangers, doubted} {
		if len(good) == 0 {
			good = next
		}
	}
	for i := 0; i < len(e.providers) && len(good) == 0; i++ {
		if p := &e.providers[i]; p.lastResort(&q, digest, at) {
			good = append(good, p)
		}
	}
	if len(good) == 0 {
		err := none // only this copy is put on the heap
		return Pick{}, &err
	}
	best, other := choose(good, &q, at, dice)
	if ping == "" && other != nil && other.host.outdated(at) {
		ping = other.host.id
	}
	k := t.begin(e, best, digest, q.Rows, at)
	if ping != "" {
		t.hosts[ping].pingAt = at
		k.Ping = ping
	}
	k.meet(strangers, at)
	return k, nil
}

// meet names strangers that are to be reached behind the call.
func (k *Pick) meet(strangers []*provider, now tick) {
	n := 0
	for _, p := range strangers {
		if h := p.host; n < meetAtOnce && h != k.host && (h.pingAt == 0 || now-h.pingAt >= tick(meetAgain)) {
			h.pingAt = now
			k.Meet[n] = h.id
			n++
		}
	}
}

// heldBack tells whether a peer that came back lately sits this draw out.
func (h *host) heldBack(now tick, dice Dice) bool {
	if h.returned == 0 {
		return false
	}
	share := float64(now-h.returned) / float64(h.slowFor)
	if share >= 1 {
		h.returned = 0
		return false
	}
	return float64(dice.IntN(diceFaces)) >= diceFaces*max(share, leastShare)
}

// lastResort tells whether a provider that cannot be picked may be tried when nobody else is left: one that only lacks a connection,
// since a dial costs less than giving up; for the desperate one that fails, by one call at a time, and one that did not have the expert.
func (p *provider) lastResort(q *Query, digest expert.Digest, now tick) bool {
	h, s := p.host, p.stats
	switch p.why(q, digest, now) {
	case unready:
		return q.Desperate && now-s.lacks >= tick(lastResortRest)
	case open:
		if h.shut > now || h.draining || h.rest > now || s != nil && s.until() > now {
			return false
		}
	default:
		return false
	}
	peerWell := h.breaker.allows(now)
	if !peerWell && h.verdict == Dead {
		peerWell = !h.breaker.probing && (h.undialed == 0 || now-h.undialed >= tick(lastResortRest))
	} else if !peerWell {
		peerWell = q.Desperate && h.breaker.early(now)
	}
	return peerWell && (s == nil || s.breaker.allows(now) || q.Desperate && s.breaker.early(now))
}

// choose draws two and takes the better one; see better. other is the one that was not taken; nil where there is but one.
func choose(good []*provider, q *Query, now tick, dice Dice) (best, other *provider) {
	best = good[0]
	if len(good) > 1 {
		i, j := draw(good, q.Rows, now, dice), dice.IntN(len(good)-1)
		if j >= i {
			j++
		}
		other = good[i]
		if best = better(other, good[j], q.Rows, now); best == other {
			other = good[j]
		}
		if s := other.stats; s != nil && s.lost < math.MaxUint16 {
			s.lost++
		}
	}
	if len(q.Shared) == 0 || slices.Contains(q.Shared, best.host.id) {
		return best, other
	}
	for _, p := range good {
		if slices.Contains(q.Shared, p.host.id) && p.wait(best, q.Rows, now) <= best.wait(p, q.Rows, now)+frameCost {
			return p, other
		}
	}
	return best, other
}

// draw returns the place of one of the providers, each with a probability in proportion to how many such calls it could answer one after the
// other. Those of which nothing is known are taken to be like the first one that was asked already.
func draw(good []*provider, rows int, now tick, dice Dice) int {
	if len(good) == 2 {
		return dice.IntN(2) // both are compared anyway
	}
	known := good[max(0, slices.IndexFunc(good, func(p *provider) bool { return p.stats != nil && p.stats.learned != 0 }))]
	var buffer [16]float64
	upTo := buffer[:0]
	var sum float64
	for _, p := range good {
		sum += 1 / p.behind(known, float64(rows), now)
		upTo = append(upTo, sum)
	}
	face := (float64(dice.IntN(diceFaces)) + 0.5) / diceFaces * sum
	i, _ := slices.BinarySearch(upTo, face)
	return min(i, len(good)-1)
}

// stranger tells whether the host has to be dialled, as far as anybody knows.
func (h *host) stranger() bool { return !h.connected && h.verdict != Alive }

// doubted tells whether the host may be gone: it left several calls in a row without an answer.
func (h *host) doubted() bool { return h.connected && h.cuts >= cutsToDoubt }

// outdated tells whether the host's line is to be measured, there being a connection to do it by: what was learned of it is old, or comes
// from calls alone, the first of which are often slow.
func (h *host) outdated(now tick) bool {
	return h.connected && h.rttAt != 0 && (h.pingAt == 0 || now-max(h.rttAt, h.pingAt) >= tick(lineLife))
}

// better returns the one with the smaller expected wait; of two that are alike the one with fewer rows of ours under way, then the
// first.
func better(a, b *provider, rows int, now tick) *provider {
	waitA, waitB := a.wait(b, rows, now), b.wait(a, rows, now)
	switch {
	case waitB < alike*waitA:
		return b
	case waitA < alike*waitB:
		return a
	case b.host.inflightRows < a.host.inflightRows:
		return b
	default:
		return a
	}
}

// begin counts the rows as under way.
func (t *Table) begin(e *entry, p *provider, digest expert.Digest, rows int, now tick) Pick {
	h, s := p.host, p.made()
	k := Pick{
		Expert: e.id, Peer: h.id, Text: h.text, Digest: digest,
		entry: e, host: h, stats: s, at: now, rows: int32(rows), work: float32(h.ahead(now)) + float32(rows),
		Stale:      e.looked == 0 || now-e.looked >= tick(lookEvery),
		probeStats: s.breaker.begin(),
	}
	if !h.suspect || h.breaker.allows(now) {
		k.probePeer = h.breaker.begin()
	}
	h.inflight++
	s.inflight++
	h.inflightRows += k.rows
	s.inflightRows += k.rows
	return k
}

// made returns the stats of the expert at the host, made if need be.
func (p *provider) made() *stats {
	if p.stats == nil {
		p.stats = &stats{life: p.host.life}
	}
	return p.stats
}

func (t *Table) dropExpired(e *entry, now tick) {
	for i := len(e.providers) - 1; i >= 0; i-- {
		if p := &e.providers[i]; p.expired(now) && (p.stats == nil || p.stats.inflight == 0) {
			t.removeAt(e, i)
		}
	}
}
