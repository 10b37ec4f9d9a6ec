package rpc_test

import (
	"context"
	"testing"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

func BenchmarkRawEcho8KiB(b *testing.B) { benchmarkRawEcho(b, 8<<10) }
func BenchmarkRawEcho8MiB(b *testing.B) { benchmarkRawEcho(b, 8<<20) }

func benchmarkRawEcho(b *testing.B, size int) {
	caller, callee := newHost(b), newHost(b)
	introduce(caller, callee)
	echo(callee, size)
	c := dialEcho(b, caller, callee.ID(), size)
	b.SetBytes(2 * int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if err := c.exchange(); err != nil {
			b.Fatal(err)
		}
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
		expert.Release(reply.Results[0].Memory)
	}
	exchange()
	b.SetBytes(2 * int64(codec.F32.Size(rows*hidden)))
	b.ReportAllocs()
	for b.Loop() {
		exchange()
	}
	b.ReportMetric(float64(overhead), "overhead-B/op")
}
