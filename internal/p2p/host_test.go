package p2p

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

const deadline = 20 * time.Second

func loopback() Config {
	cfg := DefaultConfig()
	cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}
	return cfg
}

// newHost makes a host and runs it until the test ends.
func newHost(tb testing.TB, cfg Config, opts ...Option) *Host {
	tb.Helper()
	key, err := NewIdentity()
	require.NoError(tb, err)
	h, err := New(key, cfg, opts...)
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		require.ErrorIs(tb, <-done, context.Canceled)
		require.NoError(tb, h.Close())
	})
	return h
}

func addrInfo(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

func connect(tb testing.TB, from, to host.Host) {
	tb.Helper()
	require.NoError(tb, from.Connect(context.Background(), addrInfo(to)))
}

func eventually(tb testing.TB, condition func() bool) {
	tb.Helper()
	require.Eventually(tb, condition, deadline, 5*time.Millisecond)
}

func TestHost_TellsWhoComesAndGoes(t *testing.T) {
	var mu sync.Mutex
	var log []string
	note := func(what string) func(peer.ID) {
		return func(p peer.ID) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, what+" "+p.String())
		}
	}
	entries := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), log...)
	}
	reg := prometheus.NewRegistry()
	a := newHost(t, loopback(), WithEvents(Events{Connected: note("+"), Disconnected: note("-")}), WithMetrics(NewMetrics(reg), reg), WithUserAgent("kwaaid/test"))
	b := newHost(t, loopback())
	connect(t, b, a)
	eventually(t, func() bool { return len(entries()) == 1 })
	eventually(t, func() bool { rtt, ok := a.RTT(b.ID()); return ok && rtt > 0 && rtt < deadline })
	peers := a.Peers()
	require.Len(t, peers, 1)
	require.Equal(t, b.ID(), peers[0].ID)
	require.True(t, peers[0].Inbound)
	require.NotEmpty(t, peers[0].Addrs)
	require.Equal(t, "kwaaid/test", b.Peers()[0].Software)

	require.NoError(t, a.Network().ClosePeer(b.ID()))
	eventually(t, func() bool { return len(entries()) == 2 })
	require.Equal(t, []string{"+ " + b.ID().String(), "- " + b.ID().String()}, entries())
	metrics, err := reg.Gather()
	require.NoError(t, err)
	var names []string
	for _, m := range metrics {
		names = append(names, m.GetName())
	}
	require.Subset(t, names, []string{"kwaai_p2p_connected_peers", "kwaai_p2p_disconnects_total", "libp2p_rcmgr_connections"})
}

func TestNew_PortTakenNamesTheAddress(t *testing.T) {
	for _, transport := range []string{"tcp", "udp"} {
		t.Run(transport, func(t *testing.T) {
			holder := newHost(t, loopback())
			for _, a := range holder.ListenAddrs() {
				if (transport == "tcp") != isTCP(a) {
					continue
				}
				for _, punching := range []bool{false, true} { // with SO_REUSEPORT too
					cfg := loopback()
					cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0", a.String()}
					cfg.NAT = NAT{Relay: punching, HolePunching: punching}
					key, err := NewIdentity()
					require.NoError(t, err)
					_, err = New(key, cfg)
					listenErr, ok := errors.AsType[*ListenError](err)
					require.True(t, ok, "%v", err)
					require.Equal(t, a.String(), listenErr.Addr)
					require.ErrorIs(t, err, syscall.EADDRINUSE)
					require.ErrorContains(t, err, "the port is taken")
				}
			}
		})
	}
}

// The default addresses, on free ports. Where the machine has no IPv6, IPv4 will do.
func TestNew_WildcardsOfBothFamilies(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Listen = []string{"/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/tcp/0", "/ip6/::/udp/0/quic-v1"}
	h := newHost(t, cfg)
	require.NotEmpty(t, h.ListenAddrs())
	client := newHost(t, ClientConfig())
	connect(t, client, h)
	require.Empty(t, client.Addrs())
}

func TestNew_AddressOfAnotherMachine(t *testing.T) {
	cfg := loopback()
	cfg.Listen = []string{"/ip4/192.0.2.1/tcp/0"}
	key, err := NewIdentity()
	require.NoError(t, err)
	_, err = New(key, cfg)
	require.ErrorContains(t, err, "this machine does not have that address")
}

