package rpc_test

import (
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/rpc"
)

// QUIC ends streams in other ways than yamux: what closes, resets and stops half-way is tried on it as well.
func TestQUIC_CarriesRefusesAndCloses(t *testing.T) {
	s := newSwarm(t, options{
		hostOpts: []libp2p.Option{
			libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.DisableRelay(), libp2p.DisableMetrics(),
			libp2p.ResourceManager(unlimited(t)),
		},
		serverCfg: func(c *rpc.ServerConfig) { c.Limits.Frame = 2 << 20 },
	})
	for range 2 {
		x := ramp(512, 1024)
		reply, err := s.client.Call(within(t), s.host.ID(), x, all(7), codec.F32)
		require.NoError(t, err)
		require.Equal(t, x.Float32s(), reply.Results[0].Output.Float32s())

		_, err = s.client.Call(within(t), s.host.ID(), ramp(513, 1024), all(7), codec.F32)
		require.ErrorIs(t, err, expert.ErrTooLarge, "the reply arrives though the host reads no more")
		s.requireWell(t)
	}
}
