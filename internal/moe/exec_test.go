package moe_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/moe"
)

// fakeDispatcher runs experts in this process, each pair in a goroutine of its own.
type fakeDispatcher struct {
	indices map[expert.ID]int
	forward func(ctx context.Context, e int, y, x []float32) error
	delay   map[int]time.Duration // by expert
	fail    map[int]error         // likewise
	calls   atomic.Int32
	hosts   int // which add up: expert e is at host e%hosts, those of the last return outputs all the same
}

func newFakeDispatcher(name expert.LayerName, experts int, forward func(ctx context.Context, e int, y, x []float32) error) *fakeDispatcher {
	d := &fakeDispatcher{indices: map[expert.ID]int{}, forward: forward, delay: map[int]time.Duration{}, fail: map[int]error{}}
	for e := range experts {
		d.indices[name.Expert(e).ID()] = e
	}
	return d
}

func (d *fakeDispatcher) Dispatch(ctx context.Context, x *tensor.Dense, pairs []expert.Pair, each func(int, bool)) ([]moe.Answer, error) {
	d.calls.Add(1)
	answers := make([]moe.Answer, len(pairs))
	var all sync.WaitGroup
	for i, p := range pairs {
		all.Go(func() {
			e := d.indices[p.Expert]
			answers[i] = d.answer(ctx, e, x, p)
			if each != nil {
				each(i, answers[i].Err != nil)
			}
		})
	}
	all.Wait()
	if d.hosts > 0 {
		d.addUp(x, pairs, answers)
	}
	return answers, nil
}

// addUp puts a sum for each host in the place of outputs that have weights.
func (d *fakeDispatcher) addUp(x *tensor.Dense, pairs []expert.Pair, answers []moe.Answer) {
	sums := map[int]*expert.Sum{}
	hidden := x.Shape()[1]
	for i, p := range pairs {
		h := d.indices[p.Expert] % d.hosts
		if answers[i].Err != nil || p.Weights == nil || h == d.hosts-1 {
			continue
		}
		if sums[h] == nil {
			sums[h] = &expert.Sum{Output: expert.NewRows(make([]float32, len(x.Float32s())), hidden)}
		}
		expert.AddWeighted(sums[h].Output.Float32s(), answers[i].Output.Float32s(), p.Rows, p.Weights, hidden)
		answers[i].Output, answers[i].Sum = nil, sums[h]
	}
}

func (d *fakeDispatcher) answer(ctx context.Context, e int, x *tensor.Dense, p expert.Pair) moe.Answer {
	lost := func(err error) moe.Answer { return moe.Answer{Err: &expert.CallError{Expert: p.Expert, Err: err}} }
	if d.delay[e] > 0 {
		select {
		case <-time.After(d.delay[e]):
		case <-ctx.Done():
			return lost(context.Cause(ctx))
		}
	}
	if err := d.fail[e]; err != nil {
		return lost(err)
	}
	hidden := x.Shape()[1]
	var in []float32
	for _, r := range p.Rows {
		in = append(in, x.Float32s()[int(r)*hidden:(int(r)+1)*hidden]...)
	}
	y := make([]float32, len(in))
	if err := d.forward(ctx, e, y, in); err != nil {
		return lost(err)
	}
	return moe.Answer{Output: expert.NewRows(y, hidden), Expert: p.Expert, Numerics: "exact-1"}
}

// callable makes the layer one that can be called, and the dispatcher that has its experts.
func (l layer) callable(t *testing.T) (*moe.Layer, *fakeDispatcher) {
	name, err := expert.NewLayerName("fixture", "", "0")
	require.NoError(t, err)
	callable := &moe.Layer{Name: name, Gate: l.gate}
	if l.shared != nil {
		callable.Shared = l.shared
	}
	return callable, newFakeDispatcher(name, len(l.experts), func(ctx context.Context, e int, y, x []float32) error {
		return l.experts[e].ForwardRows(ctx, y, x)
	})
}

func rowsOf(values []float32, shape ...int) *tensor.Dense {
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(values))
}

