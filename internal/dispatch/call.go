package dispatch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
)

// call is one Call under way.
//
// Invariant: hands of a task counts who holds it: the exchanges that carry it, and goroutines that look for somebody to ask. Whoever
// lets a hand go of a task that is not decided goes on with it instead if nobody else does anything for it (see unattended); so every
// task is decided, at the deadline at the latest.
type call struct {
	d            *Dispatcher
	ctx          context.Context // the caller's
	req          Request
	rows, hidden int
	began        time.Time
	deadline     time.Time

	others sync.WaitGroup // goroutines beside the caller's

	mu      sync.Mutex // guards all that follows, and tasks and exchanges but what they except
	tasks   []task
	answers []Answer
	open    int         // tasks that are not decided
	live    []*exchange // under way
	untold  []int       // decided tasks that Request.Each was not told of
	search  context.Context
	stop    context.CancelFunc // ends search; nil while there is none
	planned bool               // the first plan was made
	stray   bool               // a timer may still hold the call, though it will find nothing to do

	// Room that is kept for the next call: one that is answered at once takes little further memory.
	todo      []int
	exchanges []*exchange // the first used ones are this call's, the others are to be had
	used      int
	begun     []*exchange // of the first plan
	shared    []peer.ID   // of the pick that is under way
}

// task is a pair and how far it is.
type task struct {
	pair      *expert.Pair
	rows      int
	asking    asked       // the expert that is asked now: the pair's, or a fallback
	first     asked       // the pair's, while a fallback is asked
	fallbacks []expert.ID // not asked yet
	listed    bool        // fallbacks is filled in

	hands    int
	decided  bool
	full     bool // a host was full
	apart    bool // its output is wanted, not a sum
	attempts []expert.Attempt

	refused  error     // the INVALID_ARGUMENT of a peer; nil: none said so
	refuser  peer.ID   // that peer
	suspects []suspect // answers with NaN or Inf
	hunt     hunt

	triedBuffer [2]peer.ID
}

// asked is an expert that is asked, and what came of it.
type asked struct {
	id      expert.ID
	digest  expert.Digest // the weights that are meant; zero: those that unpinned calls use
	here    bool          // this node is to be asked first
	again   bool          // and once more, where nobody else can be
	other   expert.Digest // the weights that this node has instead; zero: it has none, or those that are meant
	tried   []peer.ID
	begun   int                // attempts
	none    registry.NoneError // why nobody could be picked last
	last    error              // of the last attempt that failed; nil: none did
	unable  []peer.ID          // hosts that cannot do it, whenever they are asked
	cannot  bool               // nor can this node
	unready error              // why this node, which is to host it, cannot answer yet; nil: it can, or does not host it
}

// exchange is one request to one peer, or to this node, with one or more pairs.
type exchange struct {
	peer  peer.ID // empty: this node
	items []item
	pairs []expert.Pair
	ctx   context.Context
	end   context.CancelCauseFunc // ends ctx
	began time.Time
	hedge bool // the second one for what another was asked already
	sum   bool // the outputs may come added up
	watch watch
}

// item is a pair within an exchange.
type item struct {
	task    int
	attempt int           // its place in the task's attempts
	pick    registry.Pick // not set for this node
	err     error         // what became of it; the exchange's goroutine sets it before it takes the lock
}

// Call runs the pairs and returns an answer for each, in order. The error is for a request that is wrong as a whole and matches
// expert.ErrInvalidArgument; what became of a pair stands in its answer. Call returns when every pair is decided, at the deadline at
// the latest, and uses req.X no longer then.
func (d *Dispatcher) Call(ctx context.Context, req Request) ([]Answer, error) {
	rows, hidden, err := d.check(&req)
	if err != nil {
		return nil, err
	}
	c := d.newCall()
	c.ctx, c.req, c.rows, c.hidden = ctx, req, rows, hidden
	c.began, c.open = time.Now(), len(req.Pairs)
	timeout := req.Timeout
	if timeout <= 0 {
		timeout = d.cfg.Timeout
	}
	c.deadline = c.began.Add(timeout)
	if given, ok := ctx.Deadline(); ok && (req.Timeout <= 0 || given.Before(c.deadline)) {
		c.deadline = given
	}
	c.answers = make([]Answer, len(req.Pairs))
	if n := len(req.Pairs); n > cap(c.tasks) {
		c.tasks, c.todo = make([]task, n), make([]int, n)
	} else {
		c.tasks, c.todo = c.tasks[:n], c.todo[:n]
	}
	for i := range c.tasks {
		c.todo[i] = i
		c.begin(i)
	}
	c.tell()
	c.advance(c.todo)
	c.others.Wait()
	answers := c.finish()
	d.keep(c)
	return answers, nil
}

