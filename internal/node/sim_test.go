package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/dispatch"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/serving"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// simHandler is serving's host in rpc's words, as handler is for a node.
type simHandler struct{ *serving.Host }

func (h simHandler) Admit(rows, hidden int, pairs []expert.Pair) rpc.Admission {
	return h.Host.Admit(rows, hidden, pairs)
}

// nowhere finds nobody: the providers are known.
type nowhere struct{}

func (nowhere) Find(context.Context, expert.ID) ([]peer.AddrInfo, error) { return nil, nil }
func (nowhere) Walk(context.Context, expert.ID) ([]peer.AddrInfo, error) { return nil, nil }

// simExpert is hosted by all but the caller.
const simExpert = expert.ID(7)

// simSwarm is a caller (host 0 of the simulation) and three hosts of one expert, all real but for the network, 20 ms apart.
type simSwarm struct {
	*swarmtest.Sim
	t        *testing.T
	dispatch *dispatch.Dispatcher
	index    map[peer.ID]int
}

func simulateSwarm(t *testing.T, test func(s *simSwarm)) {
	t.Helper()
	const hosts = 3
	swarmtest.Simulate(t, hosts+1, 1, func(t *testing.T, sim *swarmtest.Sim) {
		s := &simSwarm{Sim: sim, t: t, index: map[peer.ID]int{}}
		start := func(run func(context.Context) error) {
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = run(ctx) // ends with ctx's cause
			}()
			t.Cleanup(func() {
				stop()
				<-done
			})
		}
		table := registry.New(registry.DefaultLimits(), time.Now())
		caller := sim.Hosts[0]
		caller.Network().Notify(&network.NotifyBundle{
			ConnectedF: func(_ network.Network, c network.Conn) { table.Connected(c.RemotePeer(), time.Now()) },
			DisconnectedF: func(n network.Network, c network.Conn) {
				if n.Connectedness(c.RemotePeer()) != network.Connected {
					table.Disconnected(c.RemotePeer(), time.Now())
				}
			},
		})
		for i := 1; i <= hosts; i++ {
			host, err := serving.New(serving.DefaultConfig())
			require.NoError(t, err)
			t.Cleanup(host.Close)
			loading, err := host.Begin(serving.Offer{ID: simExpert, Load: func(context.Context) (expert.Expert, error) {
				return expert.NewIdentity(4)
			}})
			require.NoError(t, err)
			require.NoError(t, loading.Run(t.Context()))
			server, err := rpc.NewServer(sim.Hosts[i], simHandler{host}, rpc.DefaultServerConfig())
			require.NoError(t, err)
			start(server.Run)
			synctest.Wait()
			swarmtest.Connect(t, caller, sim.Hosts[i])
			s.index[sim.Hosts[i].ID()] = i
			table.AddProvider(simExpert, sim.Hosts[i].ID(), registry.Static, time.Now())
		}
		client, err := rpc.NewClient(caller, rpc.DefaultClientConfig())
		require.NoError(t, err)
		start(client.Run)
		s.dispatch = dispatch.New(dispatch.DefaultConfig(), table, nowhere{}, &countingCaller{Client: client}, nothing{})
		t.Cleanup(s.dispatch.Close)
		test(s)
	})
}

// call makes one call and returns who answered, and after how long.
func (s *simSwarm) call() (host int, took time.Duration, err error) {
	begun := time.Now()
	x := expert.NewRows([]float32{1, 2, 3, 4}, 4)
	answers, err := s.dispatch.Call(s.t.Context(), dispatch.Request{X: x, Pairs: []expert.Pair{{Expert: simExpert}}, Codec: codec.F32})
	took = time.Since(begun)
	require.NoError(s.t, err, "the request is in order")
	if a := answers[0]; a.Err != nil {
		return 0, took, a.Err
	}
	require.Equal(s.t, []float32{1, 2, 3, 4}, answers[0].Output.Data())
	return s.index[answers[0].Peer], took, nil
}

// calls makes a number of them that must all be answered; it returns who answered the last, and the longest time.
func (s *simSwarm) calls(n int) (last int, slowest time.Duration) {
	s.t.Helper()
	for range n {
		host, took, err := s.call()
		require.NoError(s.t, err)
		last, slowest = host, max(slowest, took)
	}
	return last, slowest
}

func TestSim_AHostThatFreezesCostsOneCallAFewRoundTrips(t *testing.T) {
	simulateSwarm(t, func(s *simSwarm) {
		const noticed = 60 * time.Millisecond // no other call takes so long
		last, slowest := 0, time.Duration(0)
		for n := 0; slowest <= noticed; n++ { // a ping may tell before a call has to
			require.Less(t, n, 20, "the frozen host is in use")
			s.Weather.Heal()
			last, _ = s.calls(100)
			s.Weather.CutOff(last, 4)
			_, slowest = s.calls(100)
		}
		require.Less(t, slowest, 300*time.Millisecond)
		s.Weather.Heal()
		// Back within the breaker's longest rest, without anybody telling.
		deadline := time.Now().Add(time.Minute)
		for host := 0; host != last; {
			require.True(t, time.Now().Before(deadline), "the host that thawed is asked again")
			var err error
			host, _, err = s.call()
			require.NoError(t, err)
		}
	})
}

func TestSim_LostPacketsFailNoCall(t *testing.T) {
	simulateSwarm(t, func(s *simSwarm) {
		s.calls(100)
		s.Weather.SetLoss(0.05)
		s.calls(300)
		s.Weather.SetLoss(0)
		_, slowest := s.calls(1)
		require.Less(t, slowest, time.Second)
	})
}

func TestSim_APartitionEndsCallsAtTheirDeadlineAndHeals(t *testing.T) {
	simulateSwarm(t, func(s *simSwarm) {
		s.calls(20)
		s.Weather.CutOff(0, 4)
		for range 3 {
			_, took, err := s.call()
			require.Error(t, err)
			require.LessOrEqual(t, took, dispatch.DefaultConfig().Timeout)
			var call *expert.CallError
			require.ErrorAs(t, err, &call)
			require.Equal(t, simExpert, call.Expert)
			require.NotEmpty(t, call.Attempts)
		}
		s.Weather.Heal()
		require.Eventually(t, func() bool {
			_, _, err := s.call()
			return err == nil
		}, time.Minute, 100*time.Millisecond, "calls work again")
	})
}
