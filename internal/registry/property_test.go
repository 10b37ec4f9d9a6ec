package registry

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kwaai/kwaaid/internal/expert"
)

// twin is a registry that remembers everything that happened and decides by reading it all again: slow, and plain to read. It knows
// the rules for who may be asked, not those for whom to prefer.
type twin struct {
	events []event
}

type event struct {
	at     time.Duration
	what   string
	peer   peer.ID
	picked time.Duration // of a report
	retry  time.Duration
}

// may tells whether the peer may be picked at the time, and whether that is certain: while a rest ends and probes are about, the
// twin does not say.
func (w *twin) may(p peer.ID, at time.Duration) (allowed, certain bool) {
	fullUntil, failures, lastFailure := time.Duration(0), 0, time.Duration(-1)
	provided, uncertain := false, false
	for _, e := range w.events {
		if e.peer != p {
			continue
		}
		switch e.what {
		case "provide":
			provided = true
		case "forget":
			provided, uncertain = false, true // what was known of it may be forgotten or not
		case "overloaded":
			fullUntil = max(fullUntil, e.at+e.retry)
		case "answered":
			failures = 0
		case "failed":
			if e.picked > lastFailure {
				failures++
				lastFailure = e.at
			}
			uncertain = uncertain || failures >= failuresToOpen
		case "disconnect", "miss":
			uncertain = true
		}
	}
	if !provided {
		return false, true
	}
	if fullUntil > at {
		return false, !uncertain
	}
	return true, !uncertain
}

// TestPick_AgreesWithANaiveTwin plays random stories to the table and to the twin.
func TestPick_AgreesWithANaiveTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newScript(Limits{Experts: 4, ProvidersPerExpert: 8, Peers: 8})
		w := &twin{}
		at := time.Duration(0)
		type held struct {
			pick Pick
			at   time.Duration
		}
		var under []held
		dice := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		note := func(what string, p peer.ID, picked, retry time.Duration) {
			w.events = append(w.events, event{at, what, p, picked, retry})
		}
		peers := []peer.ID{"a", "b", "c", "d"}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			at += time.Duration(rapid.IntRange(1, 400).Draw(t, "ms")) * time.Millisecond
			now := s.start.Add(at)
			p := rapid.SampledFrom(peers).Draw(t, "peer")
			switch rapid.SampledFrom([]string{"provide", "forget", "pick", "pick", "pick", "report", "report", "disconnect", "miss"}).Draw(t, "what") {
			case "provide":
				require.True(t, s.table.AddProvider(1, p, DHT, now))
				note("provide", p, 0, 0)
			case "forget":
				s.table.RemoveProvider(1, p)
				note("forget", p, 0, 0)
			case "disconnect":
				s.table.Disconnected(p, now)
				note("disconnect", p, 0, 0)
			case "miss":
				s.table.PingMissed(p, now)
				note("miss", p, 0, 0)
			case "pick":
				pick, err := s.table.Pick(Query{Expert: 1, Rows: 1}, now, dice)
				for _, q := range peers {
					if allowed, certain := w.may(q, at); certain && allowed {
						require.NoError(t, err, "%s may be asked", q)
					}
				}
				if err != nil {
					require.ErrorIs(t, err, ErrNone)
					continue
				}
				allowed, certain := w.may(pick.Peer, at)
				require.True(t, allowed || !certain, "%s was picked", pick.Peer)
				under = append(under, held{pick, at})
			case "report":
				if len(under) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(under)-1).Draw(t, "which")
				h := under[i]
				under = slices.Delete(under, i, i+1)
				kind := rapid.SampledFrom([]Kind{Answered, Overloaded, Failed, Cancelled, Refused}).Draw(t, "kind")
				retry := time.Duration(rapid.IntRange(1, 2000).Draw(t, "retry")) * time.Millisecond
				s.table.Report(h.pick, Outcome{Kind: kind, Took: at - h.at, RetryAfter: retry}, now)
				note(map[Kind]string{Answered: "answered", Overloaded: "overloaded", Failed: "failed"}[kind], h.pick.Peer, h.at, retry)
			}
			checkInvariants(t, s.table)
		}
		for _, h := range under {
			s.table.Report(h.pick, Outcome{Kind: Cancelled}, s.start.Add(at))
		}
		for _, v := range s.table.Peers(s.start.Add(at)) {
			require.Zero(t, v.Inflight, "every pick was reported, so nothing is under way")
		}
	})
}

