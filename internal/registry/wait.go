package registry

import "time"

const (
	// loadHalfLife: a queue that a reply told of is soon another; what is known of it then is how long it usually is. (In simulations
	// of 16 callers that know of each other by replies alone, 25 ms makes the p99 a fifth shorter than 250 ms does.)
	loadHalfLife = 25 * time.Millisecond
	// estimateHalfLife: who was slow is taken for average again after a while, so that it is asked and can show that it is not.
	estimateHalfLife = 5 * time.Second
	// lostHalfLife is after how many lost draws, too: who seems to be ten times slower is tried again after some 700 of them.
	lostHalfLife = 128
	// strangerRTT, strangerService stand in while neither of two providers is known, in seconds: a call within a city, and a
	// small expert's row. They matter only against the rows that are under way.
	strangerRTT, strangerService = 1e-3, 50e-6
	// leastRate bounds how much failures can stretch an expected wait.
	leastRate = 0.05
)

// guess is a value and how much it is to be trusted, 0 to 1.
type guess struct{ value, trust float64 }

// or blends a guess with another that stands in for it as far as it cannot be trusted.
func (g guess) or(other guess, stranger float64) float64 {
	rest := stranger
	if other.trust > 0 {
		rest = other.value
	} else if g.trust > 0 {
		rest = g.value
	}
	return g.value*g.trust + rest*(1-g.trust)
}

// rttGuess is what a call takes beside computing. It does not fade: what is long known of a line is measured anew, which costs callers
// nothing, rather than forgotten, which would cost the rare caller a slow answer each time; see outdated.
func (p *provider) rttGuess() guess {
	if p.host.rtt == 0 {
		return guess{}
	}
	return guess{float64(p.host.rtt), 1}
}

// serviceGuess is the time that one row takes: as seen from here with this expert, else as the host says of all its experts.
func (p *provider) serviceGuess(now tick) guess {
	if p.stats != nil && p.stats.learned != 0 {
		return guess{float64(p.stats.service), p.stats.trust(now)}
	}
	if p.host.service > 0 {
		return guess{float64(p.host.service), faded(now-p.host.loadAt, estimateHalfLife)}
	}
	return guess{}
}

// trust is how much of what is known of service is left: it fades with time, and with the draws that were lost by it. So it is found out as
// soon as the caller can afford it: one call in a thousand is such a trial, and no other while it is under way.
func (s *stats) trust(now tick) float64 {
	age := now - s.learned
	if s.inflight == 0 {
		age += tick(s.lost) * tick(estimateHalfLife) / lostHalfLife
	}
	return faded(age, estimateHalfLife)
}

// ahead is how many rows are expected to be computed before a new one: ours, and those of others, as the last reply told or, the
// longer ago that was, as it usually is.
func (h *host) ahead(now tick) float64 {
	age := now - h.loadAt
	fresh := faded(age, loadHalfLife)
	usually := float64(h.usually) * faded(age, estimateHalfLife)
	return float64(h.inflightRows) + float64(h.others)*fresh + usually*(1-fresh)
}

// rate is the share of calls that go well, of the expert at the host or of the host altogether, whichever is lower.
func (p *provider) rate(now tick) float64 {
	r := p.host.health.rate(now)
	if p.stats != nil {
		r = min(r, p.stats.health.rate(now))
	}
	return max(r, leastRate)
}

// wait is how long an answer from p is expected to take, in seconds, when the alternative is q: what is not known of p is taken to
// be as with q. A host that fails is waited for in vain, so its wait counts as often as it takes on average to succeed.
func (p *provider) wait(q *provider, rows int, now tick) float64 {
	return p.behind(q, p.host.ahead(now)+float64(rows), now)
}

// behind is how long an answer takes once so many rows are computed.
func (p *provider) behind(q *provider, rows float64, now tick) float64 {
	rtt := p.rttGuess().or(q.rttGuess(), strangerRTT)
	service := p.serviceGuess(now).or(q.serviceGuess(now), strangerService)
	return (rtt + service*rows) / p.rate(now)
}
