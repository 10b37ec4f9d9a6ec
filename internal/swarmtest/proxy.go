package swarmtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Faults is what a Proxy does to the bytes that it passes on. The zero value does nothing to them.
type Faults struct {
	// Delay holds up each piece that comes from the target, one after the other. A piece is what one read yields.
	Delay time.Duration
	// Corrupt is the share of pieces, both ways, of which one bit is turned over.
	Corrupt float64
	// Hold keeps all pieces until it is no longer set, as a frozen process or a very long way does: connections stay, new ones are
	// accepted and stay silent, and nothing gets lost.
	Hold bool
	// Mute loses what the target says, and nothing of what it is told: a connection that is half open.
	Mute bool
	// Cut resets all connections and every new one: nothing comes through.
	Cut bool
}

// Proxy stands on loopback in front of a TCP port and passes on what comes, with faults. A node behind it announces the proxy's address.
type Proxy struct {
	listener net.Listener
	ctx      context.Context //nolint:containedctx // the proxy is its own loop: it ends with the test
	loops    sync.WaitGroup

	mu        sync.Mutex
	target    string
	faults    Faults
	changed   chan struct{} // closed when faults change
	conns     map[*net.TCPConn]struct{}
	corrupted int
	dice      *rand.Rand
}

// NewProxy listens on a free port of 127.0.0.1 until the test ends. Connections are refused until it has a target. Its dice are seeded.
func NewProxy(tb testing.TB, seed uint64) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{
		listener: l, ctx: ctx, changed: make(chan struct{}), conns: map[*net.TCPConn]struct{}{}, dice: rand.New(rand.NewPCG(seed, 0)),
	}
	p.loops.Go(p.accept)
	tb.Cleanup(func() {
		cancel()
		_ = l.Close() // nothing can be done about it, and accept ends either way
		p.Set(Faults{Cut: true})
		p.loops.Wait()
	})
	return p
}

// Addr returns HOST:PORT of the proxy.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Multiaddr returns the proxy's address as a node announces it.
func (p *Proxy) Multiaddr() string {
	return "/ip4/127.0.0.1/tcp/" + strconv.Itoa(p.listener.Addr().(*net.TCPAddr).Port)
}

// SetTarget says where connections go, HOST:PORT; those that are open stay where they are.
func (p *Proxy) SetTarget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// Set replaces the faults, from now on and for all connections.
func (p *Proxy) Set(f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
	close(p.changed)
	p.changed = make(chan struct{})
	if f.Cut {
		for c := range p.conns {
			reset(c)
		}
	}
}

// Corrupted returns how many pieces it has changed.
func (p *Proxy) Corrupted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.corrupted
}

// reset ends a connection so that the other side sees an error at once, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // then Close sends RST; where it cannot, the end has to do
	_ = c.Close()
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.loops.Go(func() { p.serve(conn.(*net.TCPConn)) })
		}
	}
}

// serve passes on both ways until either ends.
func (p *Proxy) serve(from *net.TCPConn) {
	defer reset(from)
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	if target == "" || !p.join(from) {
		return
	}
	defer p.leave(from)
	conn, err := new(net.Dialer).DialContext(p.ctx, "tcp", target)
	if err != nil {
		return
	}
	to := conn.(*net.TCPConn)
	defer reset(to)
	if !p.join(to) {
		return
	}
	defer p.leave(to)
	var back sync.WaitGroup
	back.Go(func() { p.pump(from, to, true) })
	p.pump(to, from, false)
	back.Wait()
}

// join takes a connection among those that Cut resets; false: it is to be reset at once.
func (p *Proxy) join(c *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.faults.Cut {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) leave(c *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pump passes on one way until that ends; answers: it is the one from the target.
func (p *Proxy) pump(to, from *net.TCPConn, answers bool) {
	buf := make([]byte, 64<<10) // more than any frame of libp2p's
	for {
		n, err := from.Read(buf)
		if n > 0 && p.suffer(buf[:n], answers) {
			if _, werr := to.Write(buf[:n]); werr != nil {
				reset(from)
				return
			}
		}
		if err != nil {
			// libp2p uses no half-closed connections: an end is one both ways.
			reset(to)
			return
		}
	}
}

// suffer does to a piece what the faults say, and tells whether it is to be passed on.
func (p *Proxy) suffer(piece []byte, answers bool) bool {
	for {
		p.mu.Lock()
		f, changed := p.faults, p.changed
		broken, bit := p.dice.Float64() < f.Corrupt, p.dice.IntN(8*len(piece))
		p.mu.Unlock()
		switch {
		case f.Cut || f.Mute && answers:
			return false
		case f.Hold:
			select {
			case <-changed:
				continue
			case <-p.ctx.Done():
				return false
			}
		}
		if broken {
			piece[bit/8] ^= 1 << (bit % 8)
			p.mu.Lock()
			p.corrupted++
			p.mu.Unlock()
		}
		if answers && f.Delay > 0 {
			wait := time.NewTimer(f.Delay)
			defer wait.Stop()
			select {
			case <-wait.C:
			case <-p.ctx.Done():
				return false
			}
		}
		return true
	}
}
