package rpc

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// staleAfter is the rest after which a stream whose connection broke under a request is taken for a stale one, and the peer for
// one that has come back: a new dial is worth its time. After a shorter rest the peer was there just now, and a dial would only
// find out slowly what the broken connection says at once.
const staleAfter = time.Second

// exchange is one request and its reply.
type exchange struct {
	peer        peer.ID
	request     wire.Request
	rows        [][]float32  // the payload, in pieces; nil where there is none
	piece       [1][]float32 // room for rows
	used        []int32      // the rows of the caller's batch that are sent; nil: all
	noDial      bool         // do not connect for this
	description int64        // greatest length of a description

	reply    wire.Reply
	outputs  *floats // of all results that are well, one behind the other, or their sum; nil where there are none
	body     []byte  // a description as it came
	sent     int64
	received int64
	rtt      time.Duration // from the first byte sent to the reply's last
}

// run brings an exchange to its end on a stream of the pool. The request is idempotent: when a stream that rested in the pool turns
// out to be stale before a byte of the reply was read, it is sent once more on a fresh one. Errors are *ExchangeError.
func (c *Client) run(ctx context.Context, x *exchange) error {
	if ctx.Err() != nil {
		return &ExchangeError{Peer: x.peer, Step: opDial, Err: endOf(ctx)}
	}
	ls, held, err := c.pool.acquire(ctx, x.peer, x.request.Op)
	if err != nil {
		return &ExchangeError{Peer: x.peer, Step: opDial, Err: err}
	}
	l := c.pool.reuse(ls, time.Now())
	c.metrics.pool(l != nil)
	for {
		if l == nil {
			if l, err = c.open(ctx, x); err != nil {
				held.release()
				return &ExchangeError{Peer: x.peer, Step: opDial, Err: err}
			}
		}
		rest := time.Duration(0)
		if !l.fresh {
			rest = time.Since(l.idle)
		}
		whole, err := c.attempt(ctx, l, x)
		if whole {
			c.pool.put(ls, held, l, time.Now())
			return err
		}
		stale := !l.fresh && isStale(err) && (!l.Conn().IsClosed() || rest >= staleAfter)
		if !stale {
			code := codeCancelled
			if errors.Is(err, expert.ErrBadReply) {
				code = codeMalformed
			}
			c.pool.drop(ls, held, l, code)
			c.refillSoon(ls)
			return err
		}
		l.abort(codeCancelled)
		c.metrics.clientStream(-1)
		l = nil
	}
}

// attempt runs an exchange on one stream. whole tells whether the stream can carry another.
func (c *Client) attempt(ctx context.Context, l *line, x *exchange) (whole bool, err error) {
	stop := context.AfterFunc(ctx, l.cancel)
	start := time.Now()
	step, whole, err := c.talk(ctx, l, x, start)
	x.rtt = time.Since(start)
	untouched := stop()
	switch {
	case err == nil: // an answer in time is not thrown away, though the stream may have been reset behind it
	case !untouched:
		// The end of ctx is the reason, whatever the stream said when it was reset.
		err = &ExchangeError{Peer: x.peer, Step: step, Err: endOf(ctx)}
	default:
		err = &ExchangeError{Peer: x.peer, Step: step, Err: err}
	}
	return whole && untouched, err
}

// talk writes the request and reads the reply. whole tells whether the stream is as it was before: not when the reply is no good,
// and not when the host answered before it had read the payload.
func (c *Client) talk(ctx context.Context, l *line, x *exchange, now time.Time) (step string, whole bool, err error) {
	x.sent, x.received = 0, 0
	x.request.Timeout = 0
	if deadline, ok := ctx.Deadline(); ok {
		if x.request.Timeout = deadline.Sub(now); x.request.Timeout <= 0 {
			return opSend, true, expert.ErrTimeout
		}
	}
	s := getScratch()
	defer s.release()
	if s.out, err = wire.AppendRequest(s.out, &x.request, c.cfg.Limits); err != nil {
		return opSend, true, err
	}
	early, step, err := c.converse(l, s, x)
	if err != nil {
		return step, false, err
	}
	x.received = int64(wire.HeaderLength(len(s.in)))
	if err := c.readPayload(l, x); err != nil {
		return opDecode, false, readError(err)
	}
	if l.r.Buffered() > 0 {
		return opDecode, false, malformedReply("bytes behind the reply")
	}
	return opDecode, !early, nil
}

