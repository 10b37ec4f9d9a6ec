package dispatch

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// TestChaos_NoCallFailsWhileOneHostIsWell: peers die, freeze, fill up, get slow and come back, in virtual time, one after the other and
// several at once; of each expert's three hosts one is always well. No call fails, and none gets a wrong answer.
func TestChaos_NoCallFailsWhileOneHostIsWell(t *testing.T) {
	for seed := range chaosSeeds() {
		slowest, failed := playChaos(t, seed, gentle)
		require.Zero(t, failed)
		require.Less(t, slowest, time.Second)
	}
}

// TestChaos_NoAnswerIsWrongAndEveryCallEnds: here hosts answer nonsense and failures too, and are left out for longer than they are ill,
// so that there may be nobody for a while.
func TestChaos_NoAnswerIsWrongAndEveryCallEnds(t *testing.T) {
	for seed := range chaosSeeds() {
		slowest, _ := playChaos(t, seed, all)
		require.LessOrEqual(t, slowest, DefaultConfig().Timeout)
	}
}

// chaosSeeds is how many stories are played.
func chaosSeeds() uint64 {
	if raceEnabled {
		return 1
	}
	return 3
}

// gentle trouble passes without a trace; with all kinds of it, hosts are left out for longer.
const gentle, all = 4, 7

// playChaos plays twenty seconds with the first kinds of trouble, and returns how long the slowest call took and how many failed.
func playChaos(t *testing.T, seed uint64, kinds int) (slowest time.Duration, failed int) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(t, quiet())
		dice := &lockedDice{r: rand.New(rand.NewPCG(seed, 77))}
		well := after(2*time.Millisecond, adds(identity))
		hosts := []peer.ID{"a", "b", "c", "d", "e", "f"}
		for i, p := range hosts {
			w.table.Connected(p, time.Now())
			for id := range expert.ID(6) { // each expert at three hosts next to each other
				if (i+6-int(id))%6 < 3 {
					w.provide(id, well, p)
					w.dht[id] = append(w.dht[id], p)
				}
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		var others sync.WaitGroup
		others.Go(func() { w.trouble(ctx, dice, hosts, well, kinds) })

		var mu sync.Mutex
		calls := 0
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				for began := time.Now(); time.Since(began) < 20*time.Second; {
					var pairs []expert.Pair
					for range 1 + dice.IntN(4) {
						pairs = append(pairs, expert.Pair{Expert: expert.ID(dice.IntN(6)), Rows: []int32{int32(dice.IntN(3))}})
					}
					summed := dice.IntN(2) == 0
					for i := range pairs {
						if summed {
							pairs[i].Weights = []float32{2}
						}
					}
					req := Request{X: rows(3), Pairs: pairs}
					from := time.Now()
					answers, err := d.Call(t.Context(), req)
					mu.Lock()
					calls++
					slowest = max(slowest, time.Since(from))
					mu.Unlock()
					if err != nil {
						t.Error(err)
					}
					for i, a := range answers {
						if a.Err != nil {
							mu.Lock()
							failed++
							mu.Unlock()
							if kinds == gentle {
								t.Logf("seed %d, at %v: %v", seed, time.Since(began), a.Err)
							}
							continue
						}
						if !summed {
							row := int(pairs[i].Rows[0])
							require.Equal(t, req.X.Float32s()[row*hidden:][:hidden], a.Output.Float32s())
						}
					}
					if summed {
						require.Equal(t, identities(req, answers), total(t, req, answers))
					}
					time.Sleep(time.Duration(dice.IntN(20)) * time.Millisecond)
				}
			})
		}
		clients.Wait()
		stop()
		others.Wait()
		t.Logf("%d calls, %d pairs failed, the slowest took %v", calls, failed, slowest)
		synctest.Wait()
		requireNothingUnderWay(t, w)
	})
	return slowest, failed
}

// trouble makes two hosts that share no expert's last well host unwell, for a while each.
func (w *world) trouble(ctx context.Context, dice *lockedDice, hosts []peer.ID, well behaviour, kinds int) {
	set := func(p peer.ID, b behaviour, ping func(context.Context) error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.peers[p] = b
		w.pings[p] = ping
		if ping == nil {
			delete(w.pings, p)
		}
	}
	for ctx.Err() == nil {
		thaw := make(chan struct{})
		thawing := func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
			select {
			case <-thaw:
				return adds(identity)(ctx, x, pairs)
			case <-ctx.Done():
				return nil, endOf(ctx)
			}
		}
		first := dice.IntN(len(hosts))
		ill := []peer.ID{hosts[first], hosts[(first+1+2*dice.IntN(3))%len(hosts)]}
		for _, p := range ill {
			switch dice.IntN(kinds) {
			case 0: // killed: those under way are reset, the connection is gone
				set(p, nil, silent)
				w.table.Disconnected(p, time.Now())
			case 1:
				set(p, thawing, silent)
			case 2:
				set(p, refuses(&expert.OverloadedError{RetryAfter: 50 * time.Millisecond}), nil)
			case 3:
				set(p, after(300*time.Millisecond, adds(identity)), nil)
			case 4:
				set(p, refuses(expert.ErrInternal), nil)
			case 5:
				set(p, breaks(expert.ErrReset), nil)
			case 6: // no answer to the last pair
				set(p, func(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
					return answerWith(x, pairs[:len(pairs)-1], func(v float32) float32 { return v }), nil
				}, nil)
			}
		}
		select {
		case <-time.After(time.Duration(200+dice.IntN(3000)) * time.Millisecond):
		case <-ctx.Done():
		}
		close(thaw)
		for _, p := range ill {
			set(p, well, nil)
			w.table.Connected(p, time.Now())
		}
		select {
		case <-time.After(time.Duration(dice.IntN(2000)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
