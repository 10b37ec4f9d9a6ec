package moe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Answer is what became of a group's rows at the expert that they were sent to. Exactly one of Output, Sum and Err is set.
type Answer struct {
	Output   *tensor.Dense // [rows of the group, hidden]
	Sum      *expert.Sum   // shared by the groups that it is the sum of, weights and all
	Expert   expert.ID     // who answered: the one asked for, or a fallback
	Peer     string        // where; empty: this node
	Where    string        // local, remote or fallback
	Digest   expert.Digest
	Numerics string
	Attempts []expert.Attempt
	Err      error
	Memory   expert.Memory // of Output; may be nil
}

// Dispatcher sends rows to experts, wherever they are. Safe for concurrent use.
type Dispatcher interface {
	// Dispatch runs pairs of x [rows, hidden] and returns an answer for each; those with weights may share a sum. each, if not nil, is called for every pair as soon as it
	// is decided, by several goroutines at once, and not after Dispatch has returned. x is used no longer then. When ctx ends, so do the
	// pairs that are not decided.
	Dispatch(ctx context.Context, x *tensor.Dense, pairs []expert.Pair, each func(pair int, failed bool)) ([]Answer, error)
}

// Policy says what to do about an expert that nobody answers for.
type Policy string

// The policies.
const (
	PolicyFail Policy = "fail" // the call fails
	PolicySkip Policy = "skip" // it is left out, and the other weights of its rows make up for it
)

// ParsePolicy reads a policy; empty is PolicyFail. The error matches ErrInvalidArgument.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case "":
		return PolicyFail, nil
	case PolicyFail, PolicySkip:
		return p, nil
	default:
		return "", fmt.Errorf("%w: policy %q: expected %s or %s", expert.ErrInvalidArgument, s, PolicyFail, PolicySkip)
	}
}

// Combining says where experts' outputs are added up.
type Combining string

// The places.
const (
	CombineAtCaller Combining = "caller" // in ascending order of experts: the same bits whoever hosts them
	CombineAtPeers  Combining = "peer"   // each host adds up its own and returns one row per token: fewer bytes, other rounding
)

// ParseCombining reads a place; empty is CombineAtCaller. The error matches ErrInvalidArgument.
func ParseCombining(s string) (Combining, error) {
	switch c := Combining(s); c {
	case "":
		return CombineAtCaller, nil
	case CombineAtCaller, CombineAtPeers:
		return c, nil
	default:
		return "", fmt.Errorf("%w: combine %q: expected %s or %s", expert.ErrInvalidArgument, s, CombineAtCaller, CombineAtPeers)
	}
}

// Call is one call of a layer.
type Call struct {
	X        *tensor.Dense // float32, [hidden], [rows, hidden] or [sequences, rows, hidden]
	Experts  []int64       // [rows, k], the caller's own choice; nil: the gate chooses
	Weights  []float32     // [rows, k], with Experts
	TopK     int           // experts for each row; 0: as the model says
	Policy   Policy        // empty: PolicyFail
	Combine  Combining     // empty: CombineAtCaller. Where weights multiply inputs there are no sums: no row comes back twice.
	Numerics string        // wanted of every expert; empty: whatever they have
	NoShared bool          // the shared expert is left to the caller, who has it

	// KMin above 0 is a quorum: once every row has the answers of so many of its experts, the others are waited for AfterKMin
	// longer, and left out as by PolicySkip (Hivemind's k_min and timeout_after_k_min). A row with fewer fails the call.
	KMin      int
	AfterKMin time.Duration
}

// Output is what a layer answered.
type Output struct {
	Y        *tensor.Dense // of the input's shape
	Routing  *Routing
	Answers  []Answer // by group, ascending experts; without their outputs, which are summed up
	Groups   []Group  // in step with Answers
	Missing  []expert.Name
	Numerics string // of the experts, and expert.SumNumerics where hosts added up; several are joined by commas
}

// Layer is a MoE layer that can be called: its gate and its shared expert are here, its experts anywhere. It never changes, and is
// safe for concurrent use.
type Layer struct {
	Name    expert.LayerName
	Gate    *Gate
	Shared  expert.Expert // nil: there is none
	Metrics *LayerMetrics // nil: nothing is counted
}

// Forward routes the rows, has the experts compute them, and adds up what comes back, in ascending order of experts, the shared
// expert last: the same bits whoever hosts the experts, unless these add up (CombineAtPeers). A failed expert's error is an *expert.CallError.
func (l *Layer) Forward(ctx context.Context, d Dispatcher, c Call) (*Output, error) {
	start := time.Now()
	out, err := l.forward(ctx, d, c)
	l.Metrics.called(out, err, time.Since(start))
	return out, err
}