func TestHost_AnnouncesLoopbackOnlyWhenAllIsLoopback(t *testing.T) {
	h := newHost(t, loopback())
	require.Len(t, h.Addrs(), 2)
	require.Len(t, h.ListenAddrs(), 2)

	cfg := loopback()
	cfg.Listen = []string{"/ip4/0.0.0.0/tcp/0"}
	everywhere := newHost(t, cfg)
	if slices.ContainsFunc(interfaceIPs(), func(ip net.IP) bool { return !ip.IsLoopback() }) {
		for _, a := range everywhere.Addrs() {
			require.NotContains(t, a.String(), "127.0.0.1")
		}
	}
	var listened []string
	for _, a := range everywhere.ListenAddrs() {
		listened = append(listened, a.String())
	}
	require.Contains(t, listened, "/ip4/127.0.0.1/tcp/"+port(t, everywhere.ListenAddrs()[0]))

	cfg.Announce = []string{"/ip4/203.0.113.7/tcp/7577"}
	forwarded := newHost(t, cfg)
	require.Equal(t, "/ip4/203.0.113.7/tcp/7577", forwarded.Addrs()[0].String())
	require.Len(t, forwarded.Addrs(), 1)
}

// Without UPnP, whose search for a router outlives the host by 5 s.
func TestNew_HelpAgainstNATStartsAndEnds(t *testing.T) {
	cfg := loopback()
	cfg.Listen = []string{"/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"}
	cfg.NAT = NAT{Relay: true, HolePunching: true}
	a, b := newHost(t, cfg), newHost(t, cfg)
	connect(t, a, b)
	protocols, err := a.Peerstore().GetProtocols(b.ID())
	require.NoError(t, err)
	for _, want := range []protocol.ID{"/libp2p/circuit/relay/0.2.0/stop", "/libp2p/autonat/1.0.0", "/libp2p/autonat/2/dial-request"} {
		require.Contains(t, protocols, want)
	}
	plain := newHost(t, loopback())
	connect(t, a, plain)
	protocols, err = a.Peerstore().GetProtocols(plain.ID())
	require.NoError(t, err)
	for _, p := range protocols {
		require.NotContains(t, p, "autonat", "on loopback all of it is off")
	}
}

// Peers tell us which address they see; behind a router it is the router's, which answers nobody that we did not call.
func TestAdvertise_RoutersAddressOnlyWhenReachable(t *testing.T) {
	seen := []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/192.168.1.2/tcp/1"), ma.StringCast("/ip4/8.8.8.8/udp/1/quic-v1")}
	h := &Host{listen: []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/tcp/1")}}
	require.Equal(t, seen[:1], h.advertise(seen[:1]), "a machine without a network")
	require.Equal(t, seen[1:2], h.advertise(seen))
	h.dialled.Store(true)
	require.Equal(t, seen[1:], h.advertise(seen))
	h.dialled.Store(false)
	h.nat.AutoNAT = true
	require.Equal(t, seen[1:], h.advertise(seen), "AutoNAT tries it first")
}

func port(t *testing.T, a ma.Multiaddr) string {
	t.Helper()
	p, err := a.ValueForProtocol(ma.P_TCP)
	require.NoError(t, err)
	return p
}

func TestReachability(t *testing.T) {
	require.Equal(t, network.ReachabilityPrivate, newHost(t, loopback()).Reachability())
	require.Equal(t, network.ReachabilityPrivate, newHost(t, ClientConfig()).Reachability())
	cfg := loopback()
	cfg.Listen = []string{"/ip4/0.0.0.0/tcp/0"}
	h := newHost(t, cfg)
	require.Equal(t, network.ReachabilityUnknown, h.Reachability())
	cfg.Announce = []string{"/ip4/8.8.8.8/tcp/7577"}
	require.Equal(t, network.ReachabilityPublic, newHost(t, cfg).Reachability())

	e, err := h.EventBus().Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful)
	require.NoError(t, err)
	defer e.Close()
	require.NoError(t, e.Emit(event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate}))
	eventually(t, func() bool { return h.Reachability() == network.ReachabilityPrivate })
}

const testProtocol protocol.ID = "/kwaai/test/1.0.0"