// newCall returns an empty call, maybe one that was kept.
func (d *Dispatcher) newCall() *call {
	if c, ok := d.spare.Get().(*call); ok {
		return c
	}
	return &call{d: d}
}

// What is kept with a call at most: a layer's experts are rarely at more peers, nor does a row have more of them.
const (
	exchangesMost = 16
	tasksMost     = 64
)

// keep empties a call that is over for the next one. What the caller got is not in it. Its exchanges are kept with their timers, all of
// which were stopped before they rang.
func (d *Dispatcher) keep(c *call) {
	if c.stray || len(c.exchanges) > exchangesMost || cap(c.tasks) > tasksMost {
		return
	}
	for _, ex := range c.exchanges[:c.used] {
		clear(ex.items)
		clear(ex.pairs)
		*ex = exchange{items: ex.items[:0], pairs: ex.pairs[:0], watch: watch{timer: ex.watch.timer}}
	}
	clear(c.tasks)
	clear(c.begun)
	clear(c.live[:cap(c.live)])
	*c = call{
		d: d, tasks: c.tasks[:0], todo: c.todo[:0], exchanges: c.exchanges, begun: c.begun[:0], live: c.live[:0], shared: c.shared[:0],
	}
	d.spare.Put(c)
}

// newExchange returns an empty exchange. The lock is held.
func (c *call) newExchange() *exchange {
	if c.used == len(c.exchanges) {
		c.exchanges = append(c.exchanges, new(exchange))
	}
	c.used++
	return c.exchanges[c.used-1]
}

// begin prepares a task. Nobody else knows of the call yet.
func (c *call) begin(i int) {
	t := &c.tasks[i]
	t.pair = &c.req.Pairs[i]
	t.rows = t.pair.RowCount(c.rows)
	t.hands = 1
	var err error
	t.asking, err = c.ask(t.pair.Expert, t.pair.Digest)
	t.asking.tried = t.triedBuffer[:0]
	if err != nil {
		c.fail(i, err)
	}
}

// ask settles which weights of an expert are meant, and whether this node has them. The error matches expert.ErrInvalidArgument.
func (c *call) ask(id expert.ID, digest expert.Digest) (asked, error) {
	a := asked{id: id, digest: digest}
	h, hosted := c.d.local.Has(id)
	if hosted && h.State != expert.StateReady {
		a.unready = fmt.Errorf("%w: %s is %s at this node, and nobody else is found", expert.ErrNotReady, id, h.State)
		if h.Problem != "" {
			a.unready = fmt.Errorf("%w: %s failed at this node (%s), and nobody else is found", expert.ErrNotReady, id, h.Problem)
		}
	}
	if !hosted || h.Digest.IsZero() {
		return a, nil // without a digest it is not loaded, and nothing is known of it
	}
	if a.digest.IsZero() {
		a.digest = h.Digest
	}
	if a.digest != h.Digest {
		a.other, a.cannot = h.Digest, true
		return a, nil
	}
	if h.Hidden != c.hidden {
		return a, fmt.Errorf("%w: %s takes rows of %d, found rows of %d", expert.ErrInvalidArgument, id, h.Hidden, c.hidden)
	}
	a.here = h.State == expert.StateReady // in whatever numerics: it says so itself when it lacks those that are wanted
	return a, nil
}

// advance brings the tasks to their end, or into the hands of other goroutines. The caller holds a hand on each.
func (c *call) advance(todo []int) {
	for len(todo) > 0 {
		start, stuck := c.plan(todo)
		if len(start) == 0 {
			todo = c.seekAll(stuck)
			continue
		}
		if len(stuck) > 0 {
			c.others.Go(func() { c.advance(c.seekAll(stuck)) })
		}
		for _, ex := range start[1:] {
			c.others.Go(func() {
				deepen()
				c.advance(c.run(ex))
			})
		}
		todo = c.run(start[0])
	}
}

