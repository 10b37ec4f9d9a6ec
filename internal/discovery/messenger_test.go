package discovery

import (
	"testing"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

func TestKeepOnNetwork_PrivateAddressesOfPublicPeersAreDropped(t *testing.T) {
	const loopback, private, public, relayed = "/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1", "/ip4/8.8.8.8/tcp/1",
		"/ip4/8.8.8.8/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA/p2p-circuit"
	all := []string{loopback, private, public, relayed}
	for remote, want := range map[string][]string{
		loopback: all,
		private:  {private, public, relayed},
		public:   {public, relayed},
	} {
		told := &pb.Message_Peer{Addrs: [][]byte{[]byte("garbage")}}
		var ours []ma.Multiaddr
		for _, a := range all {
			told.Addrs = append(told.Addrs, ma.StringCast(a).Bytes())
			ours = append(ours, ma.StringCast(a))
		}
		keepOnNetwork([]*pb.Message_Peer{told, nil}, ma.StringCast(remote))
		require.Equal(t, want, texts(told.Addresses()), "told over %s", remote)
		require.Equal(t, want, texts(onNetwork(ours, ma.StringCast(remote))), "announced to %s", remote)
	}
}

func texts(addrs []ma.Multiaddr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

func FuzzKeepOnNetwork(f *testing.F) {
	f.Add(ma.StringCast("/ip4/192.168.1.2/tcp/1").Bytes(), ma.StringCast("/ip4/8.8.8.8/tcp/1").Bytes())
	f.Add([]byte{4, 127}, []byte("garbage"))
	remote := ma.StringCast("/ip4/8.8.8.8/tcp/1")
	f.Fuzz(func(t *testing.T, a, b []byte) {
		told := &pb.Message_Peer{Addrs: [][]byte{a, b}}
		keepOnNetwork([]*pb.Message_Peer{told}, remote)
		for _, kept := range told.Addresses() {
			require.True(t, belongs(kept, remote))
		}
	})
}
