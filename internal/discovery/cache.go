package discovery

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

const (
	// recordValidity is how long a provider record lives after it was announced.
	recordValidity = 30 * time.Minute
	// refreshAfter: a cached answer in use that is older is looked up again behind its back. That is how often records are
	// announced: an earlier walk could find little news.
	refreshAfter = 10 * time.Minute
	// refreshDue: an answer that was used since it was found and will soon expire is looked up again, so that the next use finds
	// it fresh. Ten minutes are left then for a walk that takes seconds.
	refreshDue = 20 * time.Minute
	// maxCached experts take some 30 MB with three providers each.
	maxCached = 1 << 16
	// maxProviders of one expert are kept; more are of no use to a caller, and a stranger could make up any number.
	maxProviders = 64
)

// cache remembers who was found for which expert, and when: peer IDs only, their addresses are in the peerstore. It is not safe for
// concurrent use, and knows no time but what it is told.
type cache struct {
	entries *simplelru.LRU[expert.ID, *entry]
	ids     map[peer.ID]*interned
}

type entry struct {
	walked    time.Time // when the last complete walk ended; zero: none did yet
	used      time.Time // when somebody asked last
	providers []sighting
}

// sighting is one provider with the time at which a walk found it last.
type sighting struct {
	peer *interned
	seen time.Time
}

// interned shares one peer ID among all experts that the peer hosts.
type interned struct {
	id   peer.ID
	uses int
}

func newCache(size int) *cache {
	c := &cache{ids: map[peer.ID]*interned{}}
	lru, err := simplelru.NewLRU(size, func(_ expert.ID, e *entry) { c.release(e.providers) })
	if err != nil {
		panic(err) // only for a size below 1
	}
	c.entries = lru
	return c
}

// get returns the providers that are still valid, in no order, and whether it is time to walk again.
func (c *cache) get(id expert.ID, now time.Time) (found []Sighting, refresh bool) {
	e, ok := c.entries.Get(id)
	if !ok {
		return nil, true
	}
	e.used = now
	c.expire(e, now)
	return e.sightings(), now.Sub(e.walked) >= refreshAfter
}

// add notes that a walk found a provider.
func (c *cache) add(id expert.ID, p peer.ID, now time.Time) {
	e := c.entry(id, now)
	for i := range e.providers {
		if e.providers[i].peer.id == p {
			e.providers[i].seen = now
			return
		}
	}
	if len(e.providers) >= maxProviders {
		c.expire(e, now)
	}
	if len(e.providers) >= maxProviders {
		return
	}
	e.providers = append(e.providers, sighting{peer: c.intern(p), seen: now})
}

// complete notes that a walk ended that asked everybody it should.
func (c *cache) complete(id expert.ID, now time.Time) {
	if e, ok := c.entries.Peek(id); ok {
		e.walked = now
	}
}

// due lists up to n experts that were used since their last walk and will expire soon.
func (c *cache) due(now time.Time, n int) []expert.ID {
	var ids []expert.ID
	for _, id := range c.entries.Keys() {
		if len(ids) == n {
			break
		}
		e, _ := c.entries.Peek(id)
		if e.used.After(e.walked) && now.Sub(e.walked) >= refreshDue {
			ids = append(ids, id)
		}
	}
	return ids
}

// prune drops the experts of which nothing valid is left.
func (c *cache) prune(now time.Time) {
	for _, id := range c.entries.Keys() {
		e, _ := c.entries.Peek(id)
		c.expire(e, now)
		if len(e.providers) == 0 {
			c.entries.Remove(id)
		}
	}
}

func (c *cache) entry(id expert.ID, now time.Time) *entry {
	e, ok := c.entries.Peek(id)
	if !ok {
		e = &entry{used: now}
		c.entries.Add(id, e)
	}
	return e
}

// expire drops the providers whose record cannot be valid any more.
func (c *cache) expire(e *entry, now time.Time) {
	kept := e.providers[:0]
	for _, s := range e.providers {
		if now.Sub(s.seen) < recordValidity {
			kept = append(kept, s)
		} else {
			c.release([]sighting{s})
		}
	}
	clear(e.providers[len(kept):])
	e.providers = kept
}

func (c *cache) intern(p peer.ID) *interned {
	in, ok := c.ids[p]
	if !ok {
		in = &interned{id: p}
		c.ids[p] = in
	}
	in.uses++
	return in
}

func (c *cache) release(list []sighting) {
	for _, s := range list {
		if s.peer.uses--; s.peer.uses == 0 {
			delete(c.ids, s.peer.id)
		}
	}
}

func (e *entry) sightings() []Sighting {
	out := make([]Sighting, len(e.providers))
	for i, s := range e.providers {
		out[i] = Sighting{Peer: s.peer.id, Seen: s.seen}
	}
	return out
}