func TestForward_GivesTheGoldenOutputOfEveryFamily(t *testing.T) {
	eachLayer(t, func(t *testing.T, l layer) {
		callable, d := l.callable(t)
		hidden := l.gate.Hidden()
		for _, rows := range []string{"rows17", "rows1"} {
			x := l.floats(t, rows+".input")
			n := len(x) / hidden
			out, err := callable.Forward(t.Context(), d, moe.Call{X: rowsOf(x, n, hidden)})
			require.NoError(t, err)
			l.near(t, rows+".block_output", out.Y.Float32s())
			l.near(t, rows+".router_logits", out.Routing.Logits)
			require.Equal(t, l.forward(t, x, l.gate.Route(x, n)), out.Y.Float32s(), "the parts give other bits than the whole")
			require.Equal(t, tensor.Shape{n, hidden}, out.Y.Shape())

			// A caller who routes himself, with the same choice, gets the same bits.
			want, _, err := l.golden.Int64s(l.prefix + "." + rows + ".indices")
			require.NoError(t, err)
			own, err := callable.Forward(t.Context(), d, moe.Call{X: rowsOf(x, n, hidden), Experts: want, Weights: out.Routing.Weights})
			require.NoError(t, err)
			require.Equal(t, out.Y.Float32s(), own.Y.Float32s())
			require.Equal(t, out.Routing.Logits, own.Routing.Logits)

			// Hosts that add up their own give the same to within rounding, and it is said.
			d.hosts = 3
			summed, err := callable.Forward(t.Context(), d, moe.Call{X: rowsOf(x, n, hidden), Combine: moe.CombineAtPeers})
			require.NoError(t, err)
			l.near(t, rows+".block_output", summed.Y.Float32s())
			sums := slices.ContainsFunc(summed.Answers, func(a moe.Answer) bool { return a.Sum != nil })
			require.Equal(t, sums, strings.Contains(summed.Numerics, expert.SumNumerics), summed.Numerics)
			require.False(t, sums && l.gate.Rule().ScaleInput)
			d.hosts = 0

			// Three axes: sequences of their own, which matters where an expert takes so many rows of each.
			three, err := callable.Forward(t.Context(), d, moe.Call{X: rowsOf(x, n, 1, hidden)})
			require.NoError(t, err)
			require.Equal(t, tensor.Shape{n, 1, hidden}, three.Y.Shape())
			require.Equal(t, l.forward(t, x, l.gate.Route(x, 1)), three.Y.Float32s())
		}
		one := l.floats(t, "rows1.input")
		flat, err := callable.Forward(t.Context(), d, moe.Call{X: rowsOf(one, hidden)})
		require.NoError(t, err)
		require.Equal(t, tensor.Shape{hidden}, flat.Y.Shape())
		l.near(t, "rows1.block_output", flat.Y.Float32s())
	})
}

func TestForward_SkipLeavesExactlyTheLostExpertsOut(t *testing.T) {
	eachLayer(t, func(t *testing.T, l layer) {
		callable, d := l.callable(t)
		hidden := l.gate.Hidden()
		x := l.floats(t, "rows17.input")
		call := moe.Call{X: rowsOf(x, 17, hidden)}
		whole, err := callable.Forward(t.Context(), d, call)
		require.NoError(t, err)
		lost := int(whole.Routing.Indices[0])
		d.fail[lost] = expert.ErrNotFound

		_, err = callable.Forward(t.Context(), d, call)
		require.ErrorIs(t, err, expert.ErrNotFound)
		var failed *expert.CallError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, callable.Name.Expert(lost).ID(), failed.Expert)

		call.Policy, call.Combine, d.hosts = moe.PolicySkip, moe.CombineAtPeers, 3
		summed, err := callable.Forward(t.Context(), d, call)
		require.NoError(t, err)
		require.Equal(t, []expert.Name{callable.Name.Expert(lost)}, summed.Missing)

		call.Combine = moe.CombineAtCaller
		out, err := callable.Forward(t.Context(), d, call)
		require.NoError(t, err)
		require.Equal(t, []expert.Name{callable.Name.Expert(lost)}, out.Missing)
		for i, v := range out.Y.Float32s() {
			require.InDelta(t, v, summed.Y.Float32s()[i], 1e-5*max(1, math.Abs(float64(v))))
		}
		want := l.without(t, x, whole.Routing, lost)
		k := whole.Routing.K
		for r := range 17 {
			got := out.Y.Float32s()[r*hidden : (r+1)*hidden]
			hit := false
			for _, e := range whole.Routing.Indices[r*k : (r+1)*k] {
				hit = hit || int(e) == lost
			}
			if !hit {
				require.Equal(t, whole.Y.Float32s()[r*hidden:(r+1)*hidden], got, "row %d did not choose the lost expert", r)
				continue
			}
			for i, v := range want[r*hidden : (r+1)*hidden] {
				require.InDelta(t, v, got[i], 1e-5*max(1, math.Abs(v)), "row %d", r)
			}
		}
	})
}

