package rpc_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// A TCP connection that moves nothing fills up: yamux's queue of frames too, where a write waits that no reset wakes, and where a
// reset itself waits. Callers get their answers all the same.
func TestCall_EndsAtOnceWhenTheConnectionIsFull(t *testing.T) {
	s := newSwarm(t, options{})
	proxy := swarmtest.NewProxy(t, 1)
	target, err := manet.ToNetAddr(s.host.Addrs()[0])
	require.NoError(t, err)
	proxy.SetTarget(target.String())
	s.caller.Peerstore().ClearAddrs(s.host.ID())
	s.caller.Peerstore().AddAddr(s.host.ID(), multiaddr.StringCast(proxy.Multiaddr()), peerstore.PermanentAddrTTL)
	s.requireWell(t)

	proxy.Set(swarmtest.Faults{Hold: true})
	x := ramp(1024, 1024)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	ended := make(chan time.Time, 40)
	for range cap(ended) {
		wg.Go(func() {
			_, err := s.client.Call(ctx, s.host.ID(), x, all(7), codec.F32)
			ended <- time.Now()
			if !errors.Is(err, expert.ErrCancelled) {
				t.Error(err)
			}
		})
	}
	// Some of them write, some wait for those that do, some for a stream.
	require.Eventually(t, func() bool { return streams(s.caller, s.host.ID()) > cap(ended)/2 }, waitFor, time.Millisecond)
	cancel()
	cancelled := time.Now()
	wg.Wait()
	for range cap(ended) {
		require.Less(t, (<-ended).Sub(cancelled), 3*time.Second)
	}
	proxy.Set(swarmtest.Faults{})
}