// deepen makes room on a new goroutine's stack for what an exchange takes: else it grows in steps, deep down, and each copies all frames.
//
//go:noinline
func deepen() {
	var room [6 << 10]byte
	runtime.KeepAlive(&room)
}

// plan chooses who is asked for each of the tasks, and begins the exchanges; stuck are those that nobody can be asked for.
func (c *call) plan(todo []int) (start []*exchange, stuck []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	first := !c.planned
	if first {
		c.planned = true
		start = c.begun
	}
	for _, i := range todo {
		t := &c.tasks[i]
		if t.decided {
			t.hands--
			continue
		}
		var pick registry.Pick
		switch {
		case c.over(now) != nil, t.asking.begun > c.d.cfg.MaxRetries:
			stuck = append(stuck, i)
			continue
		case t.asking.here:
			t.asking.here = false
			pick.Digest = t.asking.digest
		default:
			var ok bool
			pick, ok = c.pick(i, now, start)
			switch {
			case ok:
				t.asking.tried = append(t.asking.tried, pick.Peer)
			case t.asking.again:
				t.asking.again = false
				pick.Digest = t.asking.digest
			default:
				stuck = append(stuck, i)
				continue
			}
		}
		t.asking.begun++
		start = c.join(start, i, pick)
	}
	if first {
		c.begun = start
	}
	for _, ex := range start {
		c.launch(ex, now)
	}
	return start, stuck
}

// pick asks the registry whom to ask. Peers that get other pairs of this plan are preferred, for they save an exchange.
func (c *call) pick(i int, now time.Time, start []*exchange) (registry.Pick, bool) {
	t := &c.tasks[i]
	c.shared = c.shared[:0]
	for _, ex := range start {
		if ex.peer != "" {
			c.shared = append(c.shared, ex.peer)
		}
	}
	q := registry.Query{
		Expert: t.asking.id, Rows: t.rows, Digest: t.asking.digest, Tried: t.asking.tried, Desperate: t.hunt.desperate, Shared: c.shared,
	}
	pick, err := c.d.table.Pick(q, now, c.d.dice)
	if err != nil && t.hunt.renewed {
		t.hunt.renewed = false
		c.forgive(i)
		q.Tried = t.asking.tried
		pick, err = c.d.table.Pick(q, now, c.d.dice)
	}
	if none, ok := errors.AsType[*registry.NoneError](err); ok {
		t.asking.none = *none
	}
	if pick.Stale {
		c.d.findSoon(t.asking.id)
	}
	if pick.Ping != "" {
		c.d.startPing(pick.Ping)
	}
	for _, p := range pick.Meet {
		if p != "" {
			c.d.meet(p)
		}
	}
	return pick, err == nil
}

// join adds a task to the exchange with the picked peer, which is begun if need be.
func (c *call) join(start []*exchange, i int, pick registry.Pick) []*exchange {
	at := slices.IndexFunc(start, func(ex *exchange) bool { return ex.peer == pick.Peer })
	if at < 0 {
		ex := c.newExchange()
		ex.peer = pick.Peer
		start = append(start, ex)
		at = len(start) - 1
	}
	ex, t := start[at], &c.tasks[i]
	if t.attempts == nil {
		t.attempts = make([]expert.Attempt, 0, 1)
	}
	t.attempts = append(t.attempts, expert.Attempt{Expert: t.asking.id, Peer: pick.Text})
	ex.items = append(ex.items, item{task: i, attempt: len(t.attempts) - 1, pick: pick})
	ex.pairs = append(ex.pairs, expert.Pair{
		Expert: t.asking.id, Digest: pick.Digest, Numerics: t.pair.Numerics, Rows: t.pair.Rows, Weights: t.pair.Weights,
	})
	return start
}

// launch notes that an exchange is under way.
func (c *call) launch(ex *exchange, now time.Time) {
	ctx, end := context.WithCancelCause(c.ctx)
	ex.ctx, ex.end = &bounded{ctx, c.deadline}, end
	ex.began = now
	c.settleForm(ex)
	c.live = append(c.live, ex)
	c.watchOver(ex, now)
}