func (l *Layer) forward(ctx context.Context, d Dispatcher, c Call) (*Output, error) {
	x, sequence, err := l.rows(c.X)
	if err != nil {
		return nil, err
	}
	routing, err := l.route(x, sequence, &c)
	if err != nil {
		return nil, err
	}
	hidden := l.Gate.Hidden()
	out := &Output{Routing: routing, Groups: routing.Groups(l.Gate.Rule().ScaleInput)}
	withShared := l.Shared != nil && !c.NoShared
	shared, sharedErr := l.startShared(ctx, x, withShared)
	batch, pairs := l.pairs(x, out.Groups, &c)
	var q *quorum // nil: every answer is needed
	if len(pairs) > 0 {
		if c.KMin > 0 {
			q = newQuorum(out.Groups, routing.Rows, c.KMin)
		}
		if out.Answers, err = dispatchQuorum(ctx, d, batch, pairs, out.Groups, q, &c); err != nil {
			return nil, errors.Join(err, <-sharedErr) // nothing is left behind
		}
	}
	if err := <-sharedErr; err != nil {
		return nil, fmt.Errorf("the shared expert of %s: %w", l.Name, err)
	}
	there, err := l.present(out, q, c.Policy)
	if err != nil {
		return nil, err
	}
	y, err := l.combine(out, there)
	if err != nil {
		return nil, err
	}
	out.release()
	if withShared {
		values, err := expert.Rows(*shared, hidden)
		if err != nil {
			return nil, err
		}
		AddShared(y, values, hidden, l.Gate.SharedScale(x))
	}
	out.Y = tensor.New(tensor.WithShape(c.X.Shape()...), tensor.WithBacking(y))
	return out, nil
}

// release gives the experts' outputs back.
func (o *Output) release() {
	for i := range o.Answers {
		a := &o.Answers[i]
		expert.Release(a.Memory)
		a.Output, a.Memory = nil, nil
	}
}

// rows sees the input as rows of the layer's width.
func (l *Layer) rows(x *tensor.Dense) (values []float32, sequence int, err error) {
	if x == nil {
		return nil, 0, fmt.Errorf("%w: expected an input", expert.ErrInvalidArgument)
	}
	_, sequence, err = Shape(x.Shape(), l.Gate.Hidden())
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %s: %w", expert.ErrInvalidArgument, l.Name, err)
	}
	if x.Dtype() != tensor.Float32 {
		return nil, 0, fmt.Errorf("%w: %s: expected float32, found %v", expert.ErrInvalidArgument, l.Name, x.Dtype())
	}
	return x.Float32s(), sequence, nil
}

// route has the gate choose, or takes the caller's choice.
func (l *Layer) route(x []float32, sequence int, c *Call) (*Routing, error) {
	rows := len(x) / l.Gate.Hidden()
	if c.Experts != nil || c.Weights != nil {
		r, err := Chosen(c.Experts, c.Weights, rows, l.Gate.Experts())
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", expert.ErrInvalidArgument, l.Name, err)
		}
		r.Logits = l.Gate.Logits(x)
		return r, nil
	}
	gate := l.Gate
	if c.TopK > 0 && c.TopK != gate.rule.TopK {
		var err error
		if gate, err = gate.WithTopK(c.TopK); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", expert.ErrInvalidArgument, l.Name, err)
		}
	}
	return gate.Route(x, sequence), nil
}

// startShared computes the shared expert, if it is wanted, beside the others. The channel gives its error once *y is there.
func (l *Layer) startShared(ctx context.Context, x []float32, wanted bool) (y **tensor.Dense, done <-chan error) {
	ch := make(chan error, 1)
	y = new(*tensor.Dense)
	if !wanted {
		ch <- nil
		return y, ch
	}
	go func() {
		var err error
		*y, err = l.Shared.Forward(ctx, expert.NewRows(x, l.Gate.Hidden()))
		ch <- err
	}()
	return y, ch
}

// pairs returns what is sent: the rows once, and for each group the indices of its own. Where weights multiply inputs, each group
// has rows of its own.
func (l *Layer) pairs(x []float32, groups []Group, c *Call) (*tensor.Dense, []expert.Pair) {
	if len(groups) == 0 {
		return nil, nil
	}
	rows := make([][]int32, len(groups))
	for i, g := range groups {
		rows[i] = g.Rows
	}
	hidden := l.Gate.Hidden()
	if l.Gate.Rule().ScaleInput {
		x, rows = Scaled(x, hidden, groups)
	}
	pairs := make([]expert.Pair, len(groups))
	for i, g := range groups {
		pairs[i] = expert.Pair{Expert: l.Name.Expert(g.Expert).ID(), Numerics: c.Numerics, Rows: rows[i]}
		if c.Combine == CombineAtPeers && g.In == nil {
			pairs[i].Weights = g.Out
		}
	}
	return expert.NewRows(x, hidden), pairs
}

