package discovery_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// send writes raw bytes to a peer's DHT and waits until it has hung up or closed.
func send(t *testing.T, from host.Host, to peer.ID, data []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), swarmtest.Deadline)
	defer cancel()
	st, err := from.NewStream(ctx, to, discovery.Protocol("kwaai"))
	require.NoError(t, err)
	_, _ = st.Write(data) // the peer may hang up at any time, and that is as good as an end
	_ = st.CloseWrite()
	_, _ = io.Copy(io.Discard, st)
	_ = st.Reset()
}

// A host on a public network announces an address of its own cellar, and one of somebody else's.
func TestHostile_PrivateAddressesFromOutsideAreNotHandedOn(t *testing.T) {
	swarmtest.Simulate(t, 4, 1, func(t *testing.T, sim *swarmtest.Sim) {
		nodes := servers(t, sim, 2)
		liar := sim.Hosts[2]
		for _, n := range nodes {
			swarmtest.Connect(t, liar, n.Host)
			msg := pb.NewMessage(pb.Message_ADD_PROVIDER, discovery.Key(100).Hash(), 0)
			msg.ProviderPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{{ID: liar.ID(), Addrs: append([]ma.Multiaddr{
				ma.StringCast("/ip4/192.168.1.1/tcp/80"), ma.StringCast("/ip4/127.0.0.1/tcp/7577"),
			}, liar.Addrs()...)}})
			var buf bytes.Buffer
			_, err := protodelim.MarshalTo(&buf, msg)
			require.NoError(t, err)
			send(t, liar, n.Host.ID(), buf.Bytes())
		}
		client := clientOn(t, sim, 3)
		found, err := client.Discovery.Walk(t.Context(), 100)
		require.NoError(t, err)
		require.Equal(t, []peer.AddrInfo{swarmtest.AddrInfo(liar)}, found)
	})
}

func TestHostile_RecordsOfOnePeerAreBounded(t *testing.T) {
	nodes := swarmtest.Swarm(t, 2, nil)
	const tooMany = discovery.MaxRecordsPerPeer + 3000
	done, err := nodes[0].Discovery.Declare(t.Context(), sequence(0, tooMany)...)
	require.Error(t, err, "the greedy one hears that it was refused")
	require.Less(t, done, tooMany)
	require.LessOrEqual(t, nodes[1].Discovery.Records(), discovery.MaxRecordsPerPeer)
	require.Greater(t, nodes[1].Discovery.Records(), discovery.MaxRecordsPerPeer/2)
	_, err = nodes[1].Discovery.Declare(t.Context(), 1<<40)
	require.NoError(t, err, "others are as welcome as before")
}

func TestHostile_GarbageLeavesTheServerWell(t *testing.T) {
	nodes := swarmtest.Swarm(t, 2, func(i int) []expert.ID { return []expert.ID{expert.ID(i)} })
	for _, garbage := range [][]byte{
		{0}, {0xff, 0xff, 0xff, 0xff, 0x0f}, bytes.Repeat([]byte{7}, 100_000), {2, 8, 2}, {3, 8, 0xff, 0x7f},
	} {
		send(t, nodes[0].Host, nodes[1].Host.ID(), garbage)
	}
	client := swarmtest.NewNode(t, newHost(t), nil, by(t, nodes[1].Host))
	found, err := client.Discovery.Find(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, found, 1)
}

// Servers of the DHT name more hosts of an expert than there can be.
func TestHostile_MadeUpProvidersAreBounded(t *testing.T) {
	const each = 20_000
	var bootstrap []string
	for liar := range 2 {
		providers := make([]peer.AddrInfo, each)
		for i := range providers {
			id, err := peer.IDFromBytes(append([]byte{0, 36, 8, 1, 18, 32}, fmt.Appendf(nil, "%032d", liar*each+i)...))
			require.NoError(t, err)
			providers[i] = peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}
		}
		h := newHost(t)
		named := pb.RawPeerInfosToPBPeers(providers)
		h.SetStreamHandler(discovery.Protocol("kwaai"), func(st network.Stream) {
			defer st.Close()
			for r := bufio.NewReader(st); ; {
				msg := new(pb.Message)
				if protodelim.UnmarshalFrom(r, msg) != nil {
					return
				}
				reply := pb.NewMessage(msg.GetType(), msg.GetKey(), 0)
				if msg.GetType() == pb.Message_GET_PROVIDERS {
					reply.ProviderPeers = named
				}
				if _, err := protodelim.MarshalTo(st, reply); err != nil {
					return
				}
			}
		})
		bootstrap = append(bootstrap, swarmtest.Addrs(t, h)...)
	}
	var told atomic.Int64
	client := swarmtest.NewNode(t, newHost(t), nil, func(cfg *discovery.Config) { cfg.Bootstrap = bootstrap },
		discovery.WithFound(func(expert.ID, peer.AddrInfo) { told.Add(1) }))
	swarmtest.Eventually(t, func() bool { return status(client).Peers == 2 }, "the liars are not asked")
	found, err := client.Discovery.Walk(t.Context(), 7)
	require.NoError(t, err)
	require.Equal(t, discovery.MaxFound, len(found)) //nolint:testifylint // nobody wants to read them all
	require.EqualValues(t, discovery.MaxFound, told.Load())
	require.Less(t, len(client.Host.Peerstore().PeersWithAddrs()), 3*discovery.MaxFound)
}
