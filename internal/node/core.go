package node

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/dispatch"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/moe"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/registry"
	"github.com/kwaai/kwaaid/internal/rpc"
)

// localHost is what a node hosts itself; serving.Host, or nothing in a client.
type localHost interface {
	dispatch.Local
	List() []expert.Hosted
}

// core is what a node and a client of one command have in common: a place in the swarm, and the way of a call.
type core struct {
	cfg       *config.Config
	log       zerolog.Logger
	self      peer.ID
	host      *p2p.Host
	table     *registry.Table
	client    *rpc.Client
	caller    *countingCaller
	finder    *discovery.Service
	dispatch  *dispatch.Dispatcher
	describer *describer
	local     localHost
	engine    expert.Engine
	layers    layers
	moe       *moe.Metrics // nil: nothing is counted
}

// countingCaller counts the bytes of the calls that are made, for benches.
type countingCaller struct {
	*rpc.Client
	bytes atomic.Int64
}

// Call is rpc.Client's, in dispatch's words.
func (c *countingCaller) Call(ctx context.Context, p peer.ID, x *tensor.Dense, pairs []expert.Pair, as codec.DType) ([]expert.Result, expert.Load, error) {
	r, err := c.Client.Call(ctx, p, x, pairs, as)
	c.bytes.Add(r.Bytes)
	return r.Results, r.Load, err
}

// events tell the registry at once what p2p sees.
func events(table *registry.Table) p2p.Events {
	return p2p.Events{
		Connected:    func(p peer.ID) { table.Connected(p, time.Now()) },
		Disconnected: func(p peer.ID) { table.Disconnected(p, time.Now()) },
	}
}

// parts are what a core is built from.
type parts struct {
	cfg       *config.Config
	log       zerolog.Logger
	host      *p2p.Host
	table     *registry.Table
	local     localHost
	engine    expert.Engine
	rpc       *rpc.Metrics // nil: none
	moe       *moe.Metrics // nil: none
	dispatch  []dispatch.Option
	discovery []discovery.Option
}

// newCore puts a core together on a host. Its loops are rpc's, discovery's, p2p's and the describer's; see loops.
func newCore(p parts, hosted discovery.Hosted) (*core, error) {
	c := &core{cfg: p.cfg, log: p.log, self: p.host.ID(), host: p.host, table: p.table, local: p.local, engine: p.engine, moe: p.moe}
	var err error
	if c.client, err = rpc.NewClient(p.host, p.cfg.RPCClient(), rpc.WithClientMetrics(p.rpc)); err != nil {
		return nil, err
	}
	c.caller = &countingCaller{Client: c.client}
	if c.describer, err = newDescriber(c.client, p.table, p.log); err != nil {
		return nil, err
	}
	found := func(id expert.ID, info peer.AddrInfo) {
		p.table.AddProvider(id, info.ID, registry.DHT, time.Now())
		c.describer.soon(info.ID)
	}
	if c.finder, err = discovery.New(p.host, hosted, p.cfg.Discovery(), append(p.discovery, discovery.WithFound(found))...); err != nil {
		return nil, err
	}
	c.dispatch = dispatch.New(p.cfg.Dispatch(), p.table, c.finder, c.caller, p.local, append(p.dispatch, dispatch.WithLogger(p.log))...)
	return c, nil
}

// loops returns the services that have to run while the core is used.
func (c *core) loops() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"p2p":       c.host.Run,
		"rpc":       c.client.Run,
		"discovery": c.finder.Run,
		"describe":  c.describer.Run,
	}
}
