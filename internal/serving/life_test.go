package serving

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func state(t *testing.T, h *Host, id expert.ID) expert.State {
	t.Helper()
	e, ok := h.Has(id)
	require.True(t, ok)
	return e.State
}

func TestAdd_IsReadyOnlyAfterItsCanary(t *testing.T) {
	h := newHost(t, nil)
	seen := make([]expert.State, 0, 2)
	e := &fakeExpert{before: func(context.Context, int, []float32) error {
		seen = append(seen, state(t, h, 7))
		ready, _ := h.Ready()
		require.Empty(t, ready)
		return nil
	}}
	_, changed := h.Ready()
	host(t, h, 7, e)
	require.Equal(t, []expert.State{expert.StateLoading, expert.StateLoading}, seen)
	<-changed
	ready, _ := h.Ready()
	require.Equal(t, []expert.ID{7}, ready)
	hosted, ok := h.Has(7)
	require.True(t, ok)
	require.Equal(t, expert.Hosted{ID: 7, State: expert.StateReady, Spec: e.Spec()}, hosted)
}

func TestAdd_FailsWithWhatTheCanaryFound(t *testing.T) {
	calls := 0
	cases := map[string]struct {
		e    *fakeExpert
		says string
	}{
		"NaN": {&fakeExpert{after: func(y []float32) { y[len(y)-1] = float32(math.NaN()) }}, "holds NaN or Inf"},
		"Inf": {&fakeExpert{after: func(y []float32) { y[0] = float32(math.Inf(-1)) }}, "row 0 of the output holds NaN or Inf"},
		"batch-mates matter": {&fakeExpert{after: func(y []float32) {
			calls++
			y[len(y)-2] += float32(calls)
		}}, "the result depends on batch-mates"},
		"error": {&fakeExpert{before: func(context.Context, int, []float32) error { return errors.New("no such tile") }}, "no such tile"},
		"panic": {&fakeExpert{before: func(context.Context, int, []float32) error { panic("off by one") }}, "panic: off by one"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			err := h.Add(context.Background(), offer(7, c.e))
			require.ErrorIs(t, err, expert.ErrInternal)
			require.ErrorContains(t, err, "expert-7")
			require.ErrorContains(t, err, c.says)
			hosted, ok := h.Has(7)
			require.True(t, ok)
			require.Equal(t, expert.StateFailed, hosted.State)
			require.Contains(t, hosted.Problem, c.says)
			require.EqualValues(t, 1, c.e.closed.Load())
			require.ErrorIs(t, h.Local(context.Background(), input(1, 0), pairs(7))[0].Err, expert.ErrNotReady)
		})
	}
}

func TestAdd_RefusesASecondExpertUnlessItReplaces(t *testing.T) {
	h := newHost(t, nil)
	first, second, third := &fakeExpert{shift: 1}, &fakeExpert{shift: 2}, &fakeExpert{shift: 3}
	host(t, h, 7, first)
	err := h.Add(context.Background(), offer(7, second))
	require.ErrorIs(t, err, ErrExists)
	require.ErrorIs(t, err, expert.ErrInvalidArgument)

	o := offer(7, third)
	o.Replace = true
	require.NoError(t, h.Add(context.Background(), o))
	require.EqualValues(t, 1, first.closed.Load())
	require.Len(t, h.List(), 1)
	x := input(2, 0)
	requireOutput(t, h.Local(context.Background(), x, pairs(7))[0], wanted(x, nil, 3))
}

func TestAdd_KeepsTheOldExpertWhenItsReplacementFails(t *testing.T) {
	h := newHost(t, nil)
	old := &fakeExpert{shift: 1}
	host(t, h, 7, old)
	err := h.Add(context.Background(), Offer{ID: 7, Bytes: 10, Replace: true, Load: func(context.Context) (expert.Expert, error) {
		require.Equal(t, expert.StateReady, state(t, h, 7))
		return nil, errors.New("shard is missing")
	}})
	require.ErrorContains(t, err, "shard is missing")
	require.Equal(t, expert.StateReady, state(t, h, 7))
	require.Zero(t, old.closed.Load())
}

func TestAdd_TakesThePlaceOfAFailedExpert(t *testing.T) {
	h := newHost(t, nil)
	require.Error(t, h.Add(context.Background(), Offer{ID: 7, Load: func(context.Context) (expert.Expert, error) {
		return nil, errors.New("no such file")
	}}))
	host(t, h, 7, &fakeExpert{})
	require.Equal(t, expert.StateReady, state(t, h, 7))
}

