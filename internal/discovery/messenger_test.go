package discovery

import (
	"io"
	"testing"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/p2p"
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

func TestMessenger_KeepsNoStreamOfAConnectionThatIsGone(t *testing.T) {
	const kad = "/kwaai/test/kad/1.0.0"
	newHost := func() *p2p.Host {
		key, err := p2p.NewIdentity()
		require.NoError(t, err)
		cfg := p2p.DefaultConfig()
		cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
		h, err := p2p.New(key, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, h.Close()) })
		return h
	}
	a, b := newHost(), newHost()
	b.SetStreamHandler(kad, func(st network.Stream) { _, _ = io.Copy(io.Discard, st) })
	require.NoError(t, a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}))
	m := newMessenger(a, kad)
	l, err := m.take(t.Context(), b.ID())
	require.NoError(t, err)
	m.put(b.ID(), l)
	require.Len(t, m.idle[b.ID()], 1)

	l, err = m.take(t.Context(), b.ID())
	require.NoError(t, err)
	m.OnDisconnect(t.Context(), b.ID()) // told of, while an exchange ends well
	require.NoError(t, a.Network().ClosePeer(b.ID()))
	m.put(b.ID(), l)
	require.Empty(t, m.idle)
}
