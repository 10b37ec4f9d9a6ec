package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

const (
	// maxSkip is the greatest payload of a refused request that is read and thrown away: as long as yamux's first window, so that
	// it is on its way anyhow. A stream with a larger one is closed behind the refusal.
	maxSkip = 256 << 10
	// memoryRetry is when a caller may come back that found no memory: a few exchanges on.
	memoryRetry = 100 * time.Millisecond
	// headerReserve is the header's length from which on the memory for its messages is accounted. They take up to eight times
	// its bytes: an int32 for a row that takes one byte, a message of some 100 bytes for a pair that takes 11.
	headerReserve = 16 << 10
	headerGrowth  = 8
)

// turn is a stream and the state that its exchanges share.
type turn struct {
	server *Server
	peer   peer.ID
	line   *line
	watch  *watch
	guard  *guard

	// Of the exchange under way:
	scratch  *scratch
	request  wire.Request
	start    time.Time
	reserved int
	outcome  outcome
}

// next waits for a request and answers it. It returns what it came to, and whether the stream is kept, closed, or reset with a
// code. An outcome without op and error stands for a stream on which nothing came.
func (t *turn) next(ctx context.Context) (outcome, network.StreamErrorCode) {
	t.guard.enter(resting, time.Now())
	if ctx.Err() != nil {
		return outcome{}, codeIdle
	}
	if _, err := t.line.r.Peek(1); err != nil {
		return outcome{}, codeIdle
	}
	t.start = time.Now()
	t.guard.enter(moving, t.start)
	t.outcome = outcome{}
	t.scratch = getScratch()
	defer t.finish()
	code := t.answer(ctx)
	t.outcome.op, t.outcome.took = t.request.Op, time.Since(t.start)
	return t.outcome, code
}

// finish gives back what the exchange borrowed.
func (t *turn) finish() {
	t.scratch.release()
	t.scratch, t.request = nil, wire.Request{}
	if t.reserved > 0 {
		t.line.Scope().ReleaseMemory(t.reserved)
		t.reserved = 0
	}
}

// answer reads the request that has begun to come and answers it. It fills in the outcome.
func (t *turn) answer(ctx context.Context) network.StreamErrorCode {
	s := t.server
	var err error
	if t.scratch.in, err = wire.ReadHeader(t.line.r, t.scratch.in, s.cfg.Limits.Header); err != nil {
		return t.broken(err)
	}
	header := t.scratch.in
	t.outcome.received = int64(wire.HeaderLength(len(header)))
	if len(header) > headerReserve && t.reserve(headerGrowth*len(header)) != nil {
		// Where the next frame begins is not known before the header is decoded.
		t.outcome.err, t.outcome.status = errNoMemory, wire.Overloaded
		return network.StreamResourceLimitExceeded
	}
	retryAfter, allowed := s.limits.allow(t.peer, t.start)
	var payload int64
	t.request, payload, err = wire.DecodeRequest(header, s.cfg.Limits)
	switch {
	case err != nil && !wire.IsRefusal(err):
		return t.broken(err)
	case !allowed:
		return t.refuse(&expert.OverloadedError{RetryAfter: retryAfter}, payload)
	case err != nil:
		return t.refuse(err, payload)
	}
	switch t.request.Op {
	case wire.OpForward, wire.OpSum:
		return t.forward(ctx, payload)
	case wire.OpDescribe:
		return t.describe()
	case wire.OpGoodbye:
		s.onGoodbye(t.peer)
		fallthrough
	default: // OpPing
		return t.reply(&wire.Reply{Load: s.handler.Load()}, nil)
	}
}

var errNoMemory = errors.New("no memory for the request")