// checkInvariants holds after every step, whatever happened.
func checkInvariants(t require.TestingT, table *Table) {
	if len(table.experts) > table.limits.Experts || len(table.hosts) > table.limits.Peers {
		require.Fail(t, "the table outgrew its limits")
	}
	named := map[*host]int{}
	for _, e := range table.experts {
		require.LessOrEqual(t, len(e.providers), table.limits.ProvidersPerExpert)
		for _, p := range e.providers {
			named[p.host]++
			require.Same(t, table.hosts[p.host.id], p.host, "a provider's host is in the table")
		}
	}
	for _, h := range table.hosts {
		require.Equal(t, named[h], h.experts)
		require.GreaterOrEqual(t, h.inflight, int32(0))
		require.GreaterOrEqual(t, h.inflightRows, int32(0))
		require.False(t, h.breaker.probing && h.inflight == 0, "a probe without a call under way")
	}
	count := 0
	for e := table.newest; e != nil; e = e.older {
		count++
		if e.older == table.newest {
			break
		}
		if count > len(table.experts) {
			break
		}
	}
	require.Equal(t, len(table.experts), count, "the ring holds every expert once")
}

func TestTable_ForgetsTheLeastRecentlyUsed(t *testing.T) {
	s := newScript(Limits{Experts: 3, ProvidersPerExpert: 2, Peers: 8})
	for id := range expert.ID(3) {
		s.table.AddProvider(id, "peer-a", DHT, s.now)
	}
	pick, err := s.table.Pick(Query{Expert: 0, Rows: 1}, s.now, &scriptDice{})
	require.NoError(t, err)
	s.table.AddProvider(3, "peer-b", DHT, s.now)
	require.ElementsMatch(t, []expert.ID{0, 2, 3}, slices.Collect(maps.Keys(s.table.experts)), "expert-0 was used, expert-1 was not")
	checkInvariants(t, s.table)

	// A pick whose expert is forgotten meanwhile is reported all the same.
	s.table.AddProvider(4, "peer-b", DHT, s.now)
	s.table.AddProvider(5, "peer-b", DHT, s.now)
	s.table.AddProvider(6, "peer-b", DHT, s.now)
	s.table.Report(pick, Outcome{Kind: Answered, Took: time.Millisecond}, s.now)
	checkInvariants(t, s.table)
	_, known := s.table.Peer("peer-a", s.now)
	require.False(t, known, "nothing names it any more")
}

func TestTable_FullOfProvidersDropsTheWorst(t *testing.T) {
	s := newScript(Limits{Experts: 3, ProvidersPerExpert: 3, Peers: 8})
	s.table.AddProvider(1, "static", Static, s.now)
	s.table.AddProvider(1, "good", DHT, s.now)
	pick, err := s.table.Pick(Query{Expert: 1, Rows: 1, Tried: []peer.ID{"static"}}, s.now, &scriptDice{})
	require.NoError(t, err)
	s.table.Report(pick, Outcome{Kind: Answered, Took: time.Millisecond}, s.now)
	for i := range 10 { // strangers come and push each other out
		require.True(t, s.table.AddProvider(1, peer.ID(fmt.Sprint("stranger-", i)), DHT, s.now.Add(time.Duration(i)*2*newsLife)))
		checkInvariants(t, s.table)
	}
	var left []string
	for _, p := range s.table.Providers(1, s.now) {
		left = append(left, string(p.Peer))
	}
	require.Equal(t, []string{"static", "good", "stranger-9"}, left)
}

// A walk may find more than there is room for, time and again.
func TestTable_FullOfProvidersKeepsWhomAWalkFoundUntilTheyFailed(t *testing.T) {
	s := newScript(Limits{Experts: 3, ProvidersPerExpert: 2, Peers: 8})
	found := []peer.ID{"a", "b", "c", "d"}
	known := func() (left []peer.ID) {
		for _, p := range s.table.Providers(1, s.now) {
			left = append(left, p.Peer)
		}
		return left
	}
	s.table.LookedUp(1, found, s.now)
	require.Equal(t, []peer.ID{"a", "b"}, known())

	s.table.Unreached("a", s.now)
	s.table.Unreached("b", s.now)
	s.table.LookedUp(1, found, s.now)
	require.Equal(t, []peer.ID{"c", "d"}, known())

	s.table.Connected("b", s.now)
	require.True(t, s.table.AddProvider(1, "b", DHT, s.now), "a dial shows no more than a connection")
	require.Equal(t, []peer.ID{"d", "b"}, known())
	require.True(t, s.table.AddProvider(1, "c", DHT, s.now.Add(2*newsLife)))
	checkInvariants(t, s.table)
}

func TestTable_FullOfPeersRefusesStrangersAndForgetsOldMisbehaviour(t *testing.T) {
	s := newScript(Limits{Experts: 8, ProvidersPerExpert: 4, Peers: 2})
	require.True(t, s.table.AddProvider(1, "a", DHT, s.now))
	require.True(t, s.table.AddProvider(1, "b", DHT, s.now))
	require.False(t, s.table.AddProvider(1, "c", DHT, s.now))
	s.table.Convict("b", s.now)
	s.table.RemoveProvider(1, "b")
	require.False(t, s.table.AddProvider(1, "c", DHT, s.now.Add(time.Minute)), "b's misbehaviour is still remembered")
	require.True(t, s.table.AddProvider(1, "c", DHT, s.now.Add(2*time.Hour)))
	checkInvariants(t, s.table)
}
