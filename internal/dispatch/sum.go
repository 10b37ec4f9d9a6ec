package dispatch

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

// Where pairs have weights, their peer returns one sum for all of them. What is in a sum cannot be taken out again, so no pair may be in two:
// a sum is asked for only where nobody else is asked for any of its pairs. Whoever is asked beside it, because it is slow or silent, returns
// outputs. When the sum comes after all, it takes the place of those that came before it, if it still holds what is missing.

// settleForm decides whether an exchange may return a sum; where not, its pairs lose their weights. The lock is held.
func (c *call) settleForm(ex *exchange) {
	ex.sum = ex.peer != ""
	for k := range ex.items {
		i := ex.items[k].task
		ex.sum = ex.sum && ex.pairs[k].Weights != nil && !c.tasks[i].apart &&
			!slices.ContainsFunc(c.live, func(other *exchange) bool { return other.carries(i) })
	}
	if !ex.sum {
		for k := range ex.pairs {
			ex.pairs[k].Weights = nil
		}
	}
}

// judgeSum checks the sum that the good results of an exchange share; what is wrong with it is so for all of them.
func (c *call) judgeSum(ex *exchange, results []expert.Result) {
	sum := sharedSum(ex, results)
	err := fmt.Errorf("%w: expected a sum", expert.ErrBadReply)
	if sum != nil {
		rows := c.rows
		if sum.Rows != nil {
			rows = len(sum.Rows)
		}
		err = judgeRows(sum.Output, rows, c.hidden, c.d.cfg.CheckNaN)
	}
	for k := range ex.items {
		if it := &ex.items[k]; it.err == nil {
			it.err = err
		}
	}
}

// sharedSum returns the sum that the good results of an exchange share; nil where there is none.
func sharedSum(ex *exchange, results []expert.Result) *expert.Sum {
	for k := range ex.items {
		if ex.items[k].err == nil {
			return results[k].Sum
		}
	}
	return nil
}

// takeSum puts a sum in the place of the outputs that came before it, so that it can be the answer to those of its pairs that have
// none yet. Where all have one, it is not needed. The lock is held.
func (c *call) takeSum(ex *exchange, results []expert.Result) {
	missing := func(it item) bool { return it.err == nil && !c.tasks[it.task].decided }
	if !slices.ContainsFunc(ex.items, missing) {
		return
	}
	for k := range ex.items {
		if it := &ex.items[k]; it.err == nil && c.tasks[it.task].decided {
			c.answers[it.task] = c.answer(ex, it, &results[k])
		}
	}
}

// takeApart has the pair's output asked for in place of a sum: of all hosts, the one that gave none or no good one too.
func (t *task) takeApart(it *item, p peer.ID) {
	t.apart = true
	asked := t.askedOf(it)
	asked.begun-- // no attempt was lost: this happens once to a pair
	asked.tried = slices.DeleteFunc(asked.tried, func(other peer.ID) bool { return other == p })
}

// sumCheck is a sum to be compared with its parts.
type sumCheck struct {
	peer  peer.ID
	text  string
	x     *tensor.Dense // a sample of the rows, as the host saw them
	pairs []expert.Pair // what was added up in these rows; without weights
	parts []part
	codec codec.DType
	sum   []float32 // the same rows of the sum
	drawn int       // the pair whose output is compared with that of other hosts
}

// part is what a pair has in a sum.
type part struct {
	rows    []int32
	weights []float32
}

// drawSumCheck prepares a check for some of the sums: each pair in them is drawn like those that come alone.
func (c *call) drawSumCheck(ex *exchange, results []expert.Result) *sumCheck {
	share, sum := c.d.cfg.CheckShare, sharedSum(ex, results)
	if share == 0 || sum == nil {
		return nil
	}
	drawn := func(it item) bool { return it.err == nil && float64(c.d.dice.IntN(shareFaces)) < share*shareFaces }
	if !slices.ContainsFunc(ex.items, drawn) {
		return nil
	}
	k := &sumCheck{peer: ex.peer, codec: c.req.Codec}
	places := c.sampleSum(k, sum, len(ex.items))
	for n := range ex.items {
		it, r := &ex.items[n], &results[n]
		if it.err != nil {
			continue
		}
		if r.Digest.IsZero() || r.Numerics == "" {
			return nil // without a name for what was computed there is nothing to compare
		}
		k.text = it.pick.Text
		pair, own := &ex.pairs[n], part{}
		for j, w := range pair.Weights {
			row := int32(j)
			if pair.Rows != nil {
				row = pair.Rows[j]
			}
			if place, ok := places[row]; ok {
				own.rows, own.weights = append(own.rows, place), append(own.weights, w)
			}
		}
		if len(own.rows) > 0 {
			k.pairs = append(k.pairs, expert.Pair{Expert: pair.Expert, Digest: r.Digest, Numerics: r.Numerics, Rows: own.rows})
			k.parts = append(k.parts, own)
		}
	}
	if len(k.pairs) == 0 {
		return nil
	}
	k.drawn = c.d.dice.IntN(len(k.pairs))
	return k
}

