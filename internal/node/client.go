package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/registry"
	"github.com/kwaai/kwaaid/internal/rpc"
)

// joinTimeout bounds how long a client waits for the first peer of the swarm.
const joinTimeout = 10 * time.Second

// Client is a place in the swarm for one command: it hosts nothing, listens nowhere, and leaves nothing behind.
type Client struct {
	*core
	pool  *kernel.Pool
	stop  context.CancelCauseFunc
	group *errgroup.Group
}

// nothing is what a client hosts.
type nothing struct{}

// Has finds nothing.
func (nothing) Has(expert.ID) (expert.Hosted, bool) { return expert.Hosted{}, false }

// List is empty.
func (nothing) List() []expert.Hosted { return nil }

// Local is not called: Has finds nothing.
func (nothing) Local(_ context.Context, _ *tensor.Dense, pairs []expert.Pair) []expert.Result {
	results := make([]expert.Result, len(pairs))
	for i, p := range pairs {
		results[i].Err = fmt.Errorf("%w: %s is not hosted here", expert.ErrNotFound, p.Expert)
	}
	return results
}

// Ready is empty and never changes.
func (nothing) Ready() ([]expert.ID, <-chan struct{}) { return nil, nil }

// Join connects to the swarm of cfg through its bootstrap peers, and waits until one of them answers. It can route cfg's layers.
// Close leaves again.
func Join(ctx context.Context, cfg *config.Config, version string) (_ *Client, err error) {
	key, err := p2p.NewIdentity()
	if err != nil {
		return nil, err
	}
	table := registry.New(registry.DefaultLimits(), time.Now())
	host, err := p2p.New(key, p2p.ClientConfig(), p2p.WithEvents(events(table)), p2p.WithUserAgent("kwaaid/"+version),
		p2p.WithProtocols(p2p.Protocol{ID: rpc.Protocol, Service: rpc.Service}))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, host.Close())
		}
	}()
	pool := kernel.NewPool(0)
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	//nolint:contextcheck // the loops begin below, under a context of their own
	c, err := newCore(parts{
		cfg: cfg, log: zerolog.Nop(), host: host, table: table, local: nothing{}, engine: expert.Engine{Pool: pool},
	}, nothing{})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.finder.Close())
		}
	}()
	if err := c.loadLayers(ctx, cfg.Layers, false); err != nil {
		return nil, err
	}
	loops, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	group, loops := errgroup.WithContext(loops)
	for _, run := range c.loops() {
		group.Go(func() error { return run(loops) })
	}
	client := &Client{core: c, pool: pool, stop: stop, group: group}
	wait, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := c.finder.WaitJoined(wait); err != nil {
		stop(errStopped)
		_ = group.Wait() // ends with errStopped
		return nil, fmt.Errorf("%w: %w", expert.ErrDialFailed, err)
	}
	return client, nil
}

// Close leaves the swarm.
func (c *Client) Close() {
	c.stop(errStopped)
	_ = c.group.Wait() // ends with errStopped
	c.dispatch.Close()
	_ = errors.Join(c.finder.Close(), c.host.Close()) // nothing was written, so nothing can be lost
	c.pool.Close()
}
