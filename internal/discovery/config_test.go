package discovery

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	somePeer  = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"
	otherPeer = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
)

func TestValidate_ReportsEverythingAtOnce(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	err := Config{Swarm: "a/b", DHT: "maybe", Bootstrap: []string{"/ip4/10.0.0.1/tcp/7577", "nonsense", "/p2p/" + somePeer}}.Validate()
	for _, want := range []string{
		`swarm: "a/b" does not match`,
		`dht: "maybe" is none of auto, server, client`,
		`"/ip4/10.0.0.1/tcp/7577" does not end in /p2p/PEER`,
		`"nonsense" is no multiaddr`,
		`holds no address in front of /p2p/`,
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestParsePeers_JoinsTheAddressesOfOnePeer(t *testing.T) {
	peers, err := ParsePeers([]string{
		"/ip4/10.0.0.1/tcp/1/p2p/" + somePeer, "/dns/example.org/tcp/1/p2p/" + otherPeer, "/ip4/10.0.0.1/udp/1/quic-v1/p2p/" + somePeer,
	})
	require.NoError(t, err)
	require.Len(t, peers, 2)
	require.Equal(t, somePeer, peers[0].ID.String())
	require.Len(t, peers[0].Addrs, 2)
	require.Equal(t, "/dns/example.org/tcp/1", peers[1].Addrs[0].String())
}
