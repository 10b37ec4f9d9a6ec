package rpc_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/rpc"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *echoChild {
		if err := runEchoChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// waitFor bounds what a test waits for; it is met in milliseconds.
const waitFor = 20 * time.Second

// newHost makes a host on loopback TCP. Without opts, its resource manager limits nothing.
func newHost(t testing.TB, opts ...libp2p.Option) host.Host {
	t.Helper()
	if len(opts) == 0 {
		opts = append(opts, libp2p.ResourceManager(unlimited(t)), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics())
	}
	h, err := libp2p.New(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

func unlimited(t testing.TB) network.ResourceManager {
	t.Helper()
	resources, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(rcmgr.InfiniteLimits), rcmgr.WithMetricsDisabled())
	require.NoError(t, err)
	return resources
}

// introduce tells a where b is.
func introduce(a, b host.Host) {
	a.Peerstore().AddAddrs(b.ID(), b.Addrs(), peerstore.PermanentAddrTTL)
}

// background runs a service until the test ends.
func background(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			require.ErrorIs(t, err, context.Canceled)
		case <-time.After(waitFor):
			t.Error("a service did not end")
		}
	})
}

// swarm is a caller and a host that are introduced.
type swarm struct {
	caller, host host.Host
	client       *rpc.Client
	server       *rpc.Server
	handler      *fakeHandler
}

// options change a swarm before it starts.
type options struct {
	handler    rpc.Handler
	clientCfg  func(*rpc.ClientConfig)
	serverCfg  func(*rpc.ServerConfig)
	clientOpts []rpc.ClientOption
	serverOpts []rpc.ServerOption
	hostOpts   []libp2p.Option
}

func newSwarm(t testing.TB, o options) *swarm {
	t.Helper()
	s := &swarm{caller: newHost(t), host: newHost(t, o.hostOpts...), handler: &fakeHandler{hold: make(chan struct{})}}
	introduce(s.caller, s.host)
	clientCfg, serverCfg := rpc.DefaultClientConfig(), rpc.DefaultServerConfig()
	if o.clientCfg != nil {
		o.clientCfg(&clientCfg)
	}
	if o.serverCfg != nil {
		o.serverCfg(&serverCfg)
	}
	var handler rpc.Handler = s.handler
	if o.handler != nil {
		handler = o.handler
	}
	var err error
	s.server, err = rpc.NewServer(s.host, handler, serverCfg, o.serverOpts...)
	require.NoError(t, err)
	s.client, err = rpc.NewClient(s.caller, clientCfg, o.clientOpts...)
	require.NoError(t, err)
	background(t, s.server.Run)
	background(t, s.client.Run)
	require.Eventually(t, func() bool { return slices.Contains(s.host.Mux().Protocols(), rpc.Protocol) }, waitFor, time.Millisecond)
	return s
}

// streams counts the open streams of the protocol between a host and a peer.
func streams(h host.Host, p peer.ID) int {
	n := 0
	for _, c := range h.Network().ConnsToPeer(p) {
		for _, st := range c.GetStreams() {
			if st.Protocol() == rpc.Protocol {
				n++
			}
		}
	}
	return n
}

// fakeHandler is a host of identity experts under every ID, unless its functions say otherwise.
type fakeHandler struct {
	refuse func(i int, p expert.Pair) error
	run    func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) []expert.Result

	hold chan struct{} // for tests that keep work from ending

	admitted, released, ran atomic.Int64

	mu          sync.Mutex
	load        expert.Load
	description expert.Description
}

// digestOf is the digest of the fake experts: the ID again and again.
func digestOf(id expert.ID) (d expert.Digest) {
	for i := range d {
		d[i] = byte(id)
	}
	return d
}

func (f *fakeHandler) Admit(_, hidden int, pairs []expert.Pair) rpc.Admission {
	f.admitted.Add(1)
	a := &fakeAdmission{handler: f, pairs: pairs, hidden: hidden}
	if f.refuse != nil {
		a.refused = make([]error, len(pairs))
		for i, p := range pairs {
			a.refused[i] = f.refuse(i, p)
		}
	}
	return a
}

func (f *fakeHandler) Describe() expert.Description {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.description
}

func (f *fakeHandler) Load() expert.Load {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.load
}

type fakeAdmission struct {
	handler *fakeHandler
	pairs   []expert.Pair
	hidden  int
	refused []error
}

func (a *fakeAdmission) Refused() []error { return a.refused }

func (a *fakeAdmission) Release() { a.handler.released.Add(1) }

func (a *fakeAdmission) Run(ctx context.Context, x *tensor.Dense) []expert.Result {
	a.handler.ran.Add(1)
	if a.handler.run != nil {
		return a.handler.run(ctx, x, a.pairs)
	}
	results := make([]expert.Result, len(a.pairs))
	for i, p := range a.pairs {
		switch {
		case a.refused != nil && a.refused[i] != nil:
			results[i].Err = a.refused[i]
		case p.Rows == nil:
			results[i] = expert.Result{Output: x, Digest: digestOf(p.Expert), Numerics: "exact-1"}
		default:
			results[i] = expert.Result{Output: gather(x, p.Rows), Digest: digestOf(p.Expert), Numerics: "exact-1"}
		}
	}
	return results
}

// gather copies some rows of x.
func gather(x *tensor.Dense, rows []int32) *tensor.Dense {
	hidden := x.Shape()[1]
	all := x.Float32s()
	some := make([]float32, 0, len(rows)*hidden)
	for _, row := range rows {
		some = append(some, all[int(row)*hidden:(int(row)+1)*hidden]...)
	}
	return expert.NewRows(some, hidden)
}

// ramp makes rows whose numbers all differ, small enough to be exact as bf16 where step is a power of two.
func ramp(rows, hidden int) *tensor.Dense {
	values := make([]float32, rows*hidden)
	for i := range values {
		values[i] = float32(i)*0.5 - 7
	}
	return expert.NewRows(values, hidden)
}

// all asks for every row through one expert.
func all(id expert.ID) []expert.Pair { return []expert.Pair{{Expert: id}} }

// within makes a context that no test that works waits out.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	t.Cleanup(cancel)
	return ctx
}

// rawStream opens a stream to the host without the client.
func (s *swarm) rawStream(t testing.TB) network.Stream {
	t.Helper()
	st, err := s.caller.NewStream(within(t), s.host.ID(), rpc.Protocol)
	require.NoError(t, err)
	t.Cleanup(func() { _ = st.Reset() })
	return st
}

var errBoom = errors.New("boom")