// forward runs the request's pairs.
func (t *turn) forward(ctx context.Context, payload int64) network.StreamErrorCode {
	s, request := t.server, &t.request
	t.outcome.codec, t.outcome.rows = request.Input.Codec, request.Input.Rows
	input := request.Input.Elements()
	output := request.ReplyRows() * request.Input.Hidden
	if request.Op == wire.OpSum {
		output += input
	}
	if err := t.reserve(4 * (input + output)); err != nil {
		return t.refuse(&expert.OverloadedError{RetryAfter: memoryRetry}, payload)
	}
	admission := s.handler.Admit(request.Input.Rows, request.Input.Hidden, request.Pairs)
	defer admission.Release()
	if refused := admission.Refused(); allRefused(refused) {
		return t.refuseEach(refused, payload)
	}

	buffer := s.floats.get(input)
	if err := wire.ReadRows(t.line.r, buffer.x, request.Input.Codec); err != nil {
		return t.broken(err)
	}
	t.outcome.received += payload
	if t.line.r.Buffered() > 0 {
		return t.broken(fmt.Errorf("%w: bytes behind the request", wire.ErrMalformed))
	}

	t.guard.enter(computing, time.Now())
	parent := ctx
	ctx, cancel := t.deadline(withTraceparent(ctx, request.Traceparent))
	defer cancel()
	t.watch.begin(cancel)
	defer func() {
		// Work that was cut short may not have come to rest: its memory is left to the garbage collector.
		if ctx.Err() == nil {
			s.floats.put(buffer)
		}
	}()
	results := admission.Run(ctx, buffer.tensor(0, input, request.Input.Hidden))
	if err := t.watch.end(); err != nil {
		if errors.Is(err, wire.ErrMalformed) {
			return t.broken(err)
		}
		t.outcome.err, t.outcome.status = err, wire.Cancelled
		return codeCancelled
	}
	if err := parent.Err(); err != nil {
		t.outcome.err, t.outcome.status = err, wire.Cancelled
		return codeShutdown
	}
	t.guard.enter(moving, time.Now())
	code := t.replyResults(results)
	for i := range results {
		expert.Release(results[i].Memory)
	}
	if code == keep {
		t.guard.enter(resting, time.Now()) // before the admission is released: a host that drains may stop then
	}
	return code
}

// deadline gives the work as long as the caller waits.
func (t *turn) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if t.request.Timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, t.start.Add(t.request.Timeout))
}

// reserve accounts for memory until the exchange ends. The limits of our protocol are set for it, so it may use them up.
func (t *turn) reserve(n int) error {
	if err := t.line.Scope().ReserveMemory(n, network.ReservationPriorityAlways); err != nil {
		return err
	}
	t.reserved += n
	return nil
}

// allRefused tells whether no pair was admitted.
func allRefused(refused []error) bool {
	for _, err := range refused {
		if err == nil {
			return false
		}
	}
	return len(refused) > 0
}

// refuseEach answers a request none of whose pairs was admitted.
func (t *turn) refuseEach(refused []error, payload int64) network.StreamErrorCode {
	reply := &wire.Reply{Results: make([]wire.Result, len(refused))}
	for i, err := range refused {
		r := &reply.Results[i]
		r.Status, r.Message, r.RetryAfter = wire.Refusal(err)
		t.note(err)
	}
	return t.decline(reply, payload)
}

// refuse answers a request as a whole with an error.
func (t *turn) refuse(err error, payload int64) network.StreamErrorCode {
	t.note(err)
	reply := new(wire.Reply)
	reply.Status, reply.Message, reply.RetryAfter = wire.Refusal(err)
	return t.decline(reply, payload)
}

// decline sends a reply to a request whose payload is not wanted: a small one is skipped, so that the stream lives; behind a
// large one the stream is closed.
func (t *turn) decline(reply *wire.Reply, payload int64) network.StreamErrorCode {
	reply.Load = t.server.handler.Load()
	if payload > maxSkip {
		if code := t.reply(reply, nil); code != keep {
			return code
		}
		return closed
	}
	if _, err := io.CopyN(io.Discard, t.line.r, payload); err != nil {
		return t.broken(err)
	}
	t.outcome.received += payload
	return t.reply(reply, nil)
}

// note puts the first error of an exchange into its outcome.
func (t *turn) note(err error) {
	if t.outcome.status == wire.OK {
		t.outcome.err = err
		t.outcome.status, _, _ = wire.Refusal(err)
	}
}

// broken ends an exchange whose request did not come as it should.
func (t *turn) broken(err error) network.StreamErrorCode {
	t.outcome.err = err
	if errors.Is(err, wire.ErrMalformed) {
		t.server.metrics.malformedFrame()
		t.outcome.status = wire.InvalidArgument
		return codeMalformed
	}
	t.outcome.status = wire.Reset
	return codeStalled
}

