package registry

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Source says how a provider became known.
type Source uint8

// The sources, the weakest first.
const (
	Cache  Source = iota // remembered, or told by the host itself
	DHT                  // found in the DHT
	Static               // configured; never expires
)

// String returns cache, dht or static.
func (s Source) String() string {
	switch s {
	case Cache:
		return "cache"
	case DHT:
		return "dht"
	case Static:
		return "static"
	default:
		return "unknown"
	}
}

// Verdict is what is thought of a peer.
type Verdict uint8

// The verdicts.
const (
	Unknown Verdict = iota // no sign either way: not met yet, or it missed a ping
	Alive                  // it is connected, or answered
	Dead                   // its connection is gone, or a dial failed
)

// String returns unknown, alive or dead.
func (v Verdict) String() string {
	switch v {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	default:
		return "unknown"
	}
}

const (
	// lookEvery: hosts announce every ten minutes; who came since the last look-up is found by the next.
	lookEvery = 10 * time.Minute
	// lookAgain is how soon a look-up that failed is tried again.
	lookAgain = time.Minute
)

// providerLife: records live for 30 minutes and are announced every 10; five more for clocks and slow walks.
const providerLife = 35 * time.Minute

// Table is all that is known of experts elsewhere and of their hosts. Methods are safe for concurrent use; time never runs backwards
// in it: a now before an earlier one is taken as it is, and durations below zero count as zero.
type Table struct {
	limits Limits
	epoch  time.Time

	mu        sync.Mutex
	experts   map[expert.ID]*entry
	hosts     map[peer.ID]*host
	fallbacks map[expert.ID][]expert.ID
	words     map[string]string // one copy of each kind, dtype and numerics
	newest    *entry            // the ring of entries by last use: newest.older is the next, newest.newer the oldest
	swept     tick              // when hosts without experts were last looked for
}

// entry is an expert that is known.
type entry struct {
	id           expert.ID
	digest       expert.Digest // the first seen; see digest.go
	absent       tick          // when a complete walk found nobody; 0: never, or somebody was found since
	looked       tick          // when it was looked up last; 0 or before: long ago
	unanswered   tick          // when a call for it ended in vain after all was tried; 0: never, or somebody answered since
	providers    []provider
	slow         []quantile // by rowClass, as far as needed
	about        *about     // nil until a host described it
	newer, older *entry
	hidden       uint32 // width of a row; 0: not known
	proven       bool   // an answer showed hidden; a description only claims it
}

// about is what a description says, for people.
type about struct {
	name, kind, dtype, numerics string
	inner                       int32
	state                       expert.State
}

// provider is a host of an expert.
type provider struct {
	host     *host
	stats    *stats // nil until it was asked
	seen     tick   // when it was last heard that it is a provider
	digest   expert.Digest
	digestAt tick
	source   Source
}

// stats is how an expert does at a host. A Pick holds on to it, even when the provider is forgotten meanwhile.
type stats struct {
	// Invariant: both are sums over the picks that are not reported yet.
	inflight, inflightRows int32
	latency                float32 // seconds; smoothed, of answers
	service                float32 // seconds per row as seen from here; smoothed
	at                     tick    // of the last answer
	learned                tick    // when service was learned last
	lost                   uint16  // draws that it lost since
	health                 health
	breaker                breaker
	lacks                  tick   // when it said last that it does not have the expert ready; 0: never, or it had it since
	absent                 bool   // it does not have it at all, rather than not yet
	wrong                  uint64 // short digest that it does not have
	wrongUntil             tick
	life                   uint32 // the host's, when this was learned
}

// host is a peer.
type host struct {
	id        peer.ID
	text      string // the ID in base58, which takes a microsecond to make
	experts   int    // providers that name it
	connected bool
	draining  bool // it said good-bye
	suspect   bool // it missed a ping, and gave no sign of life since
	verdict   Verdict

	// Invariant: both are sums over the picks that are not reported yet.
	inflight, inflightRows int32

	rtt     float32 // seconds that a call takes beside its computing; smoothed towards the low ones
	rttAt   tick    // when rtt was learned last
	pingAt  tick    // when a Pick last asked for a ping
	cuts    uint8   // calls in a row that were cut off for being slow, since it gave a sign of life
	latency float32 // seconds; smoothed, of answers, whatever the expert
	service float32 // seconds per row, as the host says
	others  float32 // rows of other callers in its queue, at loadAt
	usually float32 // the same, smoothed
	loadAt  tick

	health   health
	breaker  breaker
	rest     tick // it was full; until then
	metAt    tick // when the connection was made
	returned tick // slow start since; 0: none
	slowFor  time.Duration
	life     uint32 // how often it came back
	deaths   uint8  // lately
	diedAt   tick
	heard    tick // the last sign of life
	undialed tick // when a dial failed last; 0: none did

	shut     tick // shut out until
	strikes  int  // times that it was shut out, those long ago forgotten
	struckAt tick
}

