package dispatch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Records in the DHT outlive their hosts by up to half an hour: where hosts come and go most of those known may be gone.
func TestCall_ManyGoneHostsAreInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		gone := func(ctx context.Context) error {
			select {
			case <-time.After(300 * time.Millisecond):
				return expert.ErrDialFailed
			case <-ctx.Done():
				return endOf(ctx)
			}
		}
		for i := range 20 {
			p := peer.ID(fmt.Sprintf("gone-%02d", i))
			w.provide(42, breaks(expert.ErrDialFailed), p)
			w.pings[p] = gone
		}
		w.connect("here-a", "here-b") // so that they take the places of two that are not
		w.provide(42, identity, "here-a", "here-b")
		for range 300 {
			a := one(t, d, 42)
			require.NoError(t, a.Err)
			require.Len(t, a.Attempts, 1)
			time.Sleep(100 * time.Millisecond)
		}
		requireNothingUnderWay(t, w)
	})
}

// A caller that has just come knows of nobody who is there.
func TestCall_HostsThatCannotBeDialledUseUpNoRetries(t *testing.T) {
	requireNewcomersAreAnswered(t, 12, "here")
}

// More are found than the registry remembers of one expert, in whatever order the DHT names them; nobody is connected.
func TestCall_WhoIsThereIsFoundAmongMoreThanTheRegistryHolds(t *testing.T) {
	requireNewcomersAreAnswered(t, 28, "here-a", "here-b")
}

// requireNewcomersAreAnswered makes first calls, in worlds where the DHT names so many hosts that are gone beside those that can be dialled.
func requireNewcomersAreAnswered(t *testing.T, gone int, here ...peer.ID) {
	t.Helper()
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			dice := rand.New(rand.NewPCG(seed, 0))
			w, d := newWorld(t, DefaultConfig(), withDice(&lockedDice{r: dice}))
			providers := slices.Clone(here)
			for i := range gone {
				providers = append(providers, peer.ID(fmt.Sprintf("gone-%02d", i)))
			}
			dice.Shuffle(len(providers), func(i, j int) { providers[i], providers[j] = providers[j], providers[i] })
			for _, p := range providers {
				w.announce(42, after(time.Millisecond, breaks(expert.ErrDialFailed)), p)
				w.pings[p] = func(context.Context) error { return expert.ErrDialFailed }
			}
			for _, p := range here {
				w.peers[p] = after(5*time.Millisecond, identity) // with the time to dial
				w.pings[p] = func(context.Context) error {
					time.Sleep(5 * time.Millisecond)
					w.connect(p)
					return nil
				}
			}
			require.NoError(t, one(t, d, 42).Err)
			time.Sleep(time.Second) // for a check of the answer
			requireNothingUnderWay(t, w)
		})
	}
}

// An operator unloads an expert and loads it again.
func TestCall_TheOnlyHostIsAskedAgainOnceItHasTheExpert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, DefaultConfig())
		w.announce(42, refuses(expert.ErrNotFound), "peer-a")
		w.connect("peer-a")
		require.ErrorIs(t, one(t, d, 42).Err, expert.ErrNotFound)
		w.do(func() { w.peers["peer-a"] = identity })
		time.Sleep(time.Second)
		a := one(t, d, 42)
		require.NoError(t, a.Err)
		require.Len(t, a.Attempts, 1)
		requireNothingUnderWay(t, w)
	})
}
