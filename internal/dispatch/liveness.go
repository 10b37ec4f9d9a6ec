package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/expert"
)

const (
	// pingLeast: a healthy host on the same continent answers a ping within this, also when it computes.
	pingLeast = 50 * time.Millisecond
	// pingRoundTrips: who is far away gets this many of its round trips.
	pingRoundTrips = 4
	// pingStranger is for a peer whose round trip is not known: once around the world.
	pingStranger = 200 * time.Millisecond
	// pingMost is for a peer that missed a ping, and bounds all others.
	pingMost = time.Second
	// lookAfter, lookAfterMost: a peer that missed a ping is pinged again after the first, then less and less often up to the other.
	lookAfter, lookAfterMost = 250 * time.Millisecond, 5 * time.Second
	// lookFor: then it is left to probes and to its own connecting.
	lookFor = 5 * time.Minute
	// meetFor bounds how long a provider without connection is waited for that no call needs yet: as long as a look-up may take.
	meetFor = walkTimeout
	// meetMost bounds how many are dialled at once behind calls.
	meetMost = 32
	// lookedAfterMost bounds the peers that are looked after at once.
	lookedAfterMost = 256
)

// pings are the signs of life that are waited for.
type pings struct {
	mu    sync.Mutex
	under map[peer.ID]*ping // one for each peer, however many calls wait for it
	after oncePer[peer.ID]  // peers that missed one and are looked after
	met   oncePer[peer.ID]  // peers that are dialled behind calls
}

// ping is one under way; alive is set when done is closed.
type ping struct {
	done  chan struct{}
	alive bool
}

// alive pings a peer, or waits for the ping that is under way. It returns true when ctx ends first: then it does not matter.
func (d *Dispatcher) alive(ctx context.Context, p peer.ID) bool {
	g := d.startPing(p)
	if g == nil {
		return true
	}
	select {
	case <-g.done:
		return g.alive
	case <-ctx.Done():
		return true
	}
}

// startPing pings a peer behind, unless that is under way already; nil once d is closed. A peer that misses it is told of to the registry.
func (d *Dispatcher) startPing(p peer.ID) *ping {
	d.pings.mu.Lock()
	defer d.pings.mu.Unlock()
	g := d.pings.under[p]
	if g != nil {
		return g
	}
	g = &ping{done: make(chan struct{})}
	if !d.goBehind(func(ctx context.Context) { d.runPing(ctx, p, g) }) {
		return nil
	}
	if d.pings.under == nil {
		d.pings.under = make(map[peer.ID]*ping)
	}
	d.pings.under[p] = g
	return g
}

func (d *Dispatcher) runPing(ctx context.Context, p peer.ID, g *ping) {
	patience := pingStranger
	if rtt, known := d.table.RTT(p); known {
		patience = min(max(pingLeast, pingRoundTrips*rtt), pingMost)
	}
	g.alive = d.pingOnce(ctx, p, patience)
	if !g.alive && ctx.Err() == nil {
		d.counts.missed.Add(1)
		d.metrics.pingMissed()
		d.table.PingMissed(p, time.Now())
		d.lookAfterPeer(p)
	}
	d.pings.mu.Lock()
	delete(d.pings.under, p)
	d.pings.mu.Unlock()
	close(g.done)
}

// pingOnce pings a peer and tells the registry of the answer.
func (d *Dispatcher) pingOnce(ctx context.Context, p peer.ID, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	took, err := d.caller.Ping(ctx, p)
	switch {
	case err == nil:
		d.table.Ponged(p, took, time.Now())
		return true
	case errors.Is(err, expert.ErrOverloaded), errors.Is(err, expert.ErrUnimplemented):
		d.table.Ponged(p, 0, time.Now()) // an answer too
		return true
	default:
		return false
	}
}

// meet dials a provider behind the calls, so that a later one can ask it. Where many are dialled already it is left to a later call.
func (d *Dispatcher) meet(p peer.ID) {
	d.pings.met.start(d, p, meetMost, func(ctx context.Context) {
		if !d.pingOnce(ctx, p, meetFor) && ctx.Err() == nil {
			d.table.Unreached(p, time.Now())
		}
	})
}

// connected tells whether there is a connection to the peer, as far as the registry was told.
func (d *Dispatcher) connected(p peer.ID) bool {
	v, known := d.table.Peer(p, time.Now())
	return known && v.Connected
}

// lookAfterPeer pings a peer that missed a ping until it answers, so that it is asked again soon after it is back.
func (d *Dispatcher) lookAfterPeer(p peer.ID) {
	d.pings.after.start(d, p, lookedAfterMost, func(ctx context.Context) { d.lookFor(ctx, p) })
}

func (d *Dispatcher) lookFor(ctx context.Context, p peer.ID) {
	pause := lookAfter
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for began := time.Now(); time.Since(began) < lookFor; {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if !d.connected(p) || d.pingOnce(ctx, p, pingMost) {
			return // it comes back by its connection, or it is back
		}
		pause = min(2*pause, lookAfterMost)
		timer.Reset(pause)
	}
}