// New makes an empty table. The limits must be valid.
func New(limits Limits, now time.Time) *Table {
	return &Table{
		limits:    limits,
		epoch:     now.Add(-1), // so that no tick is 0
		experts:   make(map[expert.ID]*entry),
		hosts:     make(map[peer.ID]*host),
		fallbacks: make(map[expert.ID][]expert.ID),
		words:     make(map[string]string),
	}
}

func (t *Table) tick(now time.Time) tick { return max(1, tick(now.Sub(t.epoch))) }

// AddProvider notes that a peer hosts an expert. It returns false where there is no room for it.
func (t *Table) AddProvider(id expert.ID, p peer.ID, source Source, now time.Time) bool {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addProvider(t.touch(id), p, source, at) != nil
}

func (t *Table) addProvider(e *entry, id peer.ID, source Source, now tick) *provider {
	h := t.host(id, now)
	if h == nil {
		return nil
	}
	e.absent = 0
	p := e.find(h)
	if p == nil {
		newcomer := provider{host: h, source: source}
		if len(e.providers) >= t.limits.ProvidersPerExpert && !t.dropWorst(e, &newcomer, now) {
			t.forgetIdle(h)
			return nil
		}
		e.providers = append(e.providers, newcomer)
		p = &e.providers[len(e.providers)-1]
		h.experts++
	}
	p.seen, p.source = now, max(p.source, source)
	return p
}

// RemoveProvider forgets that a peer hosts an expert.
func (t *Table) RemoveProvider(id expert.ID, p peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, h := t.experts[id], t.hosts[p]
	if e == nil || h == nil {
		return
	}
	for i := range e.providers {
		if e.providers[i].host == h {
			t.removeAt(e, i)
			return
		}
	}
}

// LookedUp notes whom a look-up in the DHT found; nobody, if a complete walk found nobody.
func (t *Table) LookedUp(id expert.ID, found []peer.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.touch(id)
	e.looked = at
	for _, p := range found {
		t.addProvider(e, p, DHT, at)
	}
	if len(found) == 0 {
		e.absent = at
	}
}

// LookUpFailed notes that a look-up could not be made. It is tried again in a minute.
func (t *Table) LookUpFailed(id expert.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.experts[id]; e != nil {
		e.looked = at - tick(lookEvery) + tick(lookAgain)
	}
}

// AbsentSince returns how long ago a complete walk found nobody; false if none did since somebody was known.
func (t *Table) AbsentSince(id expert.ID, now time.Time) (time.Duration, bool) {
	return t.since(id, now, func(e *entry) tick { return e.absent })
}

// Unanswered notes that a call for an expert ended in vain: nobody who is known answered, nor was anybody else found.
func (t *Table) Unanswered(id expert.ID, now time.Time) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.touch(id).unanswered = at
}

// UnansweredSince returns how long ago a call for an expert ended in vain; false if none did since somebody answered.
func (t *Table) UnansweredSince(id expert.ID, now time.Time) (time.Duration, bool) {
	return t.since(id, now, func(e *entry) tick { return e.unanswered })
}