func TestAdd_GoesWithoutATraceWhenItsCallerGivesUp(t *testing.T) {
	h := newHost(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	err := h.Add(ctx, Offer{ID: 7, Bytes: 10, Load: func(ctx context.Context) (expert.Expert, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, h.List())
}

func TestBegin_MakesCallersHearNotReady(t *testing.T) {
	h := newHost(t, nil)
	l, err := h.Begin(offer(7, &fakeExpert{}))
	require.NoError(t, err)
	r := h.Local(context.Background(), input(1, 0), pairs(7))[0]
	require.ErrorIs(t, r.Err, expert.ErrNotReady)
	require.ErrorContains(t, r.Err, "expert-7")
	require.ErrorContains(t, r.Err, "loading")
	require.NoError(t, l.Run(context.Background()))
	require.NoError(t, h.Local(context.Background(), input(1, 0), pairs(7))[0].Err)
}

func TestRemove_OfALoadingExpertEndsItsLoading(t *testing.T) {
	h := newHost(t, nil)
	e := &fakeExpert{bytes: 10}
	loads := make(chan struct{})
	failed := make(chan error)
	go func() {
		failed <- h.Add(context.Background(), Offer{ID: 7, Load: func(ctx context.Context) (expert.Expert, error) {
			close(loads)
			<-ctx.Done()
			return e, nil
		}})
	}()
	<-loads
	require.NoError(t, h.Remove(context.Background(), 7))
	require.ErrorIs(t, <-failed, expert.ErrCancelled)
	require.Empty(t, h.List())
	require.EqualValues(t, 1, e.closed.Load())

	l, err := h.Begin(offer(8, e))
	require.NoError(t, err)
	require.NoError(t, h.Remove(context.Background(), 8))
	require.ErrorIs(t, l.Run(context.Background()), expert.ErrCancelled)
	require.ErrorIs(t, h.Remove(context.Background(), 8), expert.ErrNotFound)
}

func TestRemove_AnswersWhatWasTakenOnFirst(t *testing.T) {
	h := newHost(t, nil)
	e := &fakeExpert{}
	host(t, h, 7, e)
	x := input(3, 1)
	ticket := h.Admit(3, fakeHidden, pairs(7))
	_, changed := h.Ready()

	removed := make(chan error)
	go func() { removed <- h.Remove(context.Background(), 7) }()
	<-changed
	require.Equal(t, expert.StateDraining, state(t, h, 7))
	late := h.Local(context.Background(), x, pairs(7))[0]
	require.ErrorIs(t, late.Err, expert.ErrNotReady)
	require.ErrorContains(t, late.Err, "draining")

	requireOutput(t, ticket.Run(context.Background(), x)[0], wanted(x, nil, 0))
	require.Zero(t, e.closed.Load())
	ticket.Release()
	require.NoError(t, <-removed)
	require.EqualValues(t, 1, e.closed.Load())
	require.ErrorIs(t, h.Local(context.Background(), x, pairs(7))[0].Err, expert.ErrNotFound)
}

func TestRemove_ReturnsWithItsCtxButTheExpertStillGoes(t *testing.T) {
	h := newHost(t, nil)
	e := &fakeExpert{}
	host(t, h, 7, e)
	ticket := h.Admit(1, fakeHidden, pairs(7))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, h.Remove(ctx, 7), expert.ErrCancelled)
	ticket.Release()
	require.Empty(t, h.List())
	require.EqualValues(t, 1, e.closed.Load())
}

func TestCanary_VerdictCounts(t *testing.T) {
	h := newHost(t, nil)
	broken := false
	e := &fakeExpert{after: func(y []float32) {
		if broken {
			y[0] = float32(math.NaN())
		}
	}}
	host(t, h, 7, e)
	require.NoError(t, h.Canary(context.Background(), 7))

	broken = true
	_, changed := h.Ready()
	require.ErrorIs(t, h.Canary(context.Background(), 7), expert.ErrInternal)
	<-changed
	require.Equal(t, expert.StateFailed, state(t, h, 7))
	ready, changed := h.Ready()
	require.Empty(t, ready)

	broken = false
	require.NoError(t, h.Canary(context.Background(), 7))
	<-changed
	require.Equal(t, expert.StateReady, state(t, h, 7))
	require.ErrorIs(t, h.Canary(context.Background(), 8), expert.ErrNotFound)
}

func TestCanaryInput_IsTheSameEverywhere(t *testing.T) {
	x := CanaryInput(3)
	require.Len(t, x, 15)
	for _, v := range x {
		require.True(t, v >= -1 && v < 1)
	}
	require.Equal(t, x[:6], CanaryInput(2)[:6], "element i does not depend on the width")
	require.Equal(t, []uint32{0x3f316272, 0xbea45a50, 0x3b2afa00}, []uint32{math.Float32bits(x[0]), math.Float32bits(x[1]), math.Float32bits(x[14])})
}

func TestDrain_AnswersWhatWasTakenOnAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(1))
		host(t, h, 7, &fakeExpert{before: slowly(time.Second, 0)})
		x := input(1, 0)
		answers := make(chan expert.Result, 3)
		for range 3 {
			go func() { answers <- h.Local(context.Background(), x, pairs(7))[0] }()
		}
		synctest.Wait()
		_, changed := h.Ready()
		drained := make(chan error)
		go func() { drained <- h.Drain(context.Background()) }()
		<-changed
		ready, _ := h.Ready()
		require.Empty(t, ready)
		require.True(t, h.Describe().Draining)
		require.ErrorIs(t, h.Local(context.Background(), x, pairs(7))[0].Err, expert.ErrNotReady)
		require.ErrorIs(t, h.Add(context.Background(), offer(8, &fakeExpert{})), ErrClosed)
		require.NoError(t, <-drained)
		for range 3 {
			requireOutput(t, <-answers, wanted(x, nil, 0))
		}
		require.NoError(t, h.Drain(context.Background()), "twice is fine")
	})
}

