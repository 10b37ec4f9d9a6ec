package registry

import (
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Kind is what became of a call to a provider.
type Kind uint8

// The kinds. What each does to whom stands at Report.
const (
	Answered    Kind = iota // a good answer
	Suspect                 // an answer that somebody else has to confirm; see Blame
	Overloaded              // the host is full, and well
	NotReady                // the expert is loading, draining or failed there
	NotFound                // the host does not have the expert
	Mismatch                // the host has other weights
	Refused                 // the host will not do this request: too large, codec, numerics, invalid argument
	Failed                  // the expert failed there, or answered what cannot be an answer
	TimedOut                // no answer in its share of the time
	Broken                  // the stream or its connection broke
	Unreachable             // no connection could be made
	Garbled                 // what came is no frame of the protocol
	Cancelled               // nobody waits for the answer any more
)

// Outcome says how a call to a provider went.
type Outcome struct {
	Kind       Kind
	Took       time.Duration
	Load       expert.Load   // with a reply; zero otherwise
	RetryAfter time.Duration // with Overloaded
	Digest     expert.Digest // of the weights that the host has; zero: it did not say
	Hidden     int           // with Answered: width of a row
}

const (
	// smoothing: the last ten answers make 90% of an estimate.
	smoothing = 0.2
	// towardsLow, towardsHigh: the round trip is what remains of a call when nothing waits, so low samples count and high ones hardly.
	towardsLow, towardsHigh = 0.5, 0.02
	// oftenExpected: twice what was expected moves an estimate by a fifth, which is enough to prefer another, and soon forgotten.
	oftenExpected = 2
	// leastRTT keeps a smoothed round trip from reading as unknown.
	leastRTT = 1e-6
	// unreadyRest: experts load in seconds; asking once a second costs little.
	unreadyRest = time.Second
	// absentRest: a record in the DHT outlives what it says by up to half an hour, and a host that starts again says at first that it
	// has nothing.
	absentRest = 10 * time.Second
	// leastRetryAfter, mostRetryAfter bound what a full host may ask for: it can't keep callers spinning, nor away for good.
	leastRetryAfter, mostRetryAfter = time.Millisecond, 10 * time.Second
	// shutFirst, shutMost: bytes that are no frames come from other software; one try now and then finds out when it was mended.
	shutFirst, shutMost = 10 * time.Second, time.Hour
)

// Report says how a pick went, exactly once for each Pick.
//
// An answer is success to the peer and to the expert there; Failed and TimedOut are failures of the expert there; Broken is one of the
// peer; Unreachable makes the peer dead; Garbled shuts it out. The others are nobody's failure: a full host rests for as long as it
// asks, one that lacks the expert is not asked for it for a while.
func (t *Table) Report(k Pick, o Outcome, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	h, s := k.host, k.stats
	h.inflight--
	s.inflight--
	h.inflightRows -= k.rows
	s.inflightRows -= k.rows
	h.learnLoad(o.Load, at)
	k.entry.learnDigest(h, o.Digest, at)
	if o.Kind.reply() {
		h.well(k.probePeer, at)
	}

	switch o.Kind {
	case Answered:
		k.entry.unanswered = 0
		t.answered(&k, &o, at)
	case Overloaded:
		h.rest = max(h.rest, at+tick(min(max(o.RetryAfter, leastRetryAfter), mostRetryAfter)))
	case NotReady:
		s.lacks, s.absent = at, false
	case NotFound:
		s.lacks, s.absent = at, true
	case Mismatch:
		s.wrong, s.wrongUntil = short(k.Digest), at+tick(digestLife)
		if p := k.entry.find(h); p != nil && p.digest == k.Digest {
			p.digest = expert.Digest{} // it had these weights once
		}
	case Failed, TimedOut:
		if s.breaker.fail(k.at, at, k.probeStats) {
			s.health.add(false, at)
			h.health.add(false, at)
		}
		k.probeStats = false
		if o.Kind == TimedOut && k.cut(o.Took, at) {
			h.cuts = min(h.cuts+1, cutsToDoubt)
		}
	case Broken:
		h.fail(k.at, at, k.probePeer)
		k.probePeer = false
	case Unreachable:
		h.breaker.probing = h.breaker.probing && !k.probePeer
		h.unreached(at)
		k.probePeer = false
	case Garbled:
		h.shutOut(shutFirst, shutMost, at)
	case Cancelled:
		if k.cut(o.Took, at) {
			h.cuts = min(h.cuts+1, cutsToDoubt)
		}
	case Suspect, Refused: // nothing is known yet; nothing is wrong with the host
	}
	h.breaker.release(k.probePeer)
	s.breaker.release(k.probeStats)
	t.forgetIdle(h)
}

// reply tells whether the peer answered something that makes sense, so that it is alive and its way is good.
func (k Kind) reply() bool {
	switch k {
	case Answered, Suspect, Overloaded, NotReady, NotFound, Mismatch, Refused, Failed:
		return true
	default:
		return false
	}
}

// well notes that the peer answered. A peer that was thought gone starts slowly.
func (h *host) well(probe bool, now tick) {
	// What missed a ping and answers all the same is back. An answer of one whose connection is gone may have been on its way.
	if probe || !h.breaker.open || h.suspect && h.verdict != Dead {
		if h.breaker.ok() {
			h.revive(now)
		}
	}
	h.suspect, h.cuts, h.heard, h.verdict = false, 0, now, Alive
}

// revive begins another life of a peer: what went wrong in the last one is explained by its end. It starts slowly, the more so the
// more often it died lately.
func (h *host) revive(now tick) {
	h.life++
	h.health = health{}
	h.returned = now
	h.slowFor = min(slowStart<<max(0, min(int(h.deaths), 6)-1), slowStartMost)
}

// die counts the ends of a peer's lives.
func (h *host) die(now tick) {
	if now-h.diedAt > tick(restMemory) {
		h.deaths = 0
	}
	h.deaths = min(h.deaths+1, 100)
	h.diedAt = now
}

// current returns the stats of the expert at the host, without what went wrong in an earlier life; nil where there are none.
func (p *provider) current() *stats {
	if s := p.stats; s != nil && s.life != p.host.life {
		probing := s.breaker.probing
		s.life, s.health, s.lacks, s.breaker = p.host.life, health{}, 0, breaker{open: probing, probing: probing}
	}
	return p.stats
}

// until is when a host that did not have the expert ready is to be asked again; 0: it had it.
func (s *stats) until() tick {
	switch {
	case s.lacks == 0:
		return 0
	case s.absent:
		return s.lacks + tick(absentRest)
	default:
		return s.lacks + tick(unreadyRest)
	}
}

// fail counts a failure of the peer itself.
func (h *host) fail(picked, now tick, probe bool) {
	if h.breaker.fail(picked, now, probe) {
		h.health.add(false, now)
	}
}

// gone takes the peer out of the choice until its connection is back or a probe goes well.
func (h *host) gone(now tick) {
	if !h.breaker.open {
		h.die(now)
	}
	h.verdict = Dead
	h.breaker.trip(now)
	h.breaker.failedAt = now
	h.others = 0
}

// shutOut leaves the peer out for a while that doubles each time. What lies as long back as the longest while is forgotten.
func (h *host) shutOut(first, most time.Duration, now tick) {
	if h.struckAt != 0 && now-h.struckAt > 2*tick(most) {
		h.strikes = 0
	}
	rest := first
	for range h.strikes {
		rest = min(2*rest, most)
		if rest == most {
			break
		}
	}
	h.shut = max(h.shut, now+tick(rest))
	h.strikes++
	h.struckAt = now
	h.health.add(false, now)
}

func (h *host) learnLoad(l expert.Load, now tick) {
	if l == (expert.Load{}) {
		return
	}
	// What of the queue is ours is counted exactly, by inflightRows.
	h.others = float32(max(0, l.QueuedRows-int(h.inflightRows)))
	h.usually += smoothing * (h.others - h.usually)
	h.service = float32(l.ServiceTime.Seconds())
	h.loadAt = now
}

// answered learns from a good answer.
func (t *Table) answered(k *Pick, o *Outcome, now tick) {
	h, s, took := k.host, k.stats, o.Took.Seconds()
	h.health.add(true, now)
	s.health.add(true, now)
	if k.probeStats || !s.breaker.open {
		s.breaker.ok()
	}
	k.probeStats = false
	s.lacks = 0
	smooth(&s.latency, took, smoothing)
	smooth(&h.latency, took, smoothing)

	s.at = now
	if o.Hidden > 0 {
		k.entry.hidden, k.entry.proven = uint32(o.Hidden), true
	}
	if k.dialled() {
		return
	}
	k.entry.quantile(int(k.rows)).add(took)

	// Service and round trip divide what the call took: first what is beside computing, by the host's own account of that; then
	// what a row takes as seen from here, whatever the host says.
	beside := max(took-float64(k.work)*float64(h.service), leastRTT)
	weight := towardsLow
	if beside > float64(h.rtt) {
		if h.rtt > 0 && h.cold() {
			return
		}
		weight = towardsHigh
	}
	smooth(&h.rtt, beside, weight)
	h.rttAt = now
	if s.learned == 0 {
		s.service, s.learned, s.lost = float32(max(took-float64(h.rtt), 0)/max(float64(k.work), 1)), now, 0
		return
	}
	s.serve(k.perRow(took), older(smoothing, s.trust(now)), now)
}

// perRow is the time per row that a call which took so many seconds shows. One that took many times what was expected was met by an
// accident, or else the next ones will take as long: it counts as one of oftenExpected, or an accident would keep the host from being
// asked for as long as if it were as slow as that.
func (k *Pick) perRow(took float64) float64 {
	rtt, work := float64(k.host.rtt), max(float64(k.work), 1)
	took = min(took, oftenExpected*(rtt+float64(k.stats.service)*work))
	return max(took-rtt, 0) / work
}

// serve moves the time per row towards a sample.
func (s *stats) serve(perRow, weight float64, now tick) {
	s.service += float32(weight * (perRow - float64(s.service)))
	s.learned, s.lost = now, 0
}

// dialled tells whether the connection was made while the call was under way: then what that took says nothing of the next one.
func (k *Pick) dialled() bool { return k.host.metAt > k.at }

// cold tells whether the host came back a moment ago. That it is slower than it was is expected, and soon over: were it learned, it would
// take a multiple of its slow start until it is asked again.
func (h *host) cold() bool { return h.returned != 0 }

// cut learns from a call without an answer that it took longer than this. It returns whether that was longer than usual.
func (k *Pick) cut(took time.Duration, now tick) (slow bool) {
	if k.dialled() {
		return false
	}
	slow = k.entry.quantile(int(k.rows)).cut(took.Seconds())
	s, perRow := k.stats, k.perRow(took.Seconds())
	switch {
	case s.learned == 0 && !slow: // nothing is known of it, and it had no time to show anything
	case k.host.cold():
	case perRow > float64(s.service):
		s.serve(perRow, smoothing, now)
	case slow: // it is as slow as it was: or it would be tried again at once, and again
		s.learned, s.lost = now, 0
	}
	return slow
}

// quantile returns the estimate for calls of so many rows.
func (e *entry) quantile(rows int) *quantile {
	class := rowClass(rows)
	if len(e.slow) <= class {
		e.slow = append(e.slow, make([]quantile, class+1-len(e.slow))...)
	}
	return &e.slow[class]
}

// Slow returns the time above which one call in twenty for so many rows of the expert lies; false while too few were seen.
func (t *Table) Slow(id expert.ID, rows int) (time.Duration, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.experts[id]
	class := rowClass(rows)
	if e == nil || len(e.slow) <= class || e.slow[class].count < minSamples {
		return 0, false
	}
	return time.Duration(float64(e.slow[class].seconds) * float64(time.Second)), true
}
