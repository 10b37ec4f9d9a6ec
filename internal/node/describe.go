package node

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/registry"
	"github.com/kwaai/kwaaid/internal/rpc"
)

const (
	// describeEvery is how long a host's account of itself counts as fresh. Experts come and go by the minute at most.
	describeEvery = time.Minute
	// describeTimeout bounds one account: 6,144 experts take 800 KB.
	describeTimeout = 3 * time.Second
	// describers is how many hosts are asked at once by who waits for them, and behindDescribers by Run.
	describers, behindDescribers = 8, 2
	// describeQueue is how many hosts wait to be asked behind the calls; what does not fit is asked when it is met again.
	describeQueue = 64
	// describedPeers bounds the hosts whose accounts are remembered.
	describedPeers = 4096
)

// describer learns from hosts what they host, so that one look-up in the DHT teaches many experts. Safe for concurrent use.
type describer struct {
	client *rpc.Client
	table  *registry.Table
	log    zerolog.Logger
	queue  chan peer.ID

	mu   sync.Mutex
	last *simplelru.LRU[peer.ID, time.Time] // when a host was last asked
}

func newDescriber(client *rpc.Client, table *registry.Table, log zerolog.Logger) (*describer, error) {
	last, err := simplelru.NewLRU[peer.ID, time.Time](describedPeers, nil)
	if err != nil {
		return nil, err
	}
	return &describer{client: client, table: table, log: log, queue: make(chan peer.ID, describeQueue), last: last}, nil
}

// Run asks the hosts that were put in the queue, until ctx ends.
func (d *describer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range behindDescribers {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case p := <-d.queue:
					d.ask(ctx, p)
				}
			}
		})
	}
	return g.Wait()
}

// soon has a host asked behind the calls, unless it was lately.
func (d *describer) soon(p peer.ID) {
	if !d.due(p) {
		return
	}
	select {
	case d.queue <- p:
	default:
		d.mu.Lock()
		d.last.Remove(p)
		d.mu.Unlock()
	}
}

// all asks those of the hosts that were not asked lately, and waits for them.
func (d *describer) all(ctx context.Context, peers []peer.ID) {
	var due []peer.ID
	for _, p := range peers {
		if d.due(p) {
			due = append(due, p)
		}
	}
	d.until(ctx, due, func() bool { return false })
}

// until asks hosts, some at once, until enough is known. Records in the DHT outlive their hosts: many may not answer.
func (d *describer) until(ctx context.Context, peers []peer.ID, enough func() bool) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	g.SetLimit(describers)
	for _, p := range peers {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			d.ask(ctx, p)
			if enough() {
				stop()
			}
			return nil
		})
	}
	_ = g.Wait() // ask reports what goes wrong
}

// due tells whether a host should be asked now, and notes that it is.
func (d *describer) due(p peer.ID) bool {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if at, ok := d.last.Get(p); ok && now.Sub(at) < describeEvery {
		return false
	}
	d.last.Add(p, now)
	return true
}

func (d *describer) ask(ctx context.Context, p peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	about, err := d.client.Describe(ctx, p)
	if err != nil {
		d.log.Debug().Err(err).Stringer("peer", p).Msg("a host does not describe itself")
		return
	}
	d.table.Described(p, about, time.Now())
}