// without computes, in float64 and row by row, what is left of the layer's output when an expert is lost.
func (l layer) without(t *testing.T, x []float32, routing *moe.Routing, lost int) []float64 {
	hidden, k := l.gate.Hidden(), routing.K
	y := make([]float64, len(x))
	row, out := make([]float32, hidden), make([]float32, hidden)
	for r := range routing.Rows {
		in := x[r*hidden : (r+1)*hidden]
		var all, there float64
		for i, e := range routing.Indices[r*k : (r+1)*k] {
			w := float64(routing.Weights[r*k+i])
			all += w
			if e >= 0 && int(e) != lost {
				there += w
			}
		}
		for i, e := range routing.Indices[r*k : (r+1)*k] {
			if e < 0 || int(e) == lost {
				continue
			}
			w, scale := float64(routing.Weights[r*k+i]), all/there
			copy(row, in)
			if l.gate.Rule().ScaleInput { // the weight has gone into the input
				for j := range row {
					row[j] *= float32(w)
				}
				w = 1
			}
			require.NoError(t, l.experts[e].ForwardRows(t.Context(), out, row))
			for j, v := range out {
				y[r*hidden+j] += w * scale * float64(v)
			}
		}
	}
	if l.shared != nil {
		shared := make([]float32, len(x))
		require.NoError(t, l.shared.ForwardRows(t.Context(), shared, x))
		scale := l.gate.SharedScale(x)
		for i, v := range shared {
			w := 1.0
			if scale != nil {
				w = float64(scale[i/hidden])
			}
			y[i] += w * float64(v)
		}
	}
	return y
}

// smallLayer has 4 experts of which each row takes 2: expert e multiplies by e+1, the weights are 1/2, and row i of small
// inputs chooses experts i%4 and (i+1)%4.
func smallLayer(t *testing.T) (*moe.Layer, *fakeDispatcher) {
	weight := make([]float32, 16)
	for e := range 4 {
		weight[4*e+e] = 1
	}
	gate, err := moe.NewGate(moe.Rule{TopK: 2, Weight: moe.WeightChosenSoftmax, Scale: 1}, moe.Tensors{Weight: weight}, 4)
	require.NoError(t, err)
	name, err := expert.NewLayerName("small", "", "0")
	require.NoError(t, err)
	return &moe.Layer{Name: name, Gate: gate}, newFakeDispatcher(name, 4, func(_ context.Context, e int, y, x []float32) error {
		for i, v := range x {
			y[i] = float32(e+1) * v
		}
		return nil
	})
}

// smallRow chooses experts a and b, with weights 1/2 each.
func smallRow(a, b int) []float32 {
	x := make([]float32, 4)
	x[a], x[b] = 2, 2
	return x
}

func TestForward_NamesAFewOfManyFailures(t *testing.T) {
	l, d := smallLayer(t)
	for e := range 4 {
		d.fail[e] = fmt.Errorf("%w: lost %d", expert.ErrNotFound, e)
	}
	d.fail[3] = expert.ErrNotReady
	_, err := l.Forward(t.Context(), d, moe.Call{X: rowsOf(smallRow(0, 1), 1, 4), Experts: []int64{0, 1, 2, 3}, Weights: []float32{1, 1, 1, 1}})
	require.ErrorIs(t, err, expert.ErrNotFound)
	require.ErrorIs(t, err, expert.ErrNotReady, "what is not told is there all the same")
	require.Equal(t, []string{"lost 0", "lost 1", "lost 2"}, regexp.MustCompile("lost [0-9]").FindAllString(err.Error(), -1))
	require.True(t, strings.HasSuffix(err.Error(), " (and 1 more)"), err.Error())
}

