package dispatch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
)

// A share of the answers is asked for again, from another host with the same weights, in the same order of operations and the same
// codec: then the bits are the same, whatever the machines. Where they differ a third host decides, and the one that stands alone is
// out. This is done behind the call, which does not wait for it.

const (
	// checkBytes bounds the rows of one check. Of more, some are drawn: a row's result depends on that row alone.
	checkBytes = 1 << 20
	// checksMost bounds the checks under way, and with checkBytes their memory.
	checksMost = 16
	// checkTimeout is for one host's answer; nobody waits for it.
	checkTimeout = 10 * time.Second
	// checkAsks bounds the hosts that one check asks: two that answer, and a few that are full or compute otherwise.
	checkAsks = 5
	// shareFaces: the share of calls that is checked is drawn to a millionth.
	shareFaces = 1_000_000
)

// check is an answer to be compared.
type check struct {
	pair   expert.Pair // whose rows are all of x
	x      *tensor.Dense
	codec  codec.DType
	answer vote
}

// vote is what one host says.
type vote struct {
	peer peer.ID
	text string
	sum  [sha256.Size]byte // of the output's float32 bytes
}

// checks bounds the checks under way.
type checks struct {
	mu    sync.Mutex
	under int
}

func (k *checks) enter() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.under >= checksMost {
		return false
	}
	k.under++
	return true
}

func (k *checks) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.under--
}

// drawChecks prepares checks for some of the good answers of an exchange, each at its item's place; nil for none. What a check needs
// is copied: the caller may change the rows and the output as soon as it has the answer.
func (c *call) drawChecks(ex *exchange, results []expert.Result) []*check {
	share := c.d.cfg.CheckShare
	if share == 0 || ex.peer == "" {
		return nil
	}
	var checks []*check
	for k := range ex.items {
		it := &ex.items[k]
		if it.err != nil || float64(c.d.dice.IntN(shareFaces)) >= share*shareFaces {
			continue
		}
		r := &results[k]
		if r.Digest.IsZero() || r.Numerics == "" {
			continue // without a name for what was computed there is nothing to compare
		}
		if checks == nil {
			checks = make([]*check, len(ex.items))
		}
		pair := &ex.pairs[k]
		input, output := c.sample(pair, r.Output)
		checks[k] = &check{
			pair:   expert.Pair{Expert: pair.Expert, Digest: r.Digest, Numerics: r.Numerics},
			x:      expert.NewRows(input, c.hidden),
			codec:  c.req.Codec,
			answer: vote{peer: ex.peer, text: it.pick.Text, sum: sumOf(output)},
		}
	}
	return checks
}

// checkBehind has an answer compared behind the call. While many are under way, further ones are left out.
func (d *Dispatcher) checkBehind(compare func(context.Context)) {
	if !d.checks.enter() {
		return
	}
	if !d.goBehind(func(ctx context.Context) {
		defer d.checks.leave()
		compare(ctx)
	}) {
		d.checks.leave()
	}
}

// sample copies the rows of a pair, and returns the same rows of its output: all, or as many as checkBytes holds.
func (c *call) sample(pair *expert.Pair, y *tensor.Dense) (input, output []float32) {
	x, out, width := c.req.X.Float32s(), y.Float32s(), c.hidden
	rows := pair.RowCount(c.rows)
	n := min(rows, max(1, checkBytes/4/width))
	input = make([]float32, 0, n*width)
	if n < rows {
		output = make([]float32, 0, n*width)
	}
	for part := range n {
		row := part
		if n < rows {
			// One row out of each of n equal parts.
			from, to := part*rows/n, (part+1)*rows/n
			row = from + c.d.dice.IntN(to-from)
			output = append(output, out[row*width:][:width]...)
		}
		of := row
		if pair.Rows != nil {
			of = int(pair.Rows[row])
		}
		input = append(input, x[of*width:][:width]...)
	}
	if n == rows {
		output = out
	}
	return input, output
}

