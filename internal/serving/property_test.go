package serving

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Callers, cancels, deadlines, bad rows, panics, unloads, loads and canaries in any order: every Run has exactly one result per
// pair, with the right bits or a reason, and (in newHost's clean-up) all that was reserved is given back.
func TestHost_AnyInterleaving(t *testing.T) {
	const experts, callers, calls = 4, 8, 300
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	h := newHost(t, func(c *Config) { c.MaxRows, c.QueueRows = 24, 60 }, withSlots(2), WithMetrics(nil))

	// Rows that start with 13 panic while cursed is their batch-mate or not; some passes take their time, some are quick.
	newExpert := func(shift float32) *fakeExpert {
		e := &fakeExpert{shift: shift, bytes: 100}
		e.before = func(ctx context.Context, rows int, x []float32) error {
			for i := 0; i < len(x); i += fakeHidden {
				if x[i] == 13 {
					panic("cursed")
				}
			}
			switch {
			case shift == 0: // quick
			case rows%5 == 0:
				return slowly(200*time.Microsecond, 0)(ctx, rows, x)
			default:
				for range rows {
					runtime.Gosched()
				}
			}
			return nil
		}
		return e
	}
	for id := range experts {
		host(t, h, expert.ID(id), newExpert(float32(id)))
		if id == 3 {
			h.mu.Lock()
			h.experts[3].lanes[0].cost.add(time.Hour, 1) // never in the caller's goroutine
			h.mu.Unlock()
		}
	}

	var work sync.WaitGroup
	stop := make(chan struct{})
	work.Go(func() { // loads and unloads
		dice := rand.New(rand.NewPCG(seed, 99))
		for {
			select {
			case <-stop:
				return
			default:
			}
			id := expert.ID(dice.IntN(experts))
			switch dice.IntN(3) {
			case 0:
				_ = h.Remove(context.Background(), id)
				_ = h.Add(context.Background(), offer(id, newExpert(float32(id))))
			case 1:
				o := offer(id, newExpert(float32(id)))
				o.Replace = true
				_ = h.Add(context.Background(), o)
			default:
				_ = h.Canary(context.Background(), id)
			}
			h.List()
			h.Ready()
		}
	})

	var outcomes sync.Map
	var callersDone sync.WaitGroup
	for caller := range callers {
		callersDone.Go(func() {
			dice := rand.New(rand.NewPCG(seed, uint64(caller)))
			for range calls {
				oneCall(t, h, dice, experts, &outcomes)
			}
		})
	}
	callersDone.Wait()
	close(stop)
	work.Wait()
	outcomes.Range(func(k, v any) bool {
		t.Logf("%v: %v", k, v)
		return true
	})
	require.NoError(t, h.Drain(context.Background()))
}

// oneCall makes a random call and checks its results.
func oneCall(t *testing.T, h *Host, dice *rand.Rand, experts int, outcomes *sync.Map) {
	rows := 1 + dice.IntN(8)
	from := float32(20 + dice.IntN(100))
	bad := dice.IntN(12)
	if bad == 0 {
		from = 13 // its row 0 panics
	}
	x := input(rows, from)
	if bad == 1 {
		x.Float32s()[dice.IntN(rows*fakeHidden)] = float32(math.NaN())
	}
	asked := make([]expert.Pair, 1+dice.IntN(3))
	for i := range asked {
		asked[i].Expert = expert.ID(dice.IntN(experts + 1))
		if dice.IntN(2) == 0 {
			for range 1 + dice.IntN(4) {
				asked[i].Rows = append(asked[i].Rows, int32(dice.IntN(rows)))
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch dice.IntN(4) {
	case 0:
		ctx, cancel = context.WithTimeout(ctx, time.Duration(dice.IntN(300))*time.Microsecond)
		defer cancel()
	case 1:
		time.AfterFunc(time.Duration(dice.IntN(100))*time.Microsecond, cancel)
	}

	ticket := h.Admit(rows, fakeHidden, asked)
	defer ticket.Release()
	if dice.IntN(10) == 0 {
		return // its payload never came
	}
	results := ticket.Run(ctx, x)
	require.Len(t, results, len(asked))
	kept := append([]float32(nil), x.Float32s()...)
	for i := range x.Float32s() {
		x.Float32s()[i] = -1 // x is the caller's again: nobody may read it now
	}
	for i, r := range results {
		p := asked[i]
		count(outcomes, r.Err)
		if r.Err != nil {
			require.Nil(t, r.Output)
			require.True(t, known(r.Err), "%v", r.Err)
			continue
		}
		require.Less(t, int(p.Expert), experts)
		if sameMemory(x.Float32s(), r.Output.Float32s()) {
			t.Error("a fake never returns its input")
		}
		requireOutput(t, r, wanted(expert.NewRows(kept, fakeHidden), p.Rows, float32(p.Expert)))
	}
}

var statuses = []error{
	expert.ErrNotFound, expert.ErrInvalidArgument, expert.ErrOverloaded, expert.ErrDeadlineExceeded,
	expert.ErrNotReady, expert.ErrInternal, expert.ErrCancelled,
}

func known(err error) bool {
	for _, s := range statuses {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

func count(outcomes *sync.Map, err error) {
	key := "ok"
	for _, s := range statuses {
		if errors.Is(err, s) {
			key = s.Error()
		}
	}
	for {
		v, _ := outcomes.LoadOrStore(key, 0)
		if outcomes.CompareAndSwap(key, v, v.(int)+1) {
			return
		}
	}
}
