package rpc_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// The bare echo is what the protocol is measured against: the same bytes, there and back, on a stream that is open already. Like an
// exchange it has all of a message before it answers.
const echoProtocol = "/kwaai/bench/echo/"

// echo answers every size bytes with the same bytes.
func echo(h host.Host, size int) {
	h.SetStreamHandler(echoID(size), func(st network.Stream) {
		defer st.Close()
		buf := make([]byte, size)
		for {
			if _, err := io.ReadFull(st, buf); err != nil {
				return
			}
			if _, err := st.Write(buf); err != nil {
				return
			}
		}
	})
}

func echoID(size int) protocol.ID { return protocol.ID(fmt.Sprint(echoProtocol, size)) }

// echoClient is one caller of the echo, on a stream of its own.
type echoClient struct {
	st      network.Stream
	out, in []byte
}

func dialEcho(t testing.TB, h host.Host, p peer.ID, size int) *echoClient {
	t.Helper()
	st, err := h.NewStream(within(t), p, echoID(size))
	require.NoError(t, err)
	t.Cleanup(func() { _ = st.Reset() })
	c := &echoClient{st: st, out: make([]byte, size), in: make([]byte, size)}
	require.NoError(t, c.exchange())
	return c
}

func (c *echoClient) exchange() error {
	if _, err := c.st.Write(c.out); err != nil {
		return err
	}
	_, err := io.ReadFull(c.st, c.in)
	return err
}

// echoChild makes the test binary the other process of BenchmarkTwoProcessEcho.
var echoChild = flag.Bool("rpc.echo-child", false, "be the host of the bare echo until standard input ends")

// The sizes of the echo: a row of 1,024, and 2,048 of them.
const (
	echoRow   = 4 << 10
	echoBatch = 8 << 20
)

// TCP and TLS, as nodes on one network speak to each other.
func tcpOptions() []libp2p.Option {
	return []libp2p.Option{
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
	}
}

// runEchoChild prints its address and serves until standard input ends, with its parent at the latest.
func runEchoChild() error {
	h, err := libp2p.New(tcpOptions()...)
	if err != nil {
		return err
	}
	echo(h, echoRow)
	echo(h, echoBatch)
	if _, err := fmt.Printf("%v/p2p/%v\n", h.Addrs()[0], h.ID()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// startEchoChild starts the other process and returns its address.
func startEchoChild(t testing.TB) *peer.AddrInfo {
	t.Helper()
	child := exec.CommandContext(context.Background(), os.Args[0], "-rpc.echo-child") // ends with its standard input
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	require.NoError(t, err)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	t.Cleanup(func() {
		require.NoError(t, in.Close())
		require.NoError(t, child.Wait())
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	addr, err := multiaddr.NewMultiaddr(strings.TrimSpace(line))
	require.NoError(t, err)
	info, err := peer.AddrInfoFromP2pAddr(addr)
	require.NoError(t, err)
	return info
}

// BenchmarkTwoProcessEcho is the limit for `kwaaid bench` with an identity expert: the same bytes, two processes, TCP and TLS.
func BenchmarkTwoProcessEcho(b *testing.B) {
	callee := startEchoChild(b)
	caller := newHost(b, tcpOptions()...)
	caller.Peerstore().AddAddrs(callee.ID, callee.Addrs, peerstore.PermanentAddrTTL)
	for _, test := range []struct{ clients, size int }{{1, echoRow}, {8, echoRow}, {4, echoBatch}} {
		b.Run(fmt.Sprintf("clients=%d/bytes=%d", test.clients, test.size), func(b *testing.B) {
			clients := make([]*echoClient, test.clients)
			for i := range clients {
				clients[i] = dialEcho(b, caller, callee.ID, test.size)
			}
			b.SetBytes(int64(test.size)) // each way
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var g errgroup.Group
			for _, c := range clients {
				g.Go(func() error {
					for left.Add(-1) >= 0 {
						if err := c.exchange(); err != nil {
							return err
						}
					}
					return nil
				})
			}
			require.NoError(b, g.Wait())
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		})
	}
}
