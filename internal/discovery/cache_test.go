package discovery

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func ids(sightings []Sighting) []peer.ID {
	var out []peer.ID
	for _, s := range sightings {
		out = append(out, s.Peer)
	}
	return out
}

func TestCache_ProvidersExpireWithTheirRecords(t *testing.T) {
	c := newCache(10)
	c.add(1, "a", start)
	c.add(1, "b", start.Add(20*time.Minute))
	c.complete(1, start.Add(20*time.Minute))
	found, refresh := c.get(1, start.Add(29*time.Minute))
	require.Equal(t, []peer.ID{"a", "b"}, ids(found))
	require.False(t, refresh)
	found, refresh = c.get(1, start.Add(31*time.Minute))
	require.Equal(t, []peer.ID{"b"}, ids(found), "a was seen more than 30 minutes ago")
	require.True(t, refresh, "the last walk was 11 minutes ago")
	found, refresh = c.get(1, start.Add(time.Hour))
	require.Empty(t, found)
	require.True(t, refresh)
	require.Empty(t, c.ids, "forgotten peers take no memory")
}

func TestCache_UnknownWantsAWalk(t *testing.T) {
	c := newCache(10)
	found, refresh := c.get(1, start)
	require.Empty(t, found)
	require.True(t, refresh)
	require.Zero(t, c.entries.Len(), "to ask for an expert that nobody hosts leaves nothing behind")
	c.complete(1, start)
	require.Zero(t, c.entries.Len())
}

func TestCache_IncompleteWalkIsRepeated(t *testing.T) {
	c := newCache(10)
	c.add(1, "a", start)
	found, refresh := c.get(1, start)
	require.Len(t, found, 1)
	require.True(t, refresh)
}

func TestCache_DueIsWhatWasUsedSinceItsWalk(t *testing.T) {
	c := newCache(10)
	for id := range expert.ID(3) {
		c.add(id, "a", start)
		c.complete(id, start)
	}
	c.get(1, start.Add(time.Minute))
	require.Empty(t, c.due(start.Add(19*time.Minute), 10), "not yet old")
	require.Equal(t, []expert.ID{1}, c.due(start.Add(20*time.Minute), 10), "0 and 2 were not used")
	require.Empty(t, c.due(start.Add(20*time.Minute), 0))
	c.complete(1, start.Add(20*time.Minute))
	require.Empty(t, c.due(start.Add(41*time.Minute), 10), "not used since")
}

func TestCache_IsBounded(t *testing.T) {
	c := newCache(4)
	for id := range expert.ID(10) {
		for p := range 2 * maxProviders {
			c.add(id, peer.ID(fmt.Sprint("peer-", p)), start)
		}
	}
	require.Equal(t, 4, c.entries.Len())
	require.Len(t, c.ids, maxProviders)
	require.Len(t, c.peek(9, start), maxProviders)
	later := start.Add(recordValidity)
	c.add(9, "new", later)
	require.Equal(t, []peer.ID{"new"}, ids(c.peek(9, later)), "the expired make room")
	c.prune(later)
	require.Equal(t, 1, c.entries.Len())
	require.Len(t, c.ids, 1)
}