// bounded is a context whose deadline is kept by the exchange's timer, so that it needs none of its own.
type bounded struct {
	context.Context

	deadline time.Time
}

// Deadline returns the call's.
func (b *bounded) Deadline() (time.Time, bool) { return b.deadline, true }

// errDeadline ends the contexts of exchanges at the deadline; it is to all who look what the end of a context at its deadline is.
var errDeadline = fmt.Errorf("%w: %w", expert.ErrDeadlineExceeded, context.DeadlineExceeded)

// run makes the exchange, and returns the tasks that need another attempt; the goroutine holds a hand on each.
func (c *call) run(ex *exchange) (again []int) {
	var (
		results []expert.Result
		load    expert.Load
		err     error
	)
	if ex.peer == "" {
		results = c.d.local.Local(ex.ctx, c.req.X, ex.pairs)
	} else {
		results, load, err = c.d.caller.Call(ex.ctx, ex.peer, c.req.X, ex.pairs, c.req.Codec)
	}
	ex.end(expert.ErrCancelled)
	return c.settle(ex, results, load, err)
}

// over returns why the call has to end; nil while there is time.
func (c *call) over(now time.Time) error {
	if err := c.ctx.Err(); err != nil && err != context.DeadlineExceeded {
		return fmt.Errorf("%w: the caller gave up after %v", expert.ErrCancelled, now.Sub(c.began).Round(time.Microsecond))
	}
	if !c.began.Before(c.deadline) {
		return fmt.Errorf("%w: it had passed when the call began", expert.ErrDeadlineExceeded)
	}
	if c.ctx.Err() != nil || !now.Before(c.deadline) {
		return fmt.Errorf("%w: no answer within %v", expert.ErrDeadlineExceeded, c.deadline.Sub(c.began).Round(time.Microsecond))
	}
	return nil
}

// decide gives a task its answer. Exchanges that carry only decided tasks are ended: nobody waits for them. The lock is held.
func (c *call) decide(i int, a Answer) {
	t := &c.tasks[i]
	if t.decided {
		return
	}
	t.decided = true
	c.answers[i] = a
	c.open--
	c.d.counts.decided(&a)
	c.d.metrics.decided(&a, time.Since(c.began))
	if c.req.Each != nil {
		c.untold = append(c.untold, i)
	}
	for _, ex := range c.live {
		if !c.wanted(ex) {
			ex.end(expert.ErrCancelled)
		}
	}
	if c.open == 0 && c.stop != nil {
		c.stop()
	}
}

// wanted tells whether anybody waits for an answer of the exchange.
func (c *call) wanted(ex *exchange) bool {
	for k := range ex.items { // not by value: err is the other goroutine's
		if !c.tasks[ex.items[k].task].decided {
			return true
		}
	}
	return false
}

// fail gives a task its reason for having no answer. The lock is held, or nobody else knows of the call.
func (c *call) fail(i int, reason error) {
	t := &c.tasks[i]
	if t.decided {
		return
	}
	c.decide(i, Answer{Err: &expert.CallError{Expert: t.pair.Expert, Err: reason}})
}

// tell tells Request.Each of what was decided since.
func (c *call) tell() {
	if c.req.Each == nil {
		return
	}
	c.mu.Lock()
	untold := c.untold
	c.untold = nil
	told := make([]Answer, len(untold))
	for k, i := range untold {
		told[k] = c.complete(i)
		told[k].Attempts = slices.Clone(told[k].Attempts)
	}
	c.mu.Unlock()
	for k, i := range untold {
		c.req.Each(i, told[k])
	}
}

// complete returns the answer with what was tried.
func (c *call) complete(i int) Answer {
	a := c.answers[i]
	a.Attempts = c.tasks[i].attempts
	if a.Err != nil {
		failed := *a.Err.(*expert.CallError) //nolint:errorlint,forcetypeassert // fail made it
		failed.Attempts = a.Attempts
		a.Err = &failed
	}
	return a
}

// finish ends what is left, and returns the answers. All goroutines of the call have ended.
func (c *call) finish() []Answer {
	if c.stop != nil {
		c.stop()
	}
	for i := range c.answers {
		c.answers[i] = c.complete(i)
	}
	return c.answers
}
