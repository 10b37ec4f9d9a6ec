package dispatch

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
)

// Finder finds the providers of an expert. Safe for concurrent use.
type Finder interface {
	// Find returns what is known as soon as somebody is; the rest is looked for behind it. Nobody and no error: a complete walk of
	// the DHT found nobody.
	Find(ctx context.Context, id expert.ID) ([]peer.AddrInfo, error)
	// Walk makes a new complete walk and returns whom it found.
	Walk(ctx context.Context, id expert.ID) ([]peer.AddrInfo, error)
}

// Caller reaches peers. Safe for concurrent use.
type Caller interface {
	// Call runs (expert, rows) pairs of x [rows, hidden] on one peer in one exchange, and returns one result for each pair. It ends
	// at once when ctx does, and keeps no reference to x or pairs. The error, and those in the results, match the sentinels of
	// package expert; an error that has a method Op() string says in which step it came.
	Call(ctx context.Context, p peer.ID, x *tensor.Dense, pairs []expert.Pair, as codec.DType) ([]expert.Result, expert.Load, error)
	// Ping asks for a sign of life and returns how long it took.
	Ping(ctx context.Context, p peer.ID) (time.Duration, error)
}

// Local runs the experts that this node hosts. Safe for concurrent use.
type Local interface {
	// Has returns the expert if this node hosts it, ready or not.
	Has(id expert.ID) (expert.Hosted, bool)
	// Local runs pairs of x [rows, hidden] here, and returns one result for each pair. It ends at once when ctx does.
	Local(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) []expert.Result
}

// Dispatcher makes calls. Safe for concurrent use. Close ends what it does behind them.
type Dispatcher struct {
	cfg     Config
	table   *registry.Table
	finder  Finder
	caller  Caller
	local   Local
	metrics *Metrics
	log     zerolog.Logger
	dice    registry.Dice // safe for concurrent use

	spare   sync.Pool // of *call, empty
	lookups lookups
	budget  budget
	pings   pings
	checks  checks
	counts  counts

	// Invariant: behind is counted up only while ctx has not ended, under closing.
	closing sync.Mutex
	behind  sync.WaitGroup
	ctx     context.Context // of what is done behind calls
	cancel  context.CancelFunc
}

// Option changes a Dispatcher as it is made.
type Option func(*Dispatcher)

// WithMetrics counts what is done.
func WithMetrics(m *Metrics) Option { return func(d *Dispatcher) { d.metrics = m } }

// WithLogger logs what an operator should know.
func WithLogger(log zerolog.Logger) Option { return func(d *Dispatcher) { d.log = log } }

// runtimeDice are the runtime's: fast, and safe for concurrent use.
type runtimeDice struct{}

func (runtimeDice) IntN(n int) int { return rand.IntN(n) }

// New makes a Dispatcher. The configuration must be valid.
func New(cfg Config, table *registry.Table, finder Finder, caller Caller, local Local, options ...Option) *Dispatcher {
	ctx, cancel := context.WithCancel(context.Background())
	d := &Dispatcher{
		cfg: cfg, table: table, finder: finder, caller: caller, local: local,
		log: zerolog.Nop(), dice: runtimeDice{},
		ctx: ctx, cancel: cancel,
	}
	for _, o := range options {
		o(d)
	}
	return d
}

// Close ends what is done behind calls, and waits for it. Calls under way are for their callers to end.
func (d *Dispatcher) Close() {
	d.closing.Lock()
	d.cancel()
	d.closing.Unlock()
	d.behind.Wait()
}

// goBehind runs f in a goroutine that Close ends and waits for; false once it is closed.
func (d *Dispatcher) goBehind(f func(ctx context.Context)) bool {
	d.closing.Lock()
	defer d.closing.Unlock()
	if d.ctx.Err() != nil {
		return false
	}
	d.behind.Go(func() { f(d.ctx) })
	return true
}
