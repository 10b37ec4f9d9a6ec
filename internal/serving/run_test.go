package serving

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestRun_AnswersEachPairInOrder(t *testing.T) {
	h := newHost(t, nil)
	one, two := &fakeExpert{shift: 1}, &fakeExpert{shift: 2}
	host(t, h, 1, one)
	host(t, h, 2, two)
	x := input(5, 3)
	asked := []expert.Pair{
		{Expert: 2, Rows: []int32{4, 0, 4}},
		{Expert: 9},
		{Expert: 1},
		{Expert: 1, Rows: []int32{1, 2}, Digest: one.Spec().Digest},
		{Expert: 2, Numerics: "tile"},
	}
	ticket := h.Admit(5, fakeHidden, asked)
	defer ticket.Release()
	results := ticket.Run(context.Background(), x)
	require.Len(t, results, 5)
	requireOutput(t, results[0], wanted(x, asked[0].Rows, 2))
	require.ErrorIs(t, results[1].Err, expert.ErrNotFound)
	requireOutput(t, results[2], wanted(x, nil, 1))
	requireOutput(t, results[3], wanted(x, asked[3].Rows, 1))
	require.ErrorIs(t, results[4].Err, expert.ErrUnimplemented)
	require.Equal(t, two.Spec().Digest, results[0].Digest)
	require.Equal(t, "exact-1", results[0].Numerics)
}

func TestRun_ComputesInTheNumericsThatThePairWants(t *testing.T) {
	h := newHost(t, nil)
	host(t, h, 1, &fakeExpert{others: []expert.Expert{&fakeExpert{shift: 5, numerics: "tile-2"}}})
	x := input(1, 0)
	results := h.Local(context.Background(), x, []expert.Pair{{Expert: 1}, {Expert: 1, Numerics: "tile"}})
	requireOutput(t, results[0], wanted(x, nil, 0))
	requireOutput(t, results[1], wanted(x, nil, 5))
	require.Equal(t, "exact-1", results[0].Numerics)
	require.Equal(t, "tile-2", results[1].Numerics)
}

func TestRun_AQuickExpertsRowsAreNotCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where no pass takes any time, not even one that the system puts aside
		h := newHost(t, nil)
		e, err := expert.NewIdentity(fakeHidden)
		require.NoError(t, err)
		host(t, h, 1, e)
		x := input(3, 0)
		call := func(p expert.Pair) expert.Result { return h.Local(context.Background(), x, []expert.Pair{p})[0] }
		require.Same(t, x, call(expert.Pair{Expert: 1}).Output)
		span := call(expert.Pair{Expert: 1, Rows: []int32{1, 2}})
		requireOutput(t, span, x.Float32s()[fakeHidden:])
		require.True(t, sameMemory(x.Float32s(), span.Output.Float32s()))
		requireOutput(t, call(expert.Pair{Expert: 1, Rows: []int32{2, 0}}), append(append([]float32{}, x.Float32s()[2*fakeHidden:]...), x.Float32s()[:fakeHidden]...))
	})
}

func TestRun_ABadRowHarmsNobodyElse(t *testing.T) {
	h := newHost(t, nil)
	host(t, h, 1, &fakeExpert{})
	x := input(4, 0)
	x.Float32s()[2*fakeHidden+1] = float32(math.Inf(1))
	asked := []expert.Pair{{Expert: 1, Rows: []int32{0, 1}}, {Expert: 1, Rows: []int32{3, 2}}, {Expert: 1}}
	results := h.Local(context.Background(), x, asked)
	requireOutput(t, results[0], wanted(x, asked[0].Rows, 0))
	for _, r := range results[1:] {
		require.ErrorIs(t, r.Err, expert.ErrInvalidArgument)
		require.ErrorContains(t, r.Err, "holds NaN or Inf: expected finite values")
	}
	require.ErrorContains(t, results[1].Err, "row 1 for expert-1")

	h = newHost(t, func(c *Config) { c.RefuseNonFinite = false })
	host(t, h, 1, &fakeExpert{})
	requireOutput(t, h.Local(context.Background(), x, pairs(1))[0], wanted(x, nil, 0))
}

