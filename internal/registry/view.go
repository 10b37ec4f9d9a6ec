package registry

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

// ExpertView is an expert that somebody hosts elsewhere.
type ExpertView struct {
	ID        expert.ID
	Name      string        // these are empty until a host described it
	Kind      string        //
	DType     string        //
	Numerics  string        //
	State     expert.State  // draining or failed where all providers are gone or do so, ready where nothing else is known; else as a host described it
	Hidden    int           // 0: not known
	Inner     int           //
	Digest    expert.Digest // the one that unpinned calls use; zero: not known
	Providers int           // known
	Reachable int           // of them, those that could be asked now
}

// ProviderView is a host of an expert.
type ProviderView struct {
	Peer     peer.ID
	Source   Source
	Age      time.Duration // since it was last heard that it is a provider
	Breaker  BreakerState  // the peer's, or that of the expert there, whichever is further from closed
	RTT      time.Duration // smoothed; 0: not measured
	Latency  time.Duration // smoothed time of an answer; 0: none yet
	Service  time.Duration // smoothed time of a row as seen from here; 0: none yet
	Success  float64       // smoothed share of calls that went well, 0 to 1
	Inflight int           // calls under way
	Resting  time.Duration // until it may be asked again, having been full or not ready; 0: now
	Digest   expert.Digest // zero: not known
	Other    bool          // it is known to have other weights than unpinned calls use
}

// PeerView is a peer.
type PeerView struct {
	Peer      peer.ID
	Connected bool
	Verdict   Verdict
	Draining  bool
	Experts   int // of which it is a known provider
	Breaker   BreakerState
	RTT       time.Duration // smoothed; 0: not measured
	Latency   time.Duration // smoothed time of an answer; 0: none yet
	Success   float64       // smoothed share of calls that went well, 0 to 1
	Inflight  int           // calls under way
	Queued    int           // rows of others in its queue, as far as is known
	Resting   time.Duration // until it may be asked again, having been full; 0: now
	ShutOut   time.Duration // until it may be asked again, having misbehaved; 0: now
}

// Experts lists the experts that have providers, by ID.
func (t *Table) Experts(now time.Time) []ExpertView {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]ExpertView, 0, len(t.experts))
	for _, e := range t.experts {
		if len(e.providers) == 0 {
			continue
		}
		list = append(list, e.view(at))
	}
	slices.SortFunc(list, func(a, b ExpertView) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Expert returns what is known of an expert; false where it has no providers.
func (t *Table) Expert(id expert.ID, now time.Time) (ExpertView, bool) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.experts[id]
	if e == nil || len(e.providers) == 0 {
		return ExpertView{}, false
	}
	return e.view(at), true
}

func (e *entry) view(now tick) ExpertView {
	v := ExpertView{ID: e.id, Hidden: int(e.hidden), Digest: e.digest, Providers: len(e.providers)}
	if a := e.about; a != nil {
		v.Name, v.Kind, v.DType, v.Numerics, v.Inner, v.State = a.name, a.kind, a.dtype, a.numerics, int(a.inner), a.state
	}
	well, draining := 0, 0
	for i := range e.providers {
		p := &e.providers[i]
		if p.why(&Query{}, e.digest, now) == pickable {
			v.Reachable++
		}
		switch {
		case p.host.draining:
			draining++
		case p.breakerState(now) == Closed:
			well++
		}
	}
	switch {
	case well == 0 && draining > 0:
		v.State = expert.StateDraining
	case well == 0:
		v.State = expert.StateFailed
	case v.State == "":
		v.State = expert.StateReady
	}
	return v
}

// breakerState is that of the peer, or that of the expert there, whichever is further from closed.
func (p *provider) breakerState(now tick) BreakerState {
	state := p.host.breakerState(now)
	if s := p.current(); s != nil {
		state = worse(state, s.breaker.state(now))
	}
	return state
}

// Providers lists the known providers of an expert, in the order in which they became known.
func (t *Table) Providers(id expert.ID, now time.Time) []ProviderView {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.experts[id]
	if e == nil {
		return nil
	}
	t.dropExpired(e, at)
	list := make([]ProviderView, 0, len(e.providers))
	for i := range e.providers {
		p := &e.providers[i]
		h, s := p.host, p.current()
		v := ProviderView{
			Peer: h.id, Source: p.source, Age: time.Duration(max(0, at-p.seen)), Breaker: p.breakerState(at), RTT: seconds(h.rtt),
			Success: h.health.rate(at), Resting: time.Duration(max(0, h.rest-at)), Digest: p.digest, Other: p.other(e.digest, at),
		}
		if s != nil {
			v.Latency, v.Service, v.Inflight = seconds(s.latency), seconds(s.service), int(s.inflight)
			v.Success = min(v.Success, s.health.rate(at))
			v.Resting = max(v.Resting, time.Duration(s.until()-at))
		}
		list = append(list, v)
	}
	return list
}

// Peers lists the peers known, by ID.
func (t *Table) Peers(now time.Time) []PeerView {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]PeerView, 0, len(t.hosts))
	for _, h := range t.hosts {
		list = append(list, h.view(at))
	}
	slices.SortFunc(list, func(a, b PeerView) int { return cmp.Compare(a.Peer, b.Peer) })
	return list
}

// Peer returns what is known of a peer; false where nothing is.
func (t *Table) Peer(p peer.ID, now time.Time) (PeerView, bool) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[p]
	if h == nil {
		return PeerView{}, false
	}
	return h.view(at), true
}

func (h *host) view(now tick) PeerView {
	return PeerView{
		Peer: h.id, Connected: h.connected, Verdict: h.verdict, Draining: h.draining, Experts: h.experts,
		Breaker: h.breakerState(now), RTT: seconds(h.rtt), Latency: seconds(h.latency), Success: h.health.rate(now), Inflight: int(h.inflight),
		Queued: int(h.ahead(now)) - int(h.inflightRows), Resting: time.Duration(max(0, h.rest-now)),
		ShutOut: time.Duration(max(0, h.shut-now)),
	}
}

// breakerState counts a peer that is shut out as one whose breaker is open.
func (h *host) breakerState(now tick) BreakerState {
	if h.shut > now {
		return Open
	}
	return h.breaker.state(now)
}

// worse returns the state that is further from closed: open, then half-open.
func worse(a, b BreakerState) BreakerState {
	switch {
	case a == Open || b == Open:
		return Open
	case a == HalfOpen || b == HalfOpen:
		return HalfOpen
	default:
		return Closed
	}
}

func seconds(s float32) time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// Hidden returns how wide an expert's rows are; 0: not known.
func (t *Table) Hidden(id expert.ID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.experts[id]
	if e == nil {
		return 0
	}
	return int(e.hidden)
}
