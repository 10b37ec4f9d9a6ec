package serving

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestAdmit_DecidesEveryPairOnItsOwn(t *testing.T) {
	h := newHost(t, func(c *Config) { c.MaxRows, c.QueueRows = 8, 64 })
	e := &fakeExpert{}
	host(t, h, 7, e)
	_, err := h.Begin(offer(8, e))
	require.NoError(t, err)

	cases := map[string]struct {
		rows, hidden int
		pair         expert.Pair
		is           error
		says         string
	}{
		"admitted":                    {8, 4, expert.Pair{Expert: 7}, nil, ""},
		"admitted with its digest":    {3, 4, expert.Pair{Expert: 7, Digest: e.Spec().Digest}, nil, ""},
		"admitted with its numerics":  {3, 4, expert.Pair{Expert: 7, Numerics: "exact-1"}, nil, ""},
		"admitted in any version":     {3, 4, expert.Pair{Expert: 7, Numerics: "exact"}, nil, ""},
		"few rows of a large batch":   {9000, 4, expert.Pair{Expert: 7, Rows: []int32{8999, 0, 0}}, nil, ""},
		"unknown":                     {3, 4, expert.Pair{Expert: 9}, expert.ErrNotFound, "expert-9"},
		"loading":                     {3, 4, expert.Pair{Expert: 8}, expert.ErrNotReady, "expert-8: expert not ready: loading"},
		"other weights":               {3, 4, expert.Pair{Expert: 7, Digest: expert.Digest{1}}, expert.ErrDigestMismatch, e.Spec().Digest.String()},
		"wrong width":                 {3, 5, expert.Pair{Expert: 7}, expert.ErrInvalidArgument, "rows of 5 elements: expert-7 expects 4"},
		"empty batch":                 {0, 4, expert.Pair{Expert: 7}, expert.ErrInvalidArgument, "empty batch"},
		"no rows of the batch":        {3, 4, expert.Pair{Expert: 7, Rows: []int32{}}, expert.ErrInvalidArgument, "empty batch"},
		"a row beyond the batch":      {3, 4, expert.Pair{Expert: 7, Rows: []int32{2, 3}}, expert.ErrInvalidArgument, "row 3 for expert-7: expected 0 to 2"},
		"a row before the batch":      {3, 4, expert.Pair{Expert: 7, Rows: []int32{-1}}, expert.ErrInvalidArgument, "row -1"},
		"too many rows":               {9, 4, expert.Pair{Expert: 7}, expert.ErrTooLarge, "9 rows for expert-7: expected at most 8"},
		"other numerics":              {3, 4, expert.Pair{Expert: 7, Numerics: "tile"}, expert.ErrUnimplemented, "expert-7 computes in exact-1 here"},
		"another version of numerics": {3, 4, expert.Pair{Expert: 7, Numerics: "exact-2"}, expert.ErrUnimplemented, "exact-2"},
		"half a name of numerics":     {3, 4, expert.Pair{Expert: 7, Numerics: "exa"}, expert.ErrUnimplemented, "exa"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ticket := h.Admit(c.rows, c.hidden, []expert.Pair{c.pair, {Expert: 9}})
			defer ticket.Release()
			refused := ticket.Refused()
			require.Len(t, refused, 2)
			require.ErrorIs(t, refused[1], expert.ErrNotFound)
			if c.is == nil {
				require.NoError(t, refused[0])
				require.Equal(t, c.pair.RowCount(c.rows), h.Load().QueuedRows)
				return
			}
			require.ErrorIs(t, refused[0], c.is)
			require.ErrorContains(t, refused[0], c.says)
			require.Zero(t, h.Load().QueuedRows)
		})
	}
	ticket := h.Admit(1, 4, pairs(7))
	require.Nil(t, ticket.Refused())
	ticket.Release()
}

func TestAdmit_BoundsTheQueueInRows(t *testing.T) {
	h := newHost(t, func(c *Config) { c.MaxRows, c.QueueRows = 4, 10 })
	host(t, h, 7, &fakeExpert{})
	a, b := h.Admit(4, 4, pairs(7)), h.Admit(4, 4, pairs(7))
	require.Nil(t, a.Refused())
	require.Nil(t, b.Refused())
	require.Equal(t, 8, h.Load().QueuedRows)

	c := h.Admit(3, 4, pairs(7, 7))
	var o *expert.OverloadedError
	for _, err := range c.Refused() {
		require.ErrorAs(t, err, &o)
		require.Positive(t, o.RetryAfter)
	}
	d := h.Admit(2, 4, pairs(7))
	require.Nil(t, d.Refused(), "what fits is taken, whoever was refused before")
	a.Release()
	e := h.Admit(4, 4, pairs(7))
	require.Nil(t, e.Refused())
	for _, ticket := range []*Ticket{b, c, d, e} {
		ticket.Release()
	}
}