func TestRun_RefusesAnInputThatIsNotWhatWasAdmitted(t *testing.T) {
	h := newHost(t, nil)
	host(t, h, 1, &fakeExpert{})
	cases := map[string]struct {
		x    *tensor.Dense
		says string
	}{
		"fewer rows":   {input(2, 0), "expected the 3 rows that were announced, found 2"},
		"other width":  {expert.NewRows(make([]float32, 15), 5), "expected [rows, 4]"},
		"other dtype":  {tensor.New(tensor.WithShape(3, 4), tensor.Of(tensor.Float64)), "expected float32"},
		"nothing":      {nil, "found none"},
		"one row flat": {tensor.New(tensor.WithShape(12), tensor.Of(tensor.Float32)), "expected [rows, 4]"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ticket := h.Admit(3, fakeHidden, pairs(1, 9))
			defer ticket.Release()
			results := ticket.Run(context.Background(), c.x)
			require.ErrorIs(t, results[0].Err, expert.ErrInvalidArgument)
			require.ErrorContains(t, results[0].Err, c.says)
			require.ErrorIs(t, results[1].Err, expert.ErrNotFound)
		})
	}
	require.ErrorIs(t, h.Local(context.Background(), nil, pairs(1))[0].Err, expert.ErrInvalidArgument)
	require.NoError(t, h.Local(context.Background(), input(3, 0), pairs(1))[0].Err)
}

func TestRun_ComputesTogetherWhatWaitsWhenAPassEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(2))
		var sizes []int
		e := &fakeExpert{}
		host(t, h, 1, e)
		e.before = func(ctx context.Context, rows int, x []float32) error {
			sizes = append(sizes, rows)
			return slowly(time.Second, 0)(ctx, rows, x)
		}
		answers := make(chan error, 16)
		call := func(i int) {
			x := input(1+i%2, float32(10*i))
			r := h.Local(context.Background(), x, pairs(1))[0]
			if r.Err == nil {
				requireOutput(t, r, wanted(x, nil, 0))
			}
			answers <- r.Err
		}
		started := time.Now()
		go call(0)
		synctest.Wait()
		for i := 1; i < 16; i++ {
			go call(i)
		}
		for range 16 {
			require.NoError(t, <-answers)
		}
		require.Equal(t, []int{1, 23}, sizes)
		require.Equal(t, 2*time.Second, time.Since(started), "no delay is added")
	})
}

func TestRun_ExpertsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, func(c *Config) { c.MaxRows, c.QueueRows = 10, 1000 }, withSlots(1))
		for id := range expert.ID(2) {
			e := &fakeExpert{}
			host(t, h, id, e)
			e.before = slowly(time.Second, 0)
		}
		// The first expert has 50 passes to do; a call to the other one waits for one of them.
		answers := make(chan error, 50)
		for range 50 {
			go func() { answers <- h.Local(context.Background(), input(10, 0), pairs(0))[0].Err }()
		}
		synctest.Wait()
		time.Sleep(1500 * time.Millisecond)
		started := time.Now()
		require.NoError(t, h.Local(context.Background(), input(1, 0), pairs(1))[0].Err)
		require.Equal(t, 1500*time.Millisecond, time.Since(started))
		for range 50 {
			require.NoError(t, <-answers)
		}
	})
}

func TestRun_PairsForSeveralExpertsRunSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(4))
		for id := range expert.ID(8) {
			host(t, h, id, &fakeExpert{before: slowly(time.Second, 0), shift: float32(id)})
		}
		x := input(2, 0)
		started := time.Now()
		for id, r := range h.Local(context.Background(), x, pairs(0, 1, 2, 3, 4, 5, 6, 7)) {
			requireOutput(t, r, wanted(x, nil, float32(id)))
		}
		require.Equal(t, 2*time.Second, time.Since(started))
	})
}

func TestRun_ACallerLeavesAtItsDeadlineAndItsWorkIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(1))
		stopped := 0
		e := &fakeExpert{}
		e.before = func(ctx context.Context, rows int, x []float32) error {
			err := slowly(500*time.Millisecond, 0)(ctx, rows, x)
			if err != nil {
				stopped++
			}
			return err
		}
		host(t, h, 1, e)
		e.passes.Store(0)
		x := input(1, 0)
		call := func(d time.Duration) (expert.Result, time.Duration) {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			defer cancel()
			started := time.Now()
			r := h.Local(ctx, x, pairs(1))[0]
			return r, time.Since(started)
		}
		// Work begun is stopped.
		r, took := call(100 * time.Millisecond)
		require.ErrorIs(t, r.Err, expert.ErrDeadlineExceeded)
		require.Equal(t, 100*time.Millisecond, took)
		synctest.Wait()
		require.Equal(t, 1, stopped)
		require.Zero(t, h.Load().QueuedRows)

		// Work that others wait for goes on, and work not begun is not done.
		answers := make(chan error, 1)
		go func() {
			r, _ := call(time.Minute)
			answers <- r.Err
		}()
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		go func() { answers <- h.Local(ctx, x, pairs(1))[0].Err }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-answers, expert.ErrCancelled)
		require.NoError(t, <-answers)
		require.Equal(t, 1, stopped)
		require.EqualValues(t, 2, e.passes.Load())
	})
}