// sumOf hashes the little-endian bytes of an output.
func sumOf(values []float32) [sha256.Size]byte {
	b, same := codec.ViewBytes(values)
	if !same {
		b = make([]byte, 4*len(values))
		codec.EncodeF32(b, values)
	}
	return sha256.Sum256(b)
}

// compare asks other hosts until two of all agree, and shuts out who disagrees with them.
func (d *Dispatcher) compare(ctx context.Context, k *check) {
	votes := []vote{k.answer}
	asked := []peer.ID{k.answer.peer}
	for range checkAsks {
		v, ok := d.ask(ctx, k, &asked)
		if v.peer == "" {
			break // nobody is left
		}
		if !ok {
			continue
		}
		votes = append(votes, v)
		if odd, agreed := oddOnes(votes); agreed {
			d.metrics.checked(len(odd) == 0)
			for _, liar := range odd {
				d.convict(k, liar, votes)
			}
			return
		}
		if len(votes) > 3 {
			break
		}
	}
	if len(votes) > 1 {
		d.metrics.checkUndecided()
		d.log.Warn().Stringer("expert", k.pair.Expert).Interface("votes", describe(votes)).
			Msg("hosts give different answers and none that could decide is left")
	}
}

// oddOnes returns those that disagree with two that agree.
func oddOnes(votes []vote) (odd []vote, agreed bool) {
	for i := range votes {
		for j := range votes[:i] {
			if votes[i].sum != votes[j].sum {
				continue
			}
			for _, v := range votes {
				if v.sum != votes[i].sum {
					odd = append(odd, v)
				}
			}
			return odd, true
		}
	}
	return nil, false
}

// ask has one more host compute. A vote without a peer: nobody is left. ok: it answered, in the way that was asked for.
func (d *Dispatcher) ask(ctx context.Context, k *check, asked *[]peer.ID) (v vote, ok bool) {
	rows := k.x.Shape()[0]
	pick, err := d.table.Pick(registry.Query{Expert: k.pair.Expert, Rows: rows, Digest: k.pair.Digest, Tried: *asked}, time.Now(), d.dice)
	if err != nil {
		return vote{}, false
	}
	*asked = append(*asked, pick.Peer)
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	began := time.Now()
	results, load, err := d.caller.Call(ctx, pick.Peer, k.x, []expert.Pair{k.pair}, k.codec)
	whole := err != nil
	if err == nil && len(results) != 1 {
		err = expert.ErrBadReply
	}
	hidden := k.x.Shape()[1]
	if err == nil {
		err = judge(&results[0], &k.pair, rows, hidden, false)
	}
	now := time.Now()
	o := registry.Outcome{Kind: kindOf(err, whole), Took: now.Sub(began), Load: load}
	if err == nil {
		o.Digest, o.Hidden = results[0].Digest, hidden
	}
	d.table.Report(pick, o, now)
	d.metrics.attempted(err)
	if err != nil {
		return vote{peer: pick.Peer}, false
	}
	return vote{peer: pick.Peer, text: pick.Text, sum: sumOf(results[0].Output.Float32s())}, true
}

// convict shuts a host out whose answer two others contradict, and logs the evidence: with the input's hash, anybody who has the
// rows can repeat it.
func (d *Dispatcher) convict(k *check, liar vote, votes []vote) {
	out := d.table.Convict(liar.peer, time.Now())
	d.metrics.convicted()
	input := sumOf(k.x.Float32s())
	d.log.Warn().Str("peer", liar.text).Stringer("expert", k.pair.Expert).Stringer("digest", k.pair.Digest).
		Str("numerics", k.pair.Numerics).Stringer("codec", k.codec).Int("rows", k.x.Shape()[0]).
		Hex("input_sha256", input[:]).Interface("votes", describe(votes)).Dur("shut_out", out).
		Msg("a host gives wrong answers and is shut out")
}

// describe lists votes for the log: the hash of each host's answer.
func describe(votes []vote) map[string]string {
	m := make(map[string]string, len(votes))
	for _, v := range votes {
		m[v.text] = hex.EncodeToString(v.sum[:])
	}
	return m
}