func TestAdmit_BoundsTheQueueInBytes(t *testing.T) {
	h := newHost(t, func(c *Config) { c.QueueBytes = 1 << 20 })
	const hidden = 1 << 14 // a row takes 64 KiB as input, and as much as output: the queue holds 8
	host(t, h, 7, &fakeExpert{hidden: hidden})
	never := h.Admit(9, hidden, pairs(7))
	require.ErrorIs(t, never.Refused()[0], expert.ErrTooLarge)
	require.ErrorContains(t, never.Refused()[0], "expected at most 1.0 MiB")
	a := h.Admit(5, hidden, pairs(7))
	require.Nil(t, a.Refused())
	b := h.Admit(4, hidden, pairs(7))
	require.ErrorIs(t, b.Refused()[0], expert.ErrOverloaded)
	// The input counts once, each pair's output on its own: 2 + 2 + 2 rows.
	c := h.Admit(2, hidden, pairs(7, 7, 7))
	require.NoError(t, c.Refused()[0])
	require.NoError(t, c.Refused()[1])
	require.ErrorIs(t, c.Refused()[2], expert.ErrOverloaded)
	for _, ticket := range []*Ticket{never, a, b, c} {
		ticket.Release()
	}
}

func TestAdmit_ABusyExpertLeavesRoomForOthers(t *testing.T) {
	h := newHost(t, func(c *Config) { c.MaxRows, c.QueueRows = 100, 100 })
	host(t, h, 7, &fakeExpert{})
	host(t, h, 8, &fakeExpert{})
	var out []*Ticket
	for {
		ticket := h.Admit(5, 4, pairs(7))
		out = append(out, ticket)
		if ticket.Refused() != nil {
			require.ErrorIs(t, ticket.Refused()[0], expert.ErrOverloaded)
			break
		}
	}
	require.Equal(t, 80, h.Load().QueuedRows)
	other := h.Admit(20, 4, pairs(8))
	require.Nil(t, other.Refused())
	for _, ticket := range append(out, other) {
		ticket.Release()
	}
	all := h.Admit(100, 4, pairs(7))
	require.Nil(t, all.Refused(), "an idle queue takes what it can hold")
	all.Release()
}

func TestAdmit_SaysWhenToComeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, func(c *Config) { c.MaxRows, c.QueueRows = 100, 400 }, withSlots(1))
		host(t, h, 7, &fakeExpert{before: slowly(0, time.Millisecond)})
		require.NoError(t, h.Local(context.Background(), input(100, 0), pairs(7))[0].Err)
		synctest.Wait() // the answer is there before the pass is counted
		require.Equal(t, time.Millisecond, h.Load().ServiceTime)

		var out []*Ticket
		for range 5 {
			out = append(out, h.Admit(100, 4, pairs(7)))
		}
		var o *expert.OverloadedError
		require.ErrorAs(t, out[4].Refused()[0], &o)
		require.Equal(t, 200*time.Millisecond, o.RetryAfter, "when the queue is half empty")
		for _, ticket := range out {
			ticket.Release()
		}
	})
}

// Or it would stand still until its callers are back.
func TestAdmit_AShortQueueIsNotLeftForLongerThanItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, func(c *Config) { c.MaxRows, c.QueueRows = 100, 400 }, withSlots(1))
		host(t, h, 7, &fakeExpert{before: slowly(0, 10*time.Microsecond)})
		require.NoError(t, h.Local(context.Background(), input(100, 0), pairs(7))[0].Err)
		synctest.Wait()
		var out []*Ticket
		for range 5 {
			out = append(out, h.Admit(100, 4, pairs(7)))
		}
		var o *expert.OverloadedError
		require.ErrorAs(t, out[4].Refused()[0], &o)
		require.Equal(t, 2*time.Millisecond, o.RetryAfter)
		for _, ticket := range out {
			ticket.Release()
		}
	})
}

func TestLoad_CountsWorkOnceWhenPassesShareTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, nil, withSlots(2))
		for id := range expert.ID(2) {
			host(t, h, id, &fakeExpert{before: slowly(0, time.Millisecond)})
		}
		// Two passes of 100 rows side by side take 100 ms: 0.5 ms a row.
		done := make(chan struct{})
		for id := range expert.ID(2) {
			go func() {
				h.Local(context.Background(), input(100, 0), pairs(id))
				done <- struct{}{}
			}()
		}
		<-done
		<-done
		synctest.Wait()
		require.Equal(t, 500*time.Microsecond, h.Load().ServiceTime)
	})
}