func TestDrain_EndsWithTheDrainTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, func(c *Config) { c.Drain = 5 * time.Second })
		host(t, h, 7, &fakeExpert{before: slowly(time.Minute, 0)})
		answer := make(chan expert.Result)
		go func() { answer <- h.Local(context.Background(), input(2, 0), pairs(7))[0] }()
		synctest.Wait()
		started := time.Now()
		err := h.Drain(context.Background())
		require.ErrorIs(t, err, expert.ErrDeadlineExceeded)
		require.ErrorContains(t, err, "1 calls with 2 rows")
		require.Equal(t, 5*time.Second, time.Since(started))
		require.NoError(t, (<-answer).Err)
	})
}

func TestClose_UnloadsWhatIsIdleNowAndTheRestWhenItIs(t *testing.T) {
	h := newHost(t, nil)
	idle, busy := &fakeExpert{bytes: 5}, &fakeExpert{bytes: 6}
	host(t, h, 1, idle)
	host(t, h, 2, busy)
	ticket := h.Admit(1, fakeHidden, pairs(2))
	h.Close()
	h.Close()
	require.EqualValues(t, 1, idle.closed.Load())
	require.Zero(t, busy.closed.Load())
	require.NoError(t, ticket.Run(context.Background(), input(1, 0))[0].Err)
	ticket.Release()
	require.EqualValues(t, 1, busy.closed.Load())
}

func TestAdd_RefusesWhatDoesNotFitInMemory(t *testing.T) {
	const gib = 1 << 30
	h := newHost(t, func(c *Config) { c.Memory = 4 * gib })
	o := offer(1, &fakeExpert{bytes: 3 * gib})
	o.Bytes = 3 * gib
	require.NoError(t, h.Add(context.Background(), o))
	require.EqualValues(t, gib, h.Describe().FreeMemory)

	o = offer(2, &fakeExpert{bytes: 2 * gib})
	o.Bytes = 2 * gib
	err := h.Add(context.Background(), o)
	var m *MemoryError
	require.ErrorAs(t, err, &m)
	require.Equal(t, MemoryError{Needed: 2 * gib, Free: gib}, *m)
	require.ErrorIs(t, err, expert.ErrTooLarge)
	require.ErrorContains(t, err, "expert-2 needs 2.0 GiB of memory, 1.0 GiB are left: 1.0 GiB are missing")
	require.Len(t, h.List(), 1, "what was refused at once is not listed")

	// It says less than it takes.
	liar := &fakeExpert{bytes: 2 * gib}
	require.ErrorAs(t, h.Add(context.Background(), offer(3, liar)), &m)
	require.Equal(t, expert.StateFailed, state(t, h, 3))
	require.EqualValues(t, 1, liar.closed.Load())
	require.EqualValues(t, gib, h.Describe().FreeMemory)

	require.NoError(t, h.Remove(context.Background(), 1))
	require.EqualValues(t, 4*gib, h.Describe().FreeMemory)
	o.ID = 3
	require.NoError(t, h.Add(context.Background(), o))
}

func TestList_IsSortedAndHasEachExpertOnce(t *testing.T) {
	h := newHost(t, nil)
	for _, id := range []expert.ID{9, 1 << 63, 3} {
		host(t, h, id, &fakeExpert{})
	}
	_, err := h.Begin(Offer{ID: 4, Name: "mixtral/0/3"})
	require.NoError(t, err)
	list := h.List()
	require.Len(t, list, 4)
	for i, id := range []expert.ID{3, 4, 9, 1 << 63} {
		require.Equal(t, id, list[i].ID)
	}
	require.Equal(t, "mixtral/0/3", list[1].Name)
	require.Equal(t, expert.StateLoading, list[1].State)
	ready, _ := h.Ready()
	require.Equal(t, []expert.ID{3, 9, 1 << 63}, ready)
}
