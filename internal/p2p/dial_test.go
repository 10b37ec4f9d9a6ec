package p2p

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

func TestRankDials(t *testing.T) {
	const relay = "/ip4/1.1.1.1/tcp/7577/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA/p2p-circuit"
	for _, test := range []struct {
		name  string
		addrs []string
		want  []string
	}{
		{"nothing", nil, nil},
		{
			"TCP before QUIC",
			[]string{"/ip4/1.2.3.4/udp/7577/quic-v1", "/ip4/1.2.3.4/tcp/7577"},
			[]string{"0s /ip4/1.2.3.4/tcp/7577", "1s /ip4/1.2.3.4/udp/7577/quic-v1"},
		},
		{"QUIC alone does not wait", []string{"/ip4/1.2.3.4/udp/7577/quic-v1"}, []string{"0s /ip4/1.2.3.4/udp/7577/quic-v1"}},
		{
			"near addresses all at once, far ones one after the other",
			[]string{"/ip4/10.0.0.1/tcp/1", "/ip4/192.168.0.1/tcp/1", "/ip6/2a00::1/tcp/1", "/ip4/1.2.3.4/tcp/1"},
			[]string{"0s /ip4/10.0.0.1/tcp/1", "0s /ip4/192.168.0.1/tcp/1", "0s /ip6/2a00::1/tcp/1", "250ms /ip4/1.2.3.4/tcp/1"},
		},
		{"relays last", []string{relay, "/ip4/1.2.3.4/udp/1/quic-v1"}, []string{"0s /ip4/1.2.3.4/udp/1/quic-v1", "2s " + relay}},
		{"a relay alone does not wait", []string{relay}, []string{"0s " + relay}},
	} {
		t.Run(test.name, func(t *testing.T) {
			addrs, err := multiaddrs(test.addrs)
			require.NoError(t, err)
			var got []string
			for _, r := range rankDials(addrs) {
				got = append(got, fmt.Sprint(r.Delay, " ", r.Addr))
			}
			require.Equal(t, test.want, got)
		})
	}
}

func TestHost_DialsTCPFirst(t *testing.T) {
	a, b := newHost(t, loopback()), newHost(t, loopback())
	connect(t, a, b)
	for _, c := range a.Network().ConnsToPeer(b.ID()) {
		require.True(t, isTCP(c.RemoteMultiaddr()), "%s", c.RemoteMultiaddr())
	}
}

func TestHost_TakesQUICAtOnceWhenTCPIsRefused(t *testing.T) {
	a, b := newHost(t, loopback()), newHost(t, loopback())
	info := addrInfo(b)
	for i, addr := range info.Addrs { // a TCP port where nobody listens
		if isTCP(addr) {
			info.Addrs[i] = ma.StringCast("/ip4/127.0.0.1/tcp/1")
		}
	}
	start := time.Now()
	require.NoError(t, a.Connect(t.Context(), info))
	require.Less(t, time.Since(start), quicDelay, "the delay is for addresses that swallow packets")
	require.True(t, isQUIC(a.Network().ConnsToPeer(b.ID())[0].RemoteMultiaddr()))
}

// libp2p takes a hundred failures in a row for a network that carries no UDP, or no IPv6, and lets one dial in a hundred through from
// then on. Here they say something else: QUIC is dialled where TCP has failed, so mostly in vain, and whoever is cut off fails with all.
func TestHost_DialsQUICHoweverOftenItFailed(t *testing.T) {
	for name, addr := range map[string]string{
		"IPv4": "/ip4/9.9.9.9/udp/0/quic-v1", // a public address, and a port to which the system sends nothing
		"IPv6": "/ip6/2620:fe::9/udp/0/quic-v1",
	} {
		t.Run(name, func(t *testing.T) {
			a := newHost(t, loopback())
			info := peer.AddrInfo{ID: test.RandPeerIDFatal(t), Addrs: []ma.Multiaddr{ma.StringCast(addr)}}
			for range 105 {
				a.ForgetFailures(info.ID)
				err := a.Connect(t.Context(), info)
				require.Error(t, err)
				require.NotErrorIs(t, err, swarm.ErrDialRefusedBlackHole)
			}
		})
	}
}
