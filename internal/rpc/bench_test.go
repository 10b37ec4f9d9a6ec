package rpc_test

import (
	"context"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/codec"
)

// The bare echo is what the protocol is measured against: the same bytes, there and back, on a stream that is open already.
const echoProtocol protocol.ID = "/kwaai/bench/echo"

// echo answers every size bytes with the same bytes.
func echo(h host.Host, size int) {
	h.SetStreamHandler(echoProtocol, func(st network.Stream) {
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

func BenchmarkRawEcho8KiB(b *testing.B) { benchmarkRawEcho(b, 8<<10) }
func BenchmarkRawEcho8MiB(b *testing.B) { benchmarkRawEcho(b, 8<<20) }

func benchmarkRawEcho(b *testing.B, size int) {
	caller, callee := newHost(b), newHost(b)
	introduce(caller, callee)
	echo(callee, size)
	st, err := caller.NewStream(b.Context(), callee.ID(), echoProtocol)
	require.NoError(b, err)
	defer st.Close()
	out, in := make([]byte, size), make([]byte, size)
	exchange := func() {
		if _, err := st.Write(out); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(st, in); err != nil {
			b.Fatal(err)
		}
	}
	exchange()
	b.SetBytes(2 * int64(size))
	b.ReportAllocs()
	for b.Loop() {
		exchange()
	}
}

func BenchmarkRemoteIdentity8KiB(b *testing.B) { benchmarkRemoteIdentity(b, 1, 2048) }
func BenchmarkRemoteIdentity8MiB(b *testing.B) { benchmarkRemoteIdentity(b, 2048, 1024) }

func benchmarkRemoteIdentity(b *testing.B, rows, hidden int) {
	s := newSwarm(b, options{})
	x, pairs := ramp(rows, hidden), all(7)
	ctx, cancel := context.WithTimeout(b.Context(), 10*waitFor)
	defer cancel()
	var overhead int64
	exchange := func() {
		reply, err := s.client.Call(ctx, s.host.ID(), x, pairs, codec.F32)
		if err != nil || reply.Results[0].Err != nil {
			b.Fatal(err, reply.Results)
		}
		overhead = reply.Bytes - 2*int64(codec.F32.Size(rows*hidden))
		reply.Release()
	}
	exchange()
	b.SetBytes(2 * int64(codec.F32.Size(rows*hidden)))
	b.ReportAllocs()
	for b.Loop() {
		exchange()
	}
	b.ReportMetric(float64(overhead), "overhead-B/op")
}