// converse writes the request and reads the reply's header. early tells that the host refused before it had read the payload.
func (c *Client) converse(l *line, s *scratch, x *exchange) (early bool, step string, err error) {
	if x.request.Input.Length() > smallFrame {
		return c.converseLarge(l, s, x)
	}
	if x.sent, err = l.send(s, x.rows, x.request.Input.Codec); err != nil {
		return false, opSend, streamError(err)
	}
	step, err = c.readReply(l, s, x)
	return false, step, err
}

// converseLarge reads while it writes: a host may refuse a large request before it has read it all, and the rest is kept back then.
func (c *Client) converseLarge(l *line, s *scratch, x *exchange) (early bool, step string, err error) {
	read := make(chan struct{})
	var readErr error
	go func() {
		defer close(read)
		if step, readErr = c.readReply(l, s, x); readErr != nil || !x.reply.Answers() {
			_ = l.SetWriteDeadline(longAgo) // ends a write that is still under way
		}
	}()
	x.sent, err = l.send(s, x.rows, x.request.Input.Codec)
	<-read
	switch {
	case readErr != nil:
		return false, step, readErr
	case x.reply.Answers():
		if err != nil {
			return false, opSend, streamError(err)
		}
		return false, step, nil
	default:
		_ = l.SetWriteDeadline(time.Time{})
		return err != nil, step, nil
	}
}

// readReply waits for the reply and reads its header.
func (c *Client) readReply(l *line, s *scratch, x *exchange) (step string, err error) {
	if _, err := l.r.Peek(1); err != nil {
		return opWait, streamError(err)
	}
	if s.in, err = wire.ReadHeader(l.r, s.in, c.cfg.Limits.Header); err != nil {
		return opDecode, readError(err)
	}
	x.reply, err = wire.DecodeReply(s.in, x.wanted())
	return opDecode, err
}

func (x *exchange) wanted() wire.Wanted {
	return wire.Wanted{
		Op: x.request.Op, Pairs: x.request.Pairs, Rows: x.request.Input.Rows, Hidden: x.request.Input.Hidden, Codec: x.request.Input.Codec,
		Description: x.description,
	}
}

// readPayload takes memory for what the header announces, which DecodeReply held against the request.
func (c *Client) readPayload(l *line, x *exchange) error {
	x.outputs, x.body = nil, nil
	n := x.reply.Sum.Elements()
	for i := range x.reply.Results {
		n += x.reply.Results[i].Output.Elements()
	}
	if n > 0 {
		x.outputs = c.floats.get(n)
		x.received += int64(x.request.Input.Codec.Size(n))
		return wire.ReadRows(l.r, x.outputs.x, x.request.Input.Codec)
	}
	for rest := x.reply.Description; rest > 0; {
		// As much again as has come already: a length that lies costs the peer what it costs us.
		step := min(rest, int64(max(len(x.body), 64<<10)))
		at := len(x.body)
		x.body = slices.Grow(x.body, int(step))[:at+int(step)]
		if _, err := io.ReadFull(l.r, x.body[at:]); err != nil {
			return err
		}
		rest -= step
	}
	x.received += x.reply.Description
	return nil
}

// results makes tensors of the outputs, in the order of the pairs.
func (x *exchange) results() []expert.Result {
	results := make([]expert.Result, len(x.reply.Results))
	var sum *expert.Sum
	if n := x.reply.Sum.Elements(); n > 0 {
		sum = &expert.Sum{Output: x.outputs.tensor(0, n, x.reply.Sum.Hidden), Rows: x.used}
	}
	at, outputs := 0, int32(0)
	for i := range x.reply.Results {
		from, to := &x.reply.Results[i], &results[i]
		if from.Status != wire.OK {
			to.Err = from.Status.Err(from.Message, from.RetryAfter)
			continue
		}
		to.Digest, to.Numerics = from.Digest, from.Numerics
		if to.Sum = sum; sum == nil {
			end := at + from.Output.Elements()
			to.Output, to.Memory = x.outputs.tensor(at, end, from.Output.Hidden), x.outputs
			at = end
			outputs++
		}
	}
	if outputs > 0 {
		x.outputs.shares.Store(outputs)
	}
	return results
}

// outcome says what the exchange came to.
func (x *exchange) outcome(err error, took time.Duration) outcome {
	o := outcome{
		op: x.request.Op, codec: x.request.Input.Codec, rows: x.request.Input.Rows, err: err, took: took, sent: x.sent, received: x.received,
	}
	if err != nil {
		o.status = wire.StatusOf(err)
		return o
	}
	o.status = x.reply.Status
	for i := range x.reply.Results {
		if o.status != wire.OK {
			break
		}
		o.status = x.reply.Results[i].Status
	}
	return o
}