func TestRun_ABatchGoesOnWhileAnyoneWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(1))
		e := &fakeExpert{before: slowly(time.Second, 0)}
		host(t, h, 1, e)
		x := input(1, 5)
		first := make(chan error)
		go func() { first <- h.Local(context.Background(), x, pairs(1))[0].Err }()
		synctest.Wait()

		ctx, cancel := context.WithCancel(context.Background())
		impatient, patient := make(chan error), make(chan expert.Result)
		go func() { impatient <- h.Local(ctx, x, pairs(1))[0].Err }()
		go func() { patient <- h.Local(context.Background(), x, pairs(1))[0] }()
		require.NoError(t, <-first)
		time.Sleep(300 * time.Millisecond)
		cancel()
		require.ErrorIs(t, <-impatient, expert.ErrCancelled)
		requireOutput(t, <-patient, wanted(x, nil, 0))
	})
}

func TestRun_AnAnswerInTimeIsKeptWhenAnotherPairIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(2))
		host(t, h, 1, &fakeExpert{before: slowly(time.Second, 0)})
		host(t, h, 2, &fakeExpert{before: slowly(10*time.Millisecond, 0)})
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		x := input(1, 0)
		results := h.Local(ctx, x, pairs(1, 2))
		require.ErrorIs(t, results[0].Err, expert.ErrDeadlineExceeded)
		requireOutput(t, results[1], wanted(x, nil, 0))
		synctest.Wait()
	})
}

func TestRun_ACtxThatEndedComputesNothing(t *testing.T) {
	h := newHost(t, nil)
	e := &fakeExpert{}
	host(t, h, 1, e)
	e.passes.Store(0)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the caller hung up"))
	r := h.Local(ctx, input(1, 0), pairs(1))[0]
	require.ErrorIs(t, r.Err, expert.ErrCancelled)
	require.ErrorContains(t, r.Err, "the caller hung up")
	require.Zero(t, e.passes.Load())
}

// batchOf makes n calls that share a batch: the expert is busy until they wait.
func batchOf(t *testing.T, h *Host, e *fakeExpert, n int, before func(context.Context, int, []float32) error) []expert.Result {
	t.Helper()
	busy := true
	e.before = func(ctx context.Context, rows int, x []float32) error {
		if busy {
			busy = false
			return slowly(time.Second, 0)(ctx, rows, x)
		}
		return before(ctx, rows, x)
	}
	go h.Local(context.Background(), input(1, 0), pairs(1))
	synctest.Wait()
	results := make([]expert.Result, n)
	done := make(chan struct{})
	for i := range n {
		go func() {
			results[i] = h.Local(context.Background(), input(1, float32(i)), pairs(1))[0]
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
	return results
}

func TestRun_OnlyTheCulpritOfABatchGetsItsError(t *testing.T) {
	failures := map[string]func() error{
		"error": func() error { return errors.New("row 3 is cursed") },
		"panic": func() error { panic("row 3 is cursed") },
	}
	for name, fail := range failures {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				h := newHost(t, nil, withSlots(1), WithLogger(zerolog.New(&log)))
				e := &fakeExpert{}
				host(t, h, 1, e)
				results := batchOf(t, h, e, 6, func(_ context.Context, _ int, x []float32) error {
					for i := 0; i < len(x); i += fakeHidden {
						if x[i] == 3 {
							return fail()
						}
					}
					return nil
				})
				for i, r := range results {
					if i == 3 {
						require.ErrorIs(t, r.Err, expert.ErrInternal)
						require.NotContains(t, r.Err.Error(), "goroutine", "callers see no stack")
						continue
					}
					requireOutput(t, r, wanted(input(1, float32(i)), nil, 0))
				}
				require.Equal(t, expert.StateReady, state(t, h, 1), "it answered its canary")
				if name == "panic" {
					require.Contains(t, log.String(), "row 3 is cursed")
					require.Contains(t, log.String(), "run_test.go", "the log has the stack")
				}
			})
		})
	}
}