// since returns how long ago something happened to an expert; false where it is not known, or its time is 0.
func (t *Table) since(id expert.ID, now time.Time, when func(*entry) tick) (time.Duration, bool) {
	at := t.tick(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.experts[id]
	if e == nil || when(e) == 0 {
		return 0, false
	}
	return time.Duration(max(0, at-when(e))), true
}

// find returns the host's entry among the providers, or nil. It is valid until the providers change.
func (e *entry) find(h *host) *provider {
	for i := range e.providers {
		if e.providers[i].host == h {
			return &e.providers[i]
		}
	}
	return nil
}

// newsLife: whom one walk finds becomes known within half of it.
const newsLife = time.Minute

// dropWorst makes room for a newcomer: of those that are not configured, the one that does worst, then the one heard of least
// recently. Nobody is dropped while calls to it are under way, nor who was heard of lately for one that promises no more: those that a walk finds
// would push each other out before they were tried, and those tried in vain would come back in their place.
func (t *Table) dropWorst(e *entry, newcomer *provider, now tick) bool {
	worst := -1
	for i := range e.providers {
		p := &e.providers[i]
		if p.source == Static && newcomer.source != Static || p.stats != nil && p.stats.inflight > 0 {
			continue
		}
		if worst < 0 || p.worse(&e.providers[worst], now) {
			worst = i
		}
	}
	if worst < 0 {
		return false
	}
	if p := &e.providers[worst]; newcomer.standing(now) <= p.standing(now) && now-p.seen <= tick(newsLife) {
		return false
	}
	t.removeAt(e, worst)
	return true
}

func (p *provider) worse(q *provider, now tick) bool {
	a, b := p.standing(now), q.standing(now)
	return a < b || a == b && p.seen < q.seen
}

// standing orders providers for dropWorst: the lower, the sooner dropped.
func (p *provider) standing(now tick) int {
	switch {
	case p.source == Static:
		return 4
	case p.host.shut > now || p.host.breaker.open:
		return 0
	case p.stats != nil && p.stats.at != 0:
		return 3
	case p.host.connected:
		return 2
	default:
		return 1
	}
}

func (t *Table) removeAt(e *entry, i int) {
	h := e.providers[i].host
	last := len(e.providers) - 1
	copy(e.providers[i:], e.providers[i+1:]) // keeps the order: choices depend on it
	e.providers[last] = provider{}
	e.providers = e.providers[:last]
	h.experts--
	t.forgetIdle(h)
}

// touch returns the expert's entry, made if need be, as the most recently used one.
func (t *Table) touch(id expert.ID) *entry {
	e := t.experts[id]
	switch e {
	case nil:
		if len(t.experts) >= t.limits.Experts {
			t.forget(t.newest.newer)
		}
		e = &entry{id: id}
		t.experts[id] = e
	case t.newest:
		return e
	default:
		t.unlink(e)
	}
	if t.newest == nil {
		e.newer, e.older = e, e
	} else {
		e.older, e.newer = t.newest, t.newest.newer
		e.older.newer, e.newer.older = e, e
	}
	t.newest = e
	return e
}

func (t *Table) unlink(e *entry) {
	if e.older == e {
		t.newest = nil
		return
	}
	e.older.newer, e.newer.older = e.newer, e.older
	if t.newest == e {
		t.newest = e.older
	}
}

func (t *Table) forget(e *entry) {
	t.unlink(e)
	delete(t.experts, e.id)
	for i := range e.providers {
		h := e.providers[i].host
		h.experts--
		t.forgetIdle(h)
	}
}

// host returns the peer's state, made if need be; nil when there is no room.
func (t *Table) host(id peer.ID, now tick) *host {
	if h := t.hosts[id]; h != nil {
		return h
	}
	if len(t.hosts) >= t.limits.Peers && !t.sweep(now) {
		return nil
	}
	h := &host{id: id, text: id.String()}
	t.hosts[id] = h
	return h
}

// forgetIdle drops a peer of which nothing needs to be known. One that misbehaved is remembered, within the limit.
func (t *Table) forgetIdle(h *host) {
	if h.experts == 0 && !h.connected && h.inflight == 0 && h.strikes == 0 {
		delete(t.hosts, h.id)
	}
}

// sweepEvery: looking through a full table of peers takes about a millisecond.
const sweepEvery = time.Second

// sweep makes room for peers by forgetting misbehaviour that is over.
func (t *Table) sweep(now tick) bool {
	if t.swept != 0 && now-t.swept < tick(sweepEvery) {
		return false
	}
	t.swept = now
	for id, h := range t.hosts {
		if h.experts == 0 && !h.connected && h.inflight == 0 && h.shut <= now {
			delete(t.hosts, id)
		}
	}
	return len(t.hosts) < t.limits.Peers
}

// maxWords: kinds, dtypes and numerics are a handful; what strangers invent beyond is not kept as one copy.
const maxWords = 256

func (t *Table) word(s string) string {
	if w, ok := t.words[s]; ok {
		return w
	}
	if len(t.words) < maxWords {
		t.words[s] = s
	}
	return s
}
