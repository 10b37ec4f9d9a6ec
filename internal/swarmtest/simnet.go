package swarmtest

import (
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
	"github.com/stretchr/testify/require"
)

const (
	// bandwidth of every simulated link, each way.
	bandwidth = 100 * simlibp2p.OneMbps
	// never is when a lost packet is delivered: after every test's end.
	never = 1000 * time.Hour
)

// Sim is a simulated network of QUIC hosts in virtual time. The hosts have public addresses and no resource limits (limits are
// tested on loopback); a swarm of them needs discovery.ModeServer, since nobody can know that they are reachable.
type Sim struct {
	Hosts   []host.Host
	Weather *Weather
}

// Simulate runs a test in a synctest bubble with n hosts that do not know each other, 20 ms apart (40 there and back). Time stands
// still while anything computes, so waits cost nothing and timers are exact; the dice of the weather are seeded.
func Simulate(t *testing.T, n int, seed uint64, test func(t *testing.T, sim *Sim)) {
	t.Helper()
	// Threads that reset timers of one bubble at a time share its race context, which crashes the race detector
	// (golang/go#78156). One P leaves them one at a time.
	procs := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	synctest.Test(t, func(t *testing.T) {
		weather := &Weather{delay: 20 * time.Millisecond, dice: rand.New(rand.NewPCG(seed, 0)), cut: map[link]bool{}}
		settings := simnet.LinkSettings{BitsPerSecond: bandwidth}
		nw, meta, err := simlibp2p.SimpleLibp2pNetwork([]simlibp2p.NodeLinkSettingsAndCount{{
			LinkSettings: simnet.NodeBiDiLinkSettings{Downlink: settings, Uplink: settings}, Count: n,
		}}, weather.latency, simlibp2p.NetworkSettings{})
		require.NoError(t, err)
		nw.Start()
		t.Cleanup(nw.Close) // last of all: first what the test began, then the hosts
		t.Cleanup(func() {
			for _, h := range meta.Nodes {
				require.NoError(t, h.Close())
			}
		})
		test(t, &Sim{Hosts: meta.Nodes, Weather: weather})
	})
}

// Weather is what happens to packets between the hosts of a Sim. It may change at any time.
type Weather struct {
	mu    sync.Mutex
	delay time.Duration
	loss  float64
	cut   map[link]bool
	dice  *rand.Rand
}

// link is two hosts by address, in either direction.
type link [2]string

// SetDelay sets how long every packet takes, one way.
func (w *Weather) SetDelay(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = d
}

// SetLoss loses that share of all packets, 0 to 1.
func (w *Weather) SetLoss(share float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loss = share
}

// Cut loses every packet between hosts a and b, by their index, until Heal.
func (w *Weather) Cut(a, b int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[link{ip(a), ip(b)}], w.cut[link{ip(b), ip(a)}] = true, true
}

// CutOff loses every packet between host a and the n hosts of the network: for the others it is as if a were frozen.
func (w *Weather) CutOff(a, n int) {
	for b := range n {
		if a != b {
			w.Cut(a, b)
		}
	}
}

// Heal mends all cuts.
func (w *Weather) Heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cut)
}

// latency is the network's fault injector: a packet that is due after the test's end is lost.
func (w *Weather) latency(p *simnet.Packet) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut[link{hostOf(p.From), hostOf(p.To)}] || w.loss > 0 && w.dice.Float64() < w.loss {
		return never
	}
	return w.delay
}

// ip is the address that simlibp2p gives to host i.
func ip(i int) string { return simnet.IntToPublicIPv4(i).String() }

func hostOf(a net.Addr) string {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.IP.String()
	}
	return a.String()
}