// errStraggler is why experts beyond a quorum are not waited for any longer.
var errStraggler = fmt.Errorf("%w: the quorum was there", expert.ErrCancelled)

// quorum counts for each row how many answers are missing until it has as many as it needs.
type quorum struct {
	mu    sync.Mutex
	needs []int // by row
	short int   // rows that need more
}

func newQuorum(groups []Group, rows, kMin int) *quorum {
	q := &quorum{needs: make([]int, rows)}
	for _, g := range groups {
		for _, r := range g.Rows {
			if q.needs[r] == 0 {
				q.short++
			}
			q.needs[r] = min(q.needs[r]+1, kMin)
		}
	}
	return q
}

// add takes an answer in and tells whether it was the one that made the quorum whole.
func (q *quorum) add(g *Group) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := q.short
	for _, r := range g.Rows {
		if q.needs[r]--; q.needs[r] == 0 {
			q.short--
		}
	}
	return before > 0 && q.short == 0
}

// firstShort returns a row that needs more answers, and -1 where there is none.
func (q *quorum) firstShort() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.IndexFunc(q.needs, func(n int) bool { return n > 0 })
}

// dispatchQuorum runs the pairs; with a quorum it stops waiting some time after that is there.
func dispatchQuorum(ctx context.Context, d Dispatcher, x *tensor.Dense, pairs []expert.Pair, groups []Group, q *quorum, c *Call) ([]Answer, error) {
	if q == nil {
		return d.Dispatch(ctx, x, pairs, nil)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return d.Dispatch(ctx, x, pairs, func(pair int, failed bool) {
		if !failed && q.add(&groups[pair]) {
			timer := time.AfterFunc(c.AfterKMin, func() { cancel(errStraggler) })
			context.AfterFunc(ctx, func() { timer.Stop() })
		}
	})
}

// failures are the errors of a layer's experts. Its message tells of the first few: there may be hundreds, mostly for one reason.
type failures []error

// maxTold is how many failures are told of.
const maxTold = 3

// Error implements error.
func (f failures) Error() string {
	told := errors.Join(f[:min(len(f), maxTold)]...).Error()
	if more := len(f) - maxTold; more > 0 {
		told += fmt.Sprintf(" (and %d more)", more)
	}
	return told
}

// Unwrap returns all of them.
func (f failures) Unwrap() []error { return f }

// present tells which groups were answered for, where the call allows that some were not; else it returns the error of those.
func (l *Layer) present(out *Output, q *quorum, policy Policy) ([]bool, error) {
	there := make([]bool, len(out.Groups))
	var numerics []string
	note := func(name string) {
		if !slices.Contains(numerics, name) {
			numerics = append(numerics, name)
		}
	}
	summed := false
	var errs failures
	for i, a := range out.Answers {
		if a.Err != nil {
			out.Missing = append(out.Missing, l.Name.Expert(out.Groups[i].Expert))
			errs = append(errs, a.Err)
			continue
		}
		there[i] = true
		summed = summed || a.Sum != nil
		note(a.Numerics)
	}
	if summed {
		note(expert.SumNumerics)
	}
	out.Numerics = strings.Join(numerics, ",")
	switch {
	case len(errs) == 0:
	case q != nil:
		if r := q.firstShort(); r >= 0 {
			return nil, fmt.Errorf("%s: row %d lacks answers for its quorum: %w", l.Name, r, errs)
		}
	case policy != PolicySkip:
		return nil, fmt.Errorf("%s: %w", l.Name, errs)
	}
	return there, nil
}

// combine adds up what came back: outputs first, then sums, both in ascending order of experts; the weights make up for what is missing.
func (l *Layer) combine(out *Output, there []bool) ([]float32, error) {
	rows, hidden := out.Routing.Rows, l.Gate.Hidden()
	groups := out.Groups
	var factors []float64 // nil: nothing is missing
	if len(out.Missing) > 0 {
		factors = Factors(groups, there, rows)
		groups = Scale(groups, factors)
	}
	var apart []Group
	var outputs [][]float32
	var sums []*expert.Sum
	for i, a := range out.Answers {
		switch {
		case a.Sum != nil:
			if !slices.Contains(sums, a.Sum) {
				sums = append(sums, a.Sum)
			}
		case a.Output != nil:
			values, err := expert.Rows(a.Output, hidden)
			if err != nil {
				return nil, err
			}
			apart, outputs = append(apart, groups[i]), append(outputs, values)
		}
	}
	y := make([]float32, rows*hidden)
	Combine(y, hidden, apart, outputs)
	for _, s := range sums {
		values, err := expert.Rows(s.Output, hidden)
		if err != nil {
			return nil, err
		}
		AddSum(y, values, s.Rows, factors, hidden)
	}
	return y, nil
}
