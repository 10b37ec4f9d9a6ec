package registry

import (
	"encoding/binary"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// One call uses one digest: the one that it pins, else the local expert's (which the caller pins too), else the first seen among
// the providers. Hosts of another digest are other experts that share a name: they are left out, and it is no failure.

// digestLife: a host may get other weights under the same name; what it had ten minutes ago, the time between two rounds of
// announcing, is asked for again.
const digestLife = 10 * time.Minute

// other tells whether the provider is known to have other weights than the wanted ones.
func (p *provider) other(wanted expert.Digest, now tick) bool {
	if wanted.IsZero() {
		return false
	}
	if !p.digest.IsZero() && now-p.digestAt < tick(digestLife) {
		return p.digest != wanted
	}
	return p.stats != nil && p.stats.wrongUntil > now && p.stats.wrong == short(wanted)
}

// short is enough of a digest to remember that a host does not have it.
func short(d expert.Digest) uint64 { return binary.LittleEndian.Uint64(d[:8]) }

// elect returns the digest that unpinned calls of the expert use: the first seen for as long as somebody may have it.
func (e *entry) elect(now tick) expert.Digest {
	if e.digest.IsZero() || len(e.providers) == 0 {
		return e.digest
	}
	var next expert.Digest
	for i := range e.providers {
		p := &e.providers[i]
		if !p.other(e.digest, now) {
			return e.digest
		}
		if next.IsZero() && now-p.digestAt < tick(digestLife) {
			next = p.digest
		}
	}
	e.digest = next // nobody has the old one any more; zero: the next answer decides
	return next
}

// learnDigest notes what weights a host has.
func (e *entry) learnDigest(h *host, d expert.Digest, now tick) {
	if d.IsZero() {
		return
	}
	if e.digest.IsZero() {
		e.digest = d
	}
	if p := e.find(h); p != nil {
		p.digest, p.digestAt = d, now
	}
}
