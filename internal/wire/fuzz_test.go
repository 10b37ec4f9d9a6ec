package wire_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
	expertv1 "github.com/kwaai/kwaaid/proto/kwaai/expert/v1"
)

// allocated returns how many bytes f takes of the heap.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// budget is what a decoder may take for n bytes of input: messages are larger in memory than on the wire, by a bounded factor.
func budget(n int) uint64 { return 64<<10 + 128*uint64(n) }

func seeds(f *testing.F) {
	for _, m := range []proto.Message{
		good(),
		&expertv1.Request{Op: expertv1.Op_OP_PING, TimeoutUs: 5_000_000, Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		&expertv1.Request{Op: expertv1.Op_OP_DESCRIBE},
		&expertv1.Request{
			Op: expertv1.Op_OP_SUM, Tensors: good().Tensors, Pairs: []*expertv1.Pair{{Expert: 7, Rows: []int32{0, 3}, Weights: []float32{0.5, -2}}},
		},
	} {
		h, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(h)
	}
	f.Add([]byte{})
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add(bytes.Repeat([]byte{0x2a, 0x00}, 2000))
	f.Add(bytes.Repeat([]byte{0x22, 0x00}, 2000))
}

func FuzzDecodeRequest(f *testing.F) {
	seeds(f)
	limits := wire.DefaultLimits()
	f.Fuzz(func(t *testing.T, h []byte) {
		var r wire.Request
		var payload int64
		var err error
		if n := allocated(func() { r, payload, err = wire.DecodeRequest(h, limits) }); n > budget(len(h)) {
			t.Fatalf("%d bytes for a header of %d", n, len(h))
		}
		if payload < 0 {
			t.Fatalf("a payload of %d bytes", payload)
		}
		if err != nil {
			if errors.Is(err, wire.ErrMalformed) == wire.IsRefusal(err) || wire.StatusOf(err) == wire.OK {
				t.Fatalf("neither refused nor malformed: %v", err)
			}
			return
		}
		// What is read is what the generated code reads, and can be written.
		var m expertv1.Request
		if err := proto.Unmarshal(h, &m); err != nil {
			t.Fatalf("the generated code: %v", err)
		}
		frame, err := wire.AppendRequest(nil, &r, limits)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := wire.DecodeRequest(header(t, frame), limits)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	fuzzReply(f, wire.OpForward)
}

func FuzzDecodeReplySum(f *testing.F) {
	fuzzReply(f, wire.OpSum)
}

func fuzzReply(f *testing.F, op wire.Op) {
	want := wire.Wanted{
		Op: op, Rows: 4, Hidden: 8, Codec: codec.F32, Description: 1 << 20,
		Pairs: []expert.Pair{{Expert: 7, Rows: []int32{0, 3}}, {Expert: 8}},
	}
	for _, r := range []wire.Reply{
		{Status: wire.Overloaded, RetryAfter: 1e9, Message: "full"},
		{Results: []wire.Result{
			{Digest: expert.Digest{1}, Numerics: "exact-1", Output: wire.Tensor{Rows: 2, Hidden: 8}}, {Status: wire.NotFound, Message: "no"},
		}},
		{Load: expert.Load{QueuedRows: 5, ServiceTime: 5}, Description: 500},
		{Results: []wire.Result{{Digest: expert.Digest{1}, Numerics: "exact-1"}, {Status: wire.NotFound}}, Sum: wire.Tensor{Rows: 4, Hidden: 8}},
	} {
		f.Add(header(f, wire.AppendReply(nil, &r)))
	}
	f.Add(bytes.Repeat([]byte{0x2a, 0x00}, 2000))
	f.Fuzz(func(t *testing.T, h []byte) {
		var r wire.Reply
		var err error
		if n := allocated(func() { r, err = wire.DecodeReply(h, want) }); n > budget(len(h)) {
			t.Fatalf("%d bytes for a header of %d", n, len(h))
		}
		if err != nil {
			if !errors.Is(err, expert.ErrBadReply) {
				t.Fatal(err)
			}
			return
		}
		for i, result := range r.Results {
			if out := result.Output; op == wire.OpForward && result.Status == wire.OK && (out.Rows != want.Pairs[i].RowCount(want.Rows) || out.Hidden != want.Hidden) {
				t.Fatalf("pair %d: %+v", i, out)
			}
		}
		if n := r.Sum.Rows; n != 0 && (op != wire.OpSum || n != want.Rows || r.Sum.Hidden != want.Hidden) {
			t.Fatalf("sum: %+v", r.Sum)
		}
		again, err := wire.DecodeReply(header(t, wire.AppendReply(nil, &r)), want)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("\x03abc\x00\x01x"))
	f.Add([]byte("\xff\xff\x3f"))
	f.Add([]byte("\x80\x00"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if n := allocated(func() {
			r := bufio.NewReaderSize(bytes.NewReader(stream), 16)
			var buf []byte
			total := 0
			for {
				var err error
				if buf, err = wire.ReadHeader(r, buf, 1<<20); err != nil {
					if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, wire.ErrMalformed) {
						t.Fatal(err)
					}
					return
				}
				if total += wire.HeaderLength(len(buf)); total > len(stream) {
					t.Fatalf("%d bytes out of %d", total, len(stream))
				}
			}
		}); n > budget(len(stream)) {
			t.Fatalf("%d bytes for a stream of %d", n, len(stream))
		}
	})
}

func FuzzUnmarshalDescription(f *testing.F) {
	payload, err := wire.MarshalDescription(&expert.Description{
		Version: "1", SpeedGFLOPS: 3, Experts: []expert.Hosted{{ID: 1, Name: "m/0/1", State: expert.StateReady, Spec: expert.Spec{Kind: "glu", Hidden: 8}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Add(bytes.Repeat([]byte{0x12, 0x00}, 2000))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var d expert.Description
		var err error
		if n := allocated(func() { d, err = wire.UnmarshalDescription(payload) }); n > budget(len(payload)) {
			t.Fatalf("%d bytes for a description of %d", n, len(payload))
		}
		if err != nil {
			if !errors.Is(err, expert.ErrBadReply) {
				t.Fatal(err)
			}
			return
		}
		if _, err := wire.MarshalDescription(&d); err != nil {
			t.Fatal(err)
		}
	})
}