func TestForward_ARowThatLostAllItsExpertsIsZero(t *testing.T) {
	l, d := smallLayer(t)
	d.fail[0], d.fail[1] = expert.ErrNotFound, expert.ErrNotReady
	out, err := l.Forward(t.Context(), d, moe.Call{X: rowsOf(append(smallRow(0, 1), smallRow(1, 2)...), 2, 4), Policy: moe.PolicySkip})
	require.NoError(t, err)
	require.Equal(t, []float32{0, 0, 0, 0, 0, 6, 6, 0}, out.Y.Float32s())
	require.Len(t, out.Missing, 2)
}

func TestForward_AQuorumDoesNotWaitForStragglers(t *testing.T) {
	for name, c := range map[string]struct {
		delay map[int]time.Duration
		fail  map[int]error
		took  time.Duration
		gone  int
		says  string
	}{
		"one is late":            {delay: map[int]time.Duration{1: 10 * time.Second}, took: 100 * time.Millisecond, gone: 1},
		"late but in time":       {delay: map[int]time.Duration{1: 50 * time.Millisecond}, took: 50 * time.Millisecond},
		"the quorum itself late": {delay: map[int]time.Duration{0: time.Second, 1: 2 * time.Second}, took: 1100 * time.Millisecond, gone: 1},
		"a row without quorum":   {fail: map[int]error{0: expert.ErrNotFound, 1: expert.ErrNotFound}, says: "row 0 lacks answers"},
		"one failed":             {fail: map[int]error{1: expert.ErrNotFound}, gone: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, d := smallLayer(t)
				d.delay, d.fail = c.delay, c.fail
				start := time.Now()
				out, err := l.Forward(t.Context(), d, moe.Call{
					X: rowsOf(append(smallRow(0, 1), smallRow(0, 2)...), 2, 4), KMin: 1, AfterKMin: 100 * time.Millisecond,
				})
				require.Equal(t, c.took, time.Since(start))
				if c.says != "" {
					require.ErrorIs(t, err, expert.ErrNotFound)
					require.ErrorContains(t, err, c.says)
					return
				}
				require.NoError(t, err)
				require.Len(t, out.Missing, c.gone)
				want := []float32{3, 3, 0, 0} // experts 0 and 1: (1+2)/2 of 2
				if c.gone == 1 {
					want = []float32{2, 2, 0, 0} // expert 0 alone, its weight made up
				}
				require.Equal(t, want, out.Y.Float32s()[:4])
			})
		})
	}
}