// replyResults sends what the handler made of the pairs.
func (t *turn) replyResults(results []expert.Result) network.StreamErrorCode {
	request := &t.request
	if len(results) != len(request.Pairs) {
		return t.fault(fmt.Errorf("the handler made %d results of %d pairs", len(results), len(request.Pairs)))
	}
	reply := &wire.Reply{Load: t.server.handler.Load(), Results: make([]wire.Result, len(results))}
	rows := make([][]float32, 0, len(results))
	for i := range results {
		from, to := &results[i], &reply.Results[i]
		if from.Err != nil {
			to.Status, to.Message, to.RetryAfter = wire.Refusal(from.Err)
			if to.Status == wire.Internal {
				t.logFault(from.Err)
			}
			t.note(from.Err)
			continue
		}
		x, err := expert.Rows(from.Output, request.Input.Hidden)
		if want := request.Pairs[i].RowCount(request.Input.Rows) * request.Input.Hidden; err == nil && len(x) != want {
			err = fmt.Errorf("%d numbers instead of %d", len(x), want)
		}
		if err != nil {
			return t.fault(fmt.Errorf("the handler's output for %v: %w", request.Pairs[i].Expert, err))
		}
		to.Digest, to.Numerics = from.Digest, from.Numerics
		if request.Op == wire.OpForward {
			to.Output = wire.Tensor{Rows: len(x) / request.Input.Hidden, Hidden: request.Input.Hidden, Codec: request.Input.Codec}
		}
		rows = append(rows, x)
	}
	if request.Op == wire.OpSum && len(rows) > 0 {
		sum := t.server.floats.get(request.Input.Elements())
		defer t.server.floats.put(sum)
		t.addUp(sum.x, results, rows)
		reply.Sum, rows = request.Input, append(rows[:0], sum.x)
	}
	return t.reply(reply, rows)
}

// addUp makes the sum of the outputs of the results that are well, in the order of the pairs.
func (t *turn) addUp(sum []float32, results []expert.Result, outputs [][]float32) {
	clear(sum)
	for i := range results {
		if results[i].Err != nil {
			continue
		}
		pair := &t.request.Pairs[i]
		expert.AddWeighted(sum, outputs[0], pair.Rows, pair.Weights, t.request.Input.Hidden)
		outputs = outputs[1:]
	}
}

// fault answers that this host has failed, and logs how.
func (t *turn) fault(err error) network.StreamErrorCode {
	t.logFault(err)
	t.outcome.err, t.outcome.status = err, wire.Internal
	return t.reply(&wire.Reply{Status: wire.Internal, Load: t.server.handler.Load()}, nil)
}

func (t *turn) logFault(err error) {
	t.server.log.Error().Stringer("peer", t.peer).Stringer("op", t.request.Op).Err(err).Msg("exchange failed")
}

// describe sends what this host has.
func (t *turn) describe() network.StreamErrorCode {
	d := t.server.handler.Describe()
	body, err := wire.MarshalDescription(&d)
	if err != nil {
		return t.fault(err)
	}
	if len(body) > maxDescription {
		return t.fault(fmt.Errorf("a description of %d bytes is above the limit of %d", len(body), maxDescription))
	}
	if err := t.reserve(len(body)); err != nil {
		return t.refuse(&expert.OverloadedError{RetryAfter: memoryRetry}, 0)
	}
	if code := t.reply(&wire.Reply{Load: d.Load, Description: int64(len(body))}, nil); code != keep {
		return code
	}
	n, err := t.line.Write(body)
	t.outcome.sent += int64(n)
	if err != nil {
		return t.broken(err)
	}
	return keep
}

// reply sends a reply and the rows of its results.
func (t *turn) reply(r *wire.Reply, rows [][]float32) network.StreamErrorCode {
	t.scratch.out = wire.AppendReply(t.scratch.out[:0], r)
	var err error
	t.outcome.sent, err = t.line.send(t.scratch, rows, t.request.Input.Codec)
	if err != nil {
		return t.broken(err)
	}
	return keep
}
