package registry

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Connected notes that there is a connection to the peer. One that was gone, or said good-bye, is back and starts slowly.
func (t *Table) Connected(p peer.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.host(p, at)
	if h == nil {
		return
	}
	if !h.connected {
		h.connected, h.metAt, h.pingAt = true, at, 0
	}
	h.back(at)
}

// back ends the rest of a peer that shows that it is there.
func (h *host) back(now tick) {
	if h.breaker.ok() || h.draining {
		h.revive(now)
	}
	h.draining, h.suspect, h.cuts, h.verdict, h.heard = false, false, 0, Alive, now
}

// Disconnected notes that no connection to the peer is left. It is out of the choice at once, until it is connected again or a
// probe reaches it.
func (t *Table) Disconnected(p peer.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.hosts[p]; h != nil {
		h.connected = false
		h.gone(at)
		t.forgetIdle(h)
	}
}

// Drained notes that the peer takes no new calls: it is shutting down. It is back when it is connected again.
func (t *Table) Drained(p peer.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.hosts[p]; h != nil {
		h.draining, h.heard = true, at
	}
}

// Ponged notes that the peer answered a ping, and how long that took; 0: not measured. One that had missed a ping is back.
func (t *Table) Ponged(p peer.ID, rtt time.Duration, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[p]
	if h == nil {
		return
	}
	if rtt > 0 && !h.suspect { // or it slept until it answered
		sample, weight := max(rtt.Seconds(), leastRTT), 1.0 // a line cannot be slower than a ping on it
		if h.rtt > 0 && sample > float64(h.rtt) {
			sample = min(sample, oftenExpected*float64(h.rtt)) // or one pause of the host's would keep it from being asked until the next ping
			weight = older(smoothing, faded(at-h.rttAt, estimateHalfLife))
		}
		smooth(&h.rtt, sample, weight)
		h.rttAt = at
	}
	if h.verdict != Alive && h.breaker.ok() {
		h.revive(at)
	}
	h.suspect, h.cuts, h.verdict, h.heard = false, 0, Alive, at
}

// PingMissed notes that a peer with calls in flight is silent and missed its ping: nothing is known of it any more, and it rests until
// it shows a sign of life.
func (t *Table) PingMissed(p peer.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[p]
	if h == nil {
		return
	}
	if h.suspect {
		h.breaker.trip(at) // a probe found it silent again
		return
	}
	h.suspect = true
	if h.verdict == Alive {
		h.verdict = Unknown
	}
	if !h.breaker.open {
		h.die(at)
	}
	h.health.add(false, at)
	h.breaker.trip(at)
	h.breaker.failedAt = at
}

// Unreached notes that a peer without connection could not be reached behind the calls.
func (t *Table) Unreached(p peer.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.hosts[p]; h != nil && !h.connected {
		h.unreached(at)
	}
}

// unreached notes that a dial failed.
func (h *host) unreached(now tick) {
	h.health.add(false, now)
	h.gone(now)
	h.undialed = now
}

// RTT returns the smoothed round trip to a peer; false while it is not known.
func (t *Table) RTT(p peer.ID) (time.Duration, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[p]
	if h == nil || h.rtt == 0 {
		return 0, false
	}
	return time.Duration(float64(h.rtt) * float64(time.Second)), true
}

// Blame counts a failure of an expert at a peer that was found out after its report.
func (t *Table) Blame(id expert.ID, p peer.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	e, h := t.experts[id], t.hosts[p]
	if e == nil || h == nil {
		return
	}
	if pr := e.find(h); pr != nil && pr.made().breaker.fail(at, at, false) {
		pr.stats.health.add(false, at)
		h.health.add(false, at)
	}
}

// convictFirst, convictMost: answers that two other hosts contradict are lies or broken memory; neither mends itself soon.
const convictFirst, convictMost = time.Hour, 24 * time.Hour

// Convict shuts a peer out that was shown to answer wrongly. It returns for how long.
func (t *Table) Convict(p peer.ID, now time.Time) time.Duration {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[p]
	if h == nil {
		return 0
	}
	h.shutOut(convictFirst, convictMost, at)
	return time.Duration(h.shut - at)
}

// maxDescribed bounds how many experts of one peer are learned at once: 48 layers of 128 experts fit twice.
const maxDescribed = 16_384

// Described takes in a peer's account of itself: it provides what it says that it hosts. Claims about an expert's name and sizes are
// kept until an answer shows them.
func (t *Table) Described(p peer.ID, d expert.Description, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.host(p, at)
	if h == nil {
		return
	}
	h.learnLoad(d.Load, at)
	h.heard, h.draining = at, d.Draining
	for i := range d.Experts[:min(len(d.Experts), maxDescribed)] {
		x := &d.Experts[i]
		if x.State == expert.StateFailed {
			continue
		}
		e := t.touch(x.ID)
		if t.addProvider(e, p, Cache, at) == nil {
			continue
		}
		e.learnDigest(h, x.Digest, at)
		if x.Digest != e.digest {
			continue // other weights under the same name: not what is listed here
		}
		if !e.proven && x.Hidden > 0 && x.Hidden <= maxHidden {
			e.hidden = uint32(x.Hidden)
		}
		if e.about == nil {
			e.about = &about{}
		}
		*e.about = about{
			name: x.Name, kind: t.word(x.Kind), dtype: t.word(x.DType), numerics: t.word(x.Numerics),
			inner: int32(min(x.Inner, maxHidden)), state: expert.State(t.word(string(x.State))),
		}
	}
	t.forgetIdle(h)
}

// maxHidden is far above every model's width; what lies above it is not believed.
const maxHidden = 1 << 24
