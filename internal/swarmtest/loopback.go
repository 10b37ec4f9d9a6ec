package swarmtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/p2p"
)

// Deadline is how long a condition may take to become true before a test gives up. It is far above what it takes.
const Deadline = 20 * time.Second

// Eventually waits until the condition holds, and fails the test when it does not in time.
func Eventually(tb testing.TB, condition func() bool, what string) {
	tb.Helper()
	require.Eventually(tb, condition, Deadline, 5*time.Millisecond, what)
}

// LoopbackConfig listens on free ports of 127.0.0.1, TCP and QUIC.
func LoopbackConfig() p2p.Config {
	cfg := p2p.DefaultConfig()
	cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}
	return cfg
}

// TCPConfig listens on a free TCP port of 127.0.0.1 only.
func TCPConfig() p2p.Config {
	cfg := LoopbackConfig()
	cfg.Listen = cfg.Listen[:1]
	return cfg
}

// NewHost makes a host under a new key and runs it until the test ends.
func NewHost(tb testing.TB, cfg p2p.Config, opts ...p2p.Option) *p2p.Host {
	tb.Helper()
	key, err := p2p.NewIdentity()
	require.NoError(tb, err)
	h, err := p2p.New(key, cfg, opts...)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, h.Close()) })
	run(tb, h.Run)
	return h
}

// Connect dials from one host to another and waits until they know each other.
func Connect(tb testing.TB, from, to host.Host) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	require.NoError(tb, from.Connect(ctx, AddrInfo(to)))
}

// AddrInfo says how to dial a host.
func AddrInfo(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// Addrs returns a host's full multiaddrs, as a bootstrap list has them.
func Addrs(tb testing.TB, h host.Host) []string {
	tb.Helper()
	info := AddrInfo(h)
	addrs, err := peer.AddrInfoToP2pAddrs(&info)
	require.NoError(tb, err)
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// Node is a host with discovery, as a node has them.
type Node struct {
	Host      host.Host // a *p2p.Host, or one of a Sim
	Discovery *discovery.Service
	Hosted    *Hosted

	stop func()
}

// NewNode starts discovery on a host, in the default swarm or as change says, until the test ends or Stop. In a Sim's bubble too.
func NewNode(tb testing.TB, h host.Host, ids []expert.ID, change func(*discovery.Config), opts ...discovery.Option) *Node {
	tb.Helper()
	cfg := discovery.DefaultConfig()
	if change != nil {
		change(&cfg)
	}
	n := &Node{Host: h, Hosted: NewHosted(ids...)}
	var err error
	if h, ok := h.(*p2p.Host); ok {
		opts = append([]discovery.Option{discovery.WithReachability(h.Reachability)}, opts...)
	}
	n.Discovery, err = discovery.New(h, n.Hosted, cfg, opts...)
	require.NoError(tb, err)
	end := run(tb, n.Discovery.Run)
	n.stop = sync.OnceFunc(func() {
		end()
		require.NoError(tb, n.Discovery.Close())
	})
	tb.Cleanup(n.stop)
	return n
}

// Stop ends discovery and the host, as a node does that is told to.
func (n *Node) Stop(tb testing.TB) {
	tb.Helper()
	n.stop()
	require.NoError(tb, n.Host.Close())
}

// Swarm makes n nodes on loopback that joined by the first one, and waits until each has all others in its routing table (or the
// 20 that it keeps of each distance). Node i hosts what hosts(i) returns.
func Swarm(tb testing.TB, n int, hosts func(i int) []expert.ID) []*Node {
	tb.Helper()
	if hosts == nil {
		hosts = func(int) []expert.ID { return nil }
	}
	nodes := make([]*Node, n)
	for i := range nodes {
		nodes[i] = NewNode(tb, NewHost(tb, TCPConfig()), hosts(i), func(cfg *discovery.Config) {
			if i > 0 {
				cfg.Bootstrap = Addrs(tb, nodes[0].Host)
			}
		})
	}
	for _, node := range nodes {
		Eventually(tb, func() bool { return node.Discovery.Status().Peers >= min(n-1, 10) }, "a node does not meet the others")
	}
	return nodes
}

// run runs a service in the background until the returned function is called, or the test ends.
func run(tb testing.TB, service func(context.Context) error) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = service(ctx) // ends with the cause of ctx
	}()
	end = func() {
		cancel()
		<-done
	}
	tb.Cleanup(end)
	return end
}