func TestForward_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := smallLayer(t)
		d.delay[0] = time.Minute
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, expert.ErrDeadlineExceeded)
		defer cancel()
		start := time.Now()
		_, err := l.Forward(ctx, d, moe.Call{X: rowsOf(smallRow(0, 1), 4)})
		require.ErrorIs(t, err, expert.ErrDeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestForward_TakesTheCallersOwnChoice(t *testing.T) {
	l, d := smallLayer(t)
	x := append(smallRow(0, 1), smallRow(2, 3)...)
	out, err := l.Forward(t.Context(), d, moe.Call{
		X: rowsOf(x, 2, 4), Experts: []int64{3, -1, -1, 0, 1, 3}, Weights: []float32{1, 0, 0, 0.5, 2, 0.25},
	})
	require.NoError(t, err)
	require.Equal(t, []float32{8, 8, 0, 0, 0, 0, 11, 11}, out.Y.Float32s())
	require.Equal(t, 3, out.Routing.K)
	require.Equal(t, l.Gate.Logits(x), out.Routing.Logits)

	// Nobody at all: nothing is sent.
	d.calls.Store(0)
	out, err = l.Forward(t.Context(), d, moe.Call{X: rowsOf(x, 2, 4), Experts: []int64{-1, -1}, Weights: []float32{0, 0}})
	require.NoError(t, err)
	require.Equal(t, make([]float32, 8), out.Y.Float32s())
	require.Zero(t, d.calls.Load())
}

func TestForward_RefusesBeforeAnythingIsSent(t *testing.T) {
	l, d := smallLayer(t)
	x := rowsOf(smallRow(0, 1), 1, 4)
	nan := float32(math.NaN())
	for name, c := range map[string]moe.Call{
		"no input":        {},
		"other width":     {X: rowsOf(make([]float32, 6), 2, 3)},
		"four axes":       {X: rowsOf(make([]float32, 4), 1, 1, 1, 4)},
		"float64":         {X: tensor.New(tensor.WithShape(1, 4), tensor.WithBacking(make([]float64, 4)))},
		"no such expert":  {X: x, Experts: []int64{4}, Weights: []float32{1}},
		"below none":      {X: x, Experts: []int64{-2}, Weights: []float32{1}},
		"fewer weights":   {X: x, Experts: []int64{1, 2}, Weights: []float32{1}},
		"weights alone":   {X: x, Weights: []float32{1}},
		"uneven":          {X: rowsOf(make([]float32, 8), 2, 4), Experts: []int64{1, 2, 3}, Weights: []float32{1, 1, 1}},
		"NaN as weight":   {X: x, Experts: []int64{1}, Weights: []float32{nan}},
		"too many to top": {X: x, TopK: 5},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.Forward(t.Context(), d, c)
			require.ErrorIs(t, err, expert.ErrInvalidArgument)
		})
	}
	require.Zero(t, d.calls.Load())
}

func TestForward_TopKOverridesTheModels(t *testing.T) {
	l, d := smallLayer(t)
	out, err := l.Forward(t.Context(), d, moe.Call{X: rowsOf([]float32{0, 0, 5, 4}, 1, 4), TopK: 1})
	require.NoError(t, err)
	require.Equal(t, []int32{2}, out.Routing.Indices)
	require.Equal(t, []float32{0, 0, 15, 12}, out.Y.Float32s())
}

// brokenExpert is a shared expert that fails.
type brokenExpert struct{ expert.Expert }

var errBroken = errors.New("broken")

func (brokenExpert) Forward(context.Context, *tensor.Dense) (*tensor.Dense, error) {
	return nil, fmt.Errorf("%w: on purpose", errBroken)
}

func TestForward_TellsWhenTheSharedExpertFails(t *testing.T) {
	l, d := smallLayer(t)
	l.Shared = brokenExpert{}
	_, err := l.Forward(t.Context(), d, moe.Call{X: rowsOf(smallRow(0, 1), 4)})
	require.ErrorIs(t, err, errBroken)
	require.ErrorContains(t, err, "shared expert of small/0")
}

func TestMetrics_CountWhatLayersDo(t *testing.T) {
	reg := prometheus.NewRegistry()
	l, d := smallLayer(t)
	l.Metrics = moe.NewMetrics(reg).Layer(l.Name)
	d.fail[1] = expert.ErrNotFound
	call := moe.Call{X: rowsOf(append(smallRow(0, 1), smallRow(1, 2)...), 2, 4)}
	_, err := l.Forward(t.Context(), d, call)
	require.Error(t, err)
	call.Policy = moe.PolicySkip
	_, err = l.Forward(t.Context(), d, call)
	require.NoError(t, err)
	families, err := reg.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := []string{f.GetName()}
			for _, label := range m.GetLabel() {
				key = append(key, label.GetValue())
			}
			if v := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()); v != 0 {
				got[strings.Join(key, " ")] = v
			}
		}
	}
	require.Equal(t, map[string]float64{
		"kwaai_moe_calls_total small/0 NOT_FOUND": 1,
		"kwaai_moe_calls_total small/0 OK":        1,
		"kwaai_moe_rows_total small/0":            2,
		"kwaai_moe_skipped_experts_total small/0": 1,
		"kwaai_moe_call_seconds small/0":          1,
	}, got)
}
