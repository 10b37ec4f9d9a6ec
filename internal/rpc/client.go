package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/errgroup"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// Protocol is what both sides speak, and Service the name under which the resource manager counts it.
const (
	Protocol protocol.ID = "/kwaai/expert/1.0.0"
	Service  string      = "kwaai.expert"
)

// Client makes exchanges with other peers, whose addresses are in the host's peerstore. Safe for concurrent use.
type Client struct {
	cfg     ClientConfig
	pool    *pool
	metrics *Metrics
	floats  floatPool
	refills chan *lines // to peers at which a cancelled call has burnt a stream
}

// refillQueue is how many burnt streams wait to be replaced; what does not fit is opened when a call needs it.
const refillQueue = 64

// refillers is how many streams are opened at once behind the calls.
const refillers = 4

// refillTimeout bounds the opening of one of them: its peer is connected already.
const refillTimeout = 5 * time.Second

// ClientOption adds what a Client can do without.
type ClientOption func(*Client)

// WithClientMetrics counts exchanges.
func WithClientMetrics(m *Metrics) ClientOption { return func(c *Client) { c.metrics = m } }

// NewClient makes a client on a host. Its calls work at once; Run keeps its streams in order.
func NewClient(h host.Host, cfg ClientConfig, opts ...ClientOption) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, refills: make(chan *lines, refillQueue)}
	for _, opt := range opts {
		opt(c)
	}
	var err error
	c.pool, err = newPool(h, cfg, c.metrics)
	return c, err
}

// Run closes streams that nobody uses and replaces those that cancelled calls have burnt, until ctx ends. Then it closes all idle
// streams; calls still work, each on a stream of its own.
func (c *Client) Run(ctx context.Context) error {
	defer c.pool.shut()
	g, ctx := errgroup.WithContext(ctx)
	for range refillers {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case ls := <-c.refills:
					c.refill(ctx, ls)
				}
			}
		})
	}
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-c.pool.untidy:
				c.pool.tidy()
			}
		}
	})
	g.Go(func() error {
		sweep := time.NewTicker(c.cfg.IdleTimeout / 4)
		defer sweep.Stop()
		for {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case now := <-sweep.C:
				c.pool.sweep(now)
			}
		}
	})
	return g.Wait()
}

// Reply is a host's answer to Call.
type Reply struct {
	Results []expert.Result // one per pair, in their order
	Load    expert.Load
	Bytes   int64 // of the frames both ways, headers included
}

// Call runs (expert, rows) pairs of x [rows, hidden] on one peer in one exchange; numbers travel as c says: F32, BF16 or F16. Rows of x
// that no pair asks for are not sent. It keeps no reference to x or pairs. The end of ctx ends the call at once, here and at the peer.
//
// Either all pairs have weights, or none. With them the peer returns the sum of the outputs, which all results that are well share.
//
// An error means that no pair was answered: an *ExchangeError that matches ErrDialFailed, ErrReset, ErrTimeout, ErrCancelled or
// ErrBadReply when the exchange failed, or a status with which the peer refused the request as a whole. Else every result holds
// either its output or its own error. The outputs are the caller's, until it gives each back by its Memory.
func (c *Client) Call(ctx context.Context, p peer.ID, x *tensor.Dense, pairs []expert.Pair, as codec.DType) (Reply, error) {
	hidden := 0
	if x != nil && x.Dims() == 2 {
		hidden = x.Shape()[1]
	}
	rows, err := expert.Rows(x, hidden)
	if err != nil {
		return Reply{}, err
	}
	if err := wire.CheckCodec(as); err != nil {
		return Reply{}, err
	}
	e := exchange{
		peer: p,
		request: wire.Request{
			Op: wire.OpForward, Traceparent: traceparentOf(ctx),
			Input: wire.Tensor{Rows: len(rows) / hidden, Hidden: hidden, Codec: as},
		},
	}
	if len(pairs) > 0 && pairs[0].Weights != nil {
		e.request.Op = wire.OpSum
	}
	e.pack(rows, pairs)
	if err := c.do(ctx, &e); err != nil {
		return Reply{Load: e.reply.Load, Bytes: e.sent + e.received}, err
	}
	return Reply{Results: e.results(), Load: e.reply.Load, Bytes: e.sent + e.received}, nil
}

// maxDescription bounds what a peer says about itself, in bytes: 100,000 experts at 130 bytes.
const maxDescription = 16 << 20

// Describe asks a peer what it has. Errors are as Call's.
func (c *Client) Describe(ctx context.Context, p peer.ID) (expert.Description, error) {
	e := exchange{peer: p, request: wire.Request{Op: wire.OpDescribe}, description: maxDescription}
	if err := c.do(ctx, &e); err != nil {
		return expert.Description{}, err
	}
	d, err := wire.UnmarshalDescription(e.body)
	if err != nil {
		return expert.Description{}, &ExchangeError{Peer: p, Step: opDecode, Err: err}
	}
	d.Load = e.reply.Load
	return d, nil
}

// Ping asks a peer whether it is there, and returns how long its answer took on an open stream. Errors are as Call's.
func (c *Client) Ping(ctx context.Context, p peer.ID) (time.Duration, error) {
	e := exchange{peer: p, request: wire.Request{Op: wire.OpPing}}
	if err := c.do(ctx, &e); err != nil {
		return 0, err
	}
	return e.rtt, nil
}

// Goodbye tells a connected peer that this node takes no new calls. It connects to nobody for that. Errors are as Call's.
func (c *Client) Goodbye(ctx context.Context, p peer.ID) error {
	return c.do(ctx, &exchange{peer: p, request: wire.Request{Op: wire.OpGoodbye}, noDial: true})
}

// do brings an exchange to its end and counts it.
func (c *Client) do(ctx context.Context, x *exchange) error {
	start := time.Now()
	err := c.run(ctx, x)
	if err == nil && x.reply.Status != wire.OK {
		err = &ExchangeError{Peer: x.peer, Step: opWait, Err: x.reply.Status.Err(x.reply.Message, x.reply.RetryAfter)}
	}
	if c.metrics != nil {
		o := x.outcome(err, time.Since(start))
		c.metrics.clientExchange(&o)
	}
	return err
}

// open opens a stream for an exchange.
func (c *Client) open(ctx context.Context, x *exchange) (*line, error) {
	if x.noDial {
		ctx = network.WithNoDial(ctx, "not worth a connection")
	}
	return c.pool.open(ctx, x.peer)
}

// refillSoon asks Run to replace a stream.
func (c *Client) refillSoon(ls *lines) {
	select {
	case c.refills <- ls:
	default:
	}
}

// refill opens a stream, makes sure by a ping that it works, and leaves it in the pool. A failure is the next call's to find.
func (c *Client) refill(ctx context.Context, ls *lines) {
	held := c.pool.wants(ls)
	if held == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, refillTimeout)
	defer cancel()
	x := exchange{peer: ls.peer, request: wire.Request{Op: wire.OpPing}, noDial: true}
	l, err := c.open(ctx, &x)
	if err != nil {
		held.release()
		return
	}
	if whole, _ := c.attempt(ctx, l, &x); !whole {
		c.pool.drop(ls, held, l, codeCancelled)
		return
	}
	c.pool.put(ls, held, l, time.Now())
}

// readError says why a reply could not be read to its end.
func readError(err error) error {
	if errors.Is(err, wire.ErrMalformed) {
		return fmt.Errorf("%w: %s", expert.ErrBadReply, err.Error())
	}
	return streamError(err)
}

func malformedReply(what string) error {
	return fmt.Errorf("%w: %s", expert.ErrBadReply, what)
}