// sampleSum copies some rows of the batch and of the sum: one out of each of equal parts, so many that their outputs for so many pairs take
// checkBytes. It returns where each row of the batch stands in the sample.
func (c *call) sampleSum(k *sumCheck, sum *expert.Sum, pairs int) (places map[int32]int32) {
	x, y := c.req.X.Float32s(), sum.Output.Float32s()
	rows := len(y) / c.hidden
	n := min(rows, max(1, checkBytes/4/c.hidden/pairs))
	places = make(map[int32]int32, n)
	input := make([]float32, 0, n*c.hidden)
	k.sum = make([]float32, 0, n*c.hidden)
	for of := range n {
		from, to := of*rows/n, (of+1)*rows/n
		at := from + c.d.dice.IntN(to-from)
		row := int32(at)
		if sum.Rows != nil {
			row = sum.Rows[at]
		}
		places[row] = int32(of)
		input = append(input, x[int(row)*c.hidden:][:c.hidden]...)
		k.sum = append(k.sum, y[at*c.hidden:][:c.hidden]...)
	}
	k.x = expert.NewRows(rounded(input, c.req.Codec), c.hidden)
	return places
}

// rounded makes of values what becomes of them on the wire.
func rounded(values []float32, as codec.DType) []float32 {
	if as != codec.F32 {
		b := make([]byte, as.Size(len(values)))
		codec.Encode(b, as, values)
		codec.Decode(values, as, b)
	}
	return values
}

// compareSum asks the host for the outputs that it added up. If they do not give its sum, it is a liar by its own words. If they do, one of
// them is compared with those of other hosts.
func (d *Dispatcher) compareSum(ctx context.Context, k *sumCheck) {
	hidden := k.x.Shape()[1]
	outputs, err := d.askParts(ctx, k)
	if err != nil {
		d.metrics.checkUndecided()
		d.log.Debug().Str("peer", k.text).Err(err).Msg("a sum could not be compared with its parts")
		return
	}
	own := make([]float32, len(k.sum))
	for i, p := range k.parts {
		expert.AddWeighted(own, outputs[i], p.rows, p.weights, hidden)
	}
	if was, is := sumOf(k.sum), sumOf(rounded(own, k.codec)); was != is {
		d.metrics.checked(false)
		d.metrics.convicted()
		out := d.table.Convict(k.peer, time.Now())
		d.log.Warn().Str("peer", k.text).Interface("pairs", k.pairs).Stringer("codec", k.codec).Hex("sum_sha256", was[:]).
			Str("parts_sha256", hex.EncodeToString(is[:])).Dur("shut_out", out).Msg("a host's sum is not that of its own outputs: it is shut out")
		return
	}
	pair := k.pairs[k.drawn]
	input := make([]float32, 0, len(pair.Rows)*hidden)
	for _, r := range pair.Rows {
		input = append(input, k.x.Float32s()[int(r)*hidden:][:hidden]...)
	}
	pair.Rows = nil
	d.compare(ctx, &check{
		pair: pair, x: expert.NewRows(input, hidden), codec: codec.F32,
		answer: vote{peer: k.peer, text: k.text, sum: sumOf(outputs[k.drawn])},
	})
}

// askParts returns the outputs of the check's pairs, from the host that added them up.
func (d *Dispatcher) askParts(ctx context.Context, k *sumCheck) ([][]float32, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results, _, err := d.caller.Call(ctx, k.peer, k.x, k.pairs, codec.F32)
	if err != nil {
		return nil, err
	}
	if len(results) != len(k.pairs) {
		return nil, expert.ErrBadReply
	}
	outputs := make([][]float32, len(results))
	for i := range results {
		if err := judge(&results[i], &k.pairs[i], len(k.pairs[i].Rows), k.x.Shape()[1], false); err != nil {
			return nil, errors.Join(fmt.Errorf("%s", k.pairs[i].Expert), err)
		}
		outputs[i] = results[i].Output.Float32s()
	}
	return outputs, nil
}