// A host that was killed and comes back under its key and port is used again with the next call.
func TestNewStream_DialsAPeerThatCameBack(t *testing.T) {
	key, err := NewIdentity()
	require.NoError(t, err)
	protocols := WithProtocols(Protocol{ID: testProtocol, Service: "test"})
	client := newHost(t, loopback(), protocols)
	begin := func(cfg Config) *Host {
		h, err := New(key, cfg, protocols)
		require.NoError(t, err)
		h.SetStreamHandler(testProtocol, func(st network.Stream) { _ = st.Close() })
		return h
	}
	server := begin(loopback())
	cfg := loopback()
	cfg.Listen = nil
	for _, a := range server.ListenAddrs() {
		cfg.Listen = append(cfg.Listen, a.String())
	}
	client.Peerstore().AddAddrs(server.ID(), server.Addrs(), peerstore.PermanentAddrTTL) // as a static provider
	connect(t, client, server)
	require.NoError(t, server.Close())
	eventually(t, func() bool { return client.Network().Connectedness(server.ID()) != network.Connected })
	for range 3 {
		began := time.Now()
		_, err = client.NewStream(t.Context(), server.ID(), testProtocol)
		require.Error(t, err)
		require.Less(t, time.Since(began), dialTimeout/2, "a dead peer is silent over QUIC, but TCP says that it is dead")
	}
	server = begin(cfg)
	defer server.Close()
	_, err = client.NewStream(t.Context(), server.ID(), testProtocol)
	require.NoError(t, err)
}

// Every field of a limit that is left out blocks all. So: streams both ways, and memory, at every scope that they pass.
func TestLimits_OurProtocolIsNotBlocked(t *testing.T) {
	const message = 8 << 20
	protocols := WithProtocols(Protocol{ID: testProtocol, Service: "test"})
	a, b := newHost(t, loopback(), protocols), newHost(t, loopback(), protocols)
	for _, h := range []*Host{a, b} {
		h.SetStreamHandler(testProtocol, func(st network.Stream) {
			defer st.Close()
			if st.Scope().SetService("test") != nil || st.Scope().ReserveMemory(message, network.ReservationPriorityAlways) != nil {
				_ = st.Reset()
				return
			}
			_, _ = io.Copy(st, st)
		})
	}
	connect(t, a, b)
	for _, way := range [][2]*Host{{a, b}, {b, a}} {
		st, err := way[0].NewStream(t.Context(), way[1].ID(), testProtocol)
		require.NoError(t, err)
		require.NoError(t, st.Scope().SetService("test"))
		require.NoError(t, st.Scope().ReserveMemory(message, network.ReservationPriorityAlways))
		data := bytes.Repeat([]byte("kwaai"), 1<<16)
		go func() {
			_, _ = st.Write(data)
			_ = st.CloseWrite()
		}()
		got, err := io.ReadAll(st)
		require.NoError(t, err)
		require.Equal(t, data, got)
		require.NoError(t, st.Close())
	}
}

func TestLimits_StreamsOfOnePeerAreBounded(t *testing.T) {
	cfg := loopback()
	cfg.Limits.StreamsPerPeer = 4
	server := newHost(t, cfg, WithProtocols(Protocol{ID: testProtocol, Service: "test"}))
	server.SetStreamHandler(testProtocol, func(st network.Stream) { _, _ = io.Copy(st, st) })
	client := newHost(t, loopback())
	connect(t, client, server)
	works := func() bool {
		st, err := client.NewStream(t.Context(), server.ID(), testProtocol)
		require.NoError(t, err)
		t.Cleanup(func() { _ = st.Reset() })
		_, err = st.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(st, make([]byte, 1))
		}
		return err == nil
	}
	for range 4 {
		require.True(t, works())
	}
	require.False(t, works())
}

// Whatever strangers send to a port, nothing is logged above debug.
func TestHost_RandomBytesAreQuiet(t *testing.T) {
	var out syncBuffer
	log := zerolog.New(&out).Level(zerolog.InfoLevel)
	BridgeLogs(log)
	t.Cleanup(func() { BridgeLogs(zerolog.Nop()) })
	h := newHost(t, loopback(), WithLogger(log))
	for _, a := range h.ListenAddrs() {
		if !isTCP(a) {
			continue
		}
		for range 3 {
			c, err := net.Dial("tcp", "127.0.0.1:"+port(t, a))
			require.NoError(t, err)
			_, _ = c.Write(bytes.Repeat([]byte{0x13, 0x37, 0xff}, 1000))
			require.NoError(t, c.SetReadDeadline(time.Now().Add(deadline)))
			_, err = io.Copy(io.Discard, c) // until the host hangs up
			if err != nil {
				require.NotErrorIs(t, err, context.DeadlineExceeded)
			}
			require.NoError(t, c.Close())
		}
	}
	connect(t, newHost(t, loopback()), h)
	require.Empty(t, out.String())
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestProbe_SaysWhichPortIsTakenAndKeepsNone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)
	err = Probe(addr)
	require.ErrorAs(t, err, new(*ListenError))
	require.Contains(t, err.Error(), addr)
	require.NoError(t, l.Close())
	require.NoError(t, Probe(addr))
	require.NoError(t, Probe(addr))
	require.Error(t, Probe("127.0.0.1:7577"))
}
