package p2p

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestValidate_DefaultsAreFine(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	require.NoError(t, ClientConfig().Validate())
	require.Empty(t, ClientConfig().Listen)
}

func TestValidate_ReportsEverythingAtOnce(t *testing.T) {
	err := Config{
		Listen:   []string{"nonsense", "/ip4/127.0.0.1/udp/7577", "/ip4/127.0.0.1/tcp/7577"},
		Announce: []string{"10.0.0.1:7577"},
		NAT:      NAT{HolePunching: true},
		Limits:   Limits{Connections: 3, StreamsPerPeer: 1},
	}.Validate()
	for _, want := range []string{
		`listen: "nonsense" is no multiaddr`,
		`listen: /ip4/127.0.0.1/udp/7577 is neither TCP nor QUIC`,
		`announce: "10.0.0.1:7577" is no multiaddr`,
		`nat.hole_punching: needs nat.relay`,
		`limits.connections: 3 is under 40`,
		`limits.streams_per_peer: 1 is under 2`,
	} {
		require.ErrorContains(t, err, want)
	}
}
