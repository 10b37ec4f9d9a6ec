package wire_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
	expertv1 "github.com/kwaai/kwaaid/proto/kwaai/expert/v1"
)

// The headers are written and read by hand; the generated code says what they are.

// header cuts the length off a frame.
func header(t testing.TB, frame []byte) []byte {
	t.Helper()
	length, n := protowire.ConsumeVarint(frame)
	require.Positive(t, n)
	require.Len(t, frame[n:], int(length))
	require.Equal(t, len(frame), wire.HeaderLength(int(length)))
	return frame[n:]
}

var codecs = map[codec.DType]expertv1.Codec{
	codec.F32: expertv1.Codec_CODEC_F32, codec.BF16: expertv1.Codec_CODEC_BF16, codec.F16: expertv1.Codec_CODEC_F16,
}

func tensorProto(t wire.Tensor) *expertv1.Tensor {
	if t == (wire.Tensor{}) {
		return nil
	}
	return &expertv1.Tensor{
		Dtype: expertv1.DataType_DATA_TYPE_F32, Shape: []uint32{uint32(t.Rows), uint32(t.Hidden)},
		Codec: codecs[t.Codec], Length: uint64(t.Length()),
	}
}

func requestProto(r wire.Request) *expertv1.Request {
	m := &expertv1.Request{Op: expertv1.Op(r.Op), TimeoutUs: uint64(r.Timeout.Microseconds()), Traceparent: r.Traceparent}
	if t := tensorProto(r.Input); t != nil {
		m.Tensors = []*expertv1.Tensor{t}
	}
	for _, p := range r.Pairs {
		to := &expertv1.Pair{Expert: uint64(p.Expert), Numerics: p.Numerics, Rows: p.Rows, Weights: p.Weights}
		if !p.Digest.IsZero() {
			to.Digest = p.Digest[:]
		}
		m.Pairs = append(m.Pairs, to)
	}
	return m
}

func replyProto(r wire.Reply) *expertv1.Reply {
	m := &expertv1.Reply{
		Status: expertv1.Status(r.Status), Message: r.Message, RetryAfterUs: uint64(r.RetryAfter.Microseconds()), DescriptionLength: uint64(r.Description),
		Sum: tensorProto(r.Sum),
	}
	if r.Load != (expert.Load{}) {
		m.Load = &expertv1.Load{QueuedRows: uint32(r.Load.QueuedRows), ServiceTimeNs: uint64(r.Load.ServiceTime)}
	}
	for _, from := range r.Results {
		to := &expertv1.Result{
			Status: expertv1.Status(from.Status), Message: from.Message, RetryAfterUs: uint64(from.RetryAfter.Microseconds()),
			Numerics: from.Numerics, Output: tensorProto(from.Output),
		}
		if !from.Digest.IsZero() {
			to.Digest = from.Digest[:]
		}
		m.Results = append(m.Results, to)
	}
	return m
}

// dice draws requests and replies that are well formed.
type dice struct{ *rand.Rand }

func (d dice) digest() (digest expert.Digest) {
	if d.IntN(2) == 0 {
		for i := range digest {
			digest[i] = byte(d.Uint32())
		}
	}
	return digest
}

func (d dice) text(words ...string) string { return words[d.IntN(len(words))] }

func (d dice) request() wire.Request {
	r := wire.Request{Op: wire.Op(1 + d.IntN(5))}
	if d.IntN(2) == 0 {
		r.Timeout = time.Duration(1+d.Int64N(1e9)) * time.Microsecond
	}
	if d.IntN(2) == 0 {
		r.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	}
	if r.Op != wire.OpForward && r.Op != wire.OpSum {
		return r
	}
	r.Input = wire.Tensor{Rows: 1 + d.IntN(300), Hidden: 1 + d.IntN(5000), Codec: codec.DType(d.IntN(3))}
	for range 1 + d.IntN(20) {
		p := expert.Pair{Expert: expert.ID(d.Uint64() >> d.IntN(65)), Digest: d.digest(), Numerics: d.text("", "exact-1", "tile-2")}
		for range d.IntN(40) {
			p.Rows = append(p.Rows, int32(d.IntN(r.Input.Rows)))
		}
		for range p.RowCount(r.Input.Rows) {
			if r.Op == wire.OpSum {
				p.Weights = append(p.Weights, float32(d.NormFloat64()))
			}
		}
		r.Pairs = append(r.Pairs, p)
	}
	return r
}

