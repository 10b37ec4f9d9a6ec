package dispatch

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

// walkTimeout bounds a walk that nobody waits for any more.
const walkTimeout = 10 * time.Second

// lookups are the walks under way: one for each expert, however many calls wait for it.
type lookups struct {
	mu    sync.Mutex
	walks map[expert.ID]*walk
	finds oncePer[expert.ID] // of experts that are in use, behind their calls
}

// findsMost bounds the experts in use that are looked up at once: a layer of hundreds takes a while, its calls do not wait.
const findsMost = 4

// walk is a walk under way. found and err are set when done is closed.
type walk struct {
	done  chan struct{}
	found int
	err   error
}

// find asks the Finder for providers and notes them; it returns how many it found.
func (d *Dispatcher) find(ctx context.Context, id expert.ID) (int, error) {
	d.metrics.lookup()
	found, err := d.finder.Find(ctx, id)
	d.lookedUp(id, found, err)
	return len(found), err
}

// lookedUp tells the registry what a look-up found; one that failed says nothing.
func (d *Dispatcher) lookedUp(id expert.ID, found []peer.AddrInfo, err error) {
	if err != nil && len(found) == 0 {
		return
	}
	peers := make([]peer.ID, len(found))
	for i := range found {
		peers[i] = found[i].ID
	}
	d.table.LookedUp(id, peers, time.Now())
}

// findSoon looks an expert in use up behind its calls: others may host it by now. While many are looked up it is left to a later call.
func (d *Dispatcher) findSoon(id expert.ID) {
	d.lookups.finds.start(d, id, findsMost, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, walkTimeout)
		defer cancel()
		_, err := d.find(ctx, id)
		if err != nil {
			d.log.Debug().Err(err).Stringer("expert", id).Msg("an expert in use could not be looked up")
			d.table.LookUpFailed(id, time.Now())
		}
	})
}

// walk makes a complete walk, or waits for the one that is under way; it returns how many providers it found.
func (d *Dispatcher) walk(ctx context.Context, id expert.ID) (int, error) {
	w := d.startWalk(id)
	if w == nil {
		return 0, context.Canceled // closed
	}
	select {
	case <-w.done:
		return w.found, w.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// startWalk has a walk under way behind the calls; nil once the Dispatcher is closed.
func (d *Dispatcher) startWalk(id expert.ID) *walk {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	if w := d.lookups.walks[id]; w != nil {
		return w
	}
	w := &walk{done: make(chan struct{})}
	if d.lookups.walks == nil {
		d.lookups.walks = make(map[expert.ID]*walk)
	}
	d.lookups.walks[id] = w
	if !d.goBehind(func(ctx context.Context) { d.runWalk(ctx, id, w) }) {
		delete(d.lookups.walks, id)
		return nil
	}
	return w
}

func (d *Dispatcher) runWalk(ctx context.Context, id expert.ID, w *walk) {
	ctx, cancel := context.WithTimeout(ctx, walkTimeout)
	defer cancel()
	d.metrics.lookup()
	found, err := d.finder.Walk(ctx, id)
	d.lookedUp(id, found, err)
	d.lookups.mu.Lock()
	delete(d.lookups.walks, id)
	d.lookups.mu.Unlock()
	w.found, w.err = len(found), err
	close(w.done)
}