func TestRun_AnExpertThatIsBrokenAfterAPanicIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(1))
		e := &fakeExpert{}
		host(t, h, 1, e)
		_, changed := h.Ready()
		results := batchOf(t, h, e, 4, func(context.Context, int, []float32) error { panic("weights are gone") })
		<-changed
		for _, r := range results {
			require.ErrorIs(t, r.Err, expert.ErrNotReady)
		}
		require.Equal(t, expert.StateFailed, state(t, h, 1))
		hosted, _ := h.Has(1)
		require.Contains(t, hosted.Problem, "weights are gone")
		e.before = nil
		require.NoError(t, h.Canary(context.Background(), 1))
		require.NoError(t, h.Local(context.Background(), input(1, 0), pairs(1))[0].Err)
	})
}

func TestRun_APanicOfAQuickExpertIsCaughtToo(t *testing.T) {
	h := newHost(t, nil)
	e := &fakeExpert{}
	host(t, h, 1, e)
	e.before = func(_ context.Context, rows int, _ []float32) error {
		if rows == 2 {
			panic("two")
		}
		return nil
	}
	require.ErrorIs(t, h.Local(context.Background(), input(2, 0), pairs(1))[0].Err, expert.ErrInternal)
	require.NoError(t, h.Local(context.Background(), input(1, 0), pairs(1))[0].Err)
}

func TestRun_AWrongOutputIsInternal(t *testing.T) {
	h := newHost(t, nil)
	e := &shrinking{}
	host(t, h, 1, e)
	e.on = true
	r := h.Local(context.Background(), input(2, 0), pairs(1))[0]
	require.ErrorIs(t, r.Err, expert.ErrInternal)
	require.ErrorContains(t, r.Err, "the expert's output is not float32 [2 4]")
}

// shrinking is an expert that loses a row when it is on.
type shrinking struct {
	fakeExpert
	on bool
}

func (e *shrinking) Forward(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	if e.on {
		return input(1, 0), nil
	}
	return e.fakeExpert.Forward(ctx, x)
}

func TestRun_ACallerLeavesOnlyWhenNobodyReadsItsRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil)
		e := &fakeExpert{}
		host(t, h, 1, e)
		e.before = func(context.Context, int, []float32) error {
			time.Sleep(time.Second) // whatever its ctx says
			return nil
		}
		setCost := func(perPass time.Duration, rows int) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.experts[1].lanes[0].cost = rate{}
			h.experts[1].lanes[0].cost.add(perPass, rows)
		}
		call := func(x *tensor.Dense) (expert.Result, time.Duration) {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			started := time.Now()
			r := h.Local(ctx, x, pairs(1))[0]
			clear(x.Float32s())
			return r, time.Since(started)
		}
		// A copy of the rows is lost in the pass: the caller leaves at its deadline.
		setCost(time.Millisecond, 100)
		r, took := call(input(4, 0))
		require.ErrorIs(t, r.Err, expert.ErrDeadlineExceeded)
		require.Equal(t, 100*time.Millisecond, took)
		time.Sleep(time.Second)
		synctest.Wait()
		// It is not: the pass has the caller's own rows, and the caller waits for it.
		setCost(time.Millisecond, 1<<20)
		r, took = call(input(4, 0))
		require.ErrorIs(t, r.Err, expert.ErrDeadlineExceeded)
		require.Equal(t, time.Second, took)
		synctest.Wait()
	})
}

func TestRows_AreCountedByExpert(t *testing.T) {
	h := newHost(t, nil)
	host(t, h, 1, &fakeExpert{})
	host(t, h, 2, &fakeExpert{})
	before, canaries := h.Rows()
	h.Local(context.Background(), input(5, 0), []expert.Pair{{Expert: 1}, {Expert: 2, Rows: []int32{3, 0}}, {Expert: 9}})
	eventually(t, func() bool {
		total, _ := h.Rows()
		return total == before+7
	}, "a pass counts its rows when it is over: its callers may have heard before")
	_, byExpert := h.Rows()
	require.Equal(t, map[expert.ID]uint64{1: canaries[1] + 5, 2: canaries[2] + 2}, byExpert)
	require.NoError(t, h.Remove(context.Background(), 1))
	total, byExpert := h.Rows()
	require.Equal(t, before+7, total)
	require.NotContains(t, byExpert, expert.ID(1))
}