func (d dice) reply(request wire.Request) wire.Reply {
	r := wire.Reply{Load: expert.Load{QueuedRows: d.IntN(2) * d.IntN(math.MaxInt32), ServiceTime: time.Duration(d.IntN(2) * d.IntN(1e9))}}
	retry := func() time.Duration { return time.Duration(d.IntN(2)*d.IntN(1e6)) * time.Microsecond }
	if d.IntN(5) == 0 {
		r.Status, r.Message, r.RetryAfter = wire.Status(1+d.IntN(9)), d.text("", "because", "weil es regnet: \u2602"), retry()
		return r
	}
	if request.Op == wire.OpDescribe {
		r.Description = d.Int64N(1 << 20)
	}
	for _, p := range request.Pairs {
		if d.IntN(4) == 0 {
			r.Results = append(r.Results, wire.Result{Status: wire.Status(1 + d.IntN(9)), Message: d.text("", "no"), RetryAfter: retry()})
			continue
		}
		digest := p.Digest
		if digest.IsZero() {
			digest = d.digest()
		}
		result := wire.Result{Digest: digest, Numerics: d.text("", "exact-1")}
		if request.Op == wire.OpSum {
			r.Sum = request.Input
		} else {
			result.Output = wire.Tensor{Rows: p.RowCount(request.Input.Rows), Hidden: request.Input.Hidden, Codec: request.Input.Codec}
		}
		r.Results = append(r.Results, result)
	}
	return r
}

func wanted(r wire.Request) wire.Wanted {
	return wire.Wanted{
		Op: r.Op, Pairs: r.Pairs, Rows: r.Input.Rows, Hidden: r.Input.Hidden, Codec: r.Input.Codec, Description: 1 << 20,
	}
}

func requireSame(t *testing.T, want, got proto.Message) {
	t.Helper()
	if !proto.Equal(want, got) {
		t.Fatal(cmp.Diff(want, got, protocmp.Transform()))
	}
}

func TestHeaders_AreWhatTheGeneratedCodeSays(t *testing.T) {
	const seed = 7
	d := dice{rand.New(rand.NewPCG(seed, 0))}
	limits := wire.DefaultLimits()
	for range 1000 {
		request := d.request()
		frame, err := wire.AppendRequest([]byte("before"), &request, limits)
		require.NoError(t, err)
		require.Equal(t, "before", string(frame[:6]))
		ours := header(t, frame[6:])
		var m expertv1.Request
		require.NoError(t, proto.Unmarshal(ours, &m))
		requireSame(t, requestProto(request), &m)
		theirs, err := proto.Marshal(requestProto(request))
		require.NoError(t, err)
		require.Len(t, ours, len(theirs))
		got, payload, err := wire.DecodeRequest(theirs, limits)
		require.NoError(t, err)
		require.Equal(t, request, got)
		require.Equal(t, request.Input.Length(), payload)

		reply := d.reply(request)
		ours = header(t, wire.AppendReply(nil, &reply))
		var r expertv1.Reply
		require.NoError(t, proto.Unmarshal(ours, &r))
		requireSame(t, replyProto(reply), &r)
		theirs, err = proto.Marshal(replyProto(reply))
		require.NoError(t, err)
		require.Len(t, ours, len(theirs))
		back, err := wire.DecodeReply(theirs, wanted(request))
		require.NoError(t, err)
		if len(back.Results) == 0 {
			back.Results = nil
		}
		require.Equal(t, reply, back)
	}
}

func TestHeaders_TakeFieldsOfLaterVersions(t *testing.T) {
	request := wire.Request{Op: wire.OpForward, Input: wire.Tensor{Rows: 2, Hidden: 4}, Pairs: []expert.Pair{{Expert: 9}}}
	frame, err := wire.AppendRequest(nil, &request, wire.DefaultLimits())
	require.NoError(t, err)
	later := func(h []byte) []byte {
		h = protowire.AppendVarint(protowire.AppendTag(h, 100, protowire.VarintType), 5)
		h = protowire.AppendString(protowire.AppendTag(h, 101, protowire.BytesType), "news")
		h = protowire.AppendFixed32(protowire.AppendTag(h, 102, protowire.Fixed32Type), 5)
		return h
	}
	got, _, err := wire.DecodeRequest(later(header(t, frame)), wire.DefaultLimits())
	require.NoError(t, err)
	require.Equal(t, request, got)

	reply := wire.Reply{Results: []wire.Result{{Numerics: "exact-1", Output: request.Input}}}
	back, err := wire.DecodeReply(later(header(t, wire.AppendReply(nil, &reply))), wanted(request))
	require.NoError(t, err)
	require.Equal(t, reply, back)
}

func TestRequest_TakesRowsAndWeightsThatAreNotPacked(t *testing.T) {
	var pair []byte
	for _, row := range []uint64{1, 0, 1} {
		pair = protowire.AppendVarint(protowire.AppendTag(pair, 4, protowire.VarintType), row)
		pair = protowire.AppendFixed32(protowire.AppendTag(pair, 5, protowire.Fixed32Type), math.Float32bits(0.5+float32(row)))
	}
	h, err := proto.Marshal(&expertv1.Request{Op: expertv1.Op_OP_SUM, Tensors: []*expertv1.Tensor{tensorProto(wire.Tensor{Rows: 2, Hidden: 1})}})
	require.NoError(t, err)
	h = protowire.AppendBytes(protowire.AppendTag(h, 5, protowire.BytesType), pair)
	got, _, err := wire.DecodeRequest(h, wire.DefaultLimits())
	require.NoError(t, err)
	require.Equal(t, []int32{1, 0, 1}, got.Pairs[0].Rows)
	require.Equal(t, []float32{1.5, 0.5, 1.5}, got.Pairs[0].Weights)
}
