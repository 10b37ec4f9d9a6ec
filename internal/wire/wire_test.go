package wire_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
	expertv1 "github.com/kwaai/kwaaid/proto/kwaai/expert/v1"
)

func TestStatus_MapsToSentinelsAndBack(t *testing.T) {
	names := map[string]bool{}
	for _, s := range wire.Statuses() {
		require.False(t, names[s.String()], "%v twice", s)
		names[s.String()] = true
		err := s.Err("words", time.Second)
		require.Equal(t, s, wire.StatusOf(err))
		if s == wire.OK {
			require.NoError(t, err)
			continue
		}
		require.Equal(t, s, wire.StatusOf(fmt.Errorf("around it: %w", s.Err("", 0))))
		require.EqualError(t, err, "words")
		require.Error(t, errors.Unwrap(err))
	}
	require.Equal(t, "NOT_FOUND", wire.NotFound.String())
	require.Equal(t, "RESOURCE_EXHAUSTED", wire.StatusOf(expert.ErrTooLarge).String())
	require.Equal(t, "DEADLINE_EXCEEDED", wire.StatusOf(context.DeadlineExceeded).String())
	require.Equal(t, "CANCELLED", wire.StatusOf(context.Canceled).String())
	require.Equal(t, "INTERNAL", wire.StatusOf(io.EOF).String())
	overloaded, ok := errors.AsType[*expert.OverloadedError](wire.Overloaded.Err("", time.Second))
	require.True(t, ok)
	require.Equal(t, time.Second, overloaded.RetryAfter)
	require.ErrorIs(t, wire.Status(99).Err("", 0), expert.ErrInternal)
}

// Every status on the wire has the number that the protocol gives it.
func TestStatus_HasTheNumbersOfTheProtocol(t *testing.T) {
	for number, name := range expertv1.Status_name {
		require.True(t, wire.Status(number).OnWire())
		require.Equal(t, name, "STATUS_"+wire.Status(number).String())
	}
	require.False(t, wire.Status(len(expertv1.Status_name)).OnWire())
	for number, name := range expertv1.Op_name {
		if number != 0 {
			require.Equal(t, strings.ToLower(name), "op_"+wire.Op(number).String())
		}
	}
}

func TestRefusal_KeepsInnerFailuresAtHome(t *testing.T) {
	s, message, retry := wire.Refusal(fmt.Errorf("open /etc/secret: %w", errors.New("no")))
	require.Equal(t, wire.Internal, s)
	require.Empty(t, message)
	require.Zero(t, retry)
	s, message, retry = wire.Refusal(fmt.Errorf("expert-7: %w", &expert.OverloadedError{RetryAfter: time.Second}))
	require.Equal(t, wire.Overloaded, s)
	require.Equal(t, "expert-7: overloaded, retry after 1s", message)
	require.Equal(t, time.Second, retry)
	s, _, _ = wire.Refusal(expert.ErrTimeout)
	require.Equal(t, wire.DeadlineExceeded, s)
	s, _, _ = wire.Refusal(expert.ErrDialFailed)
	require.Equal(t, wire.Internal, s)
}

func TestAppendReply_BoundsItsMessages(t *testing.T) {
	reply := wire.Reply{Status: wire.NotFound, Message: strings.Repeat("\xff\u2602", 1000)}
	got, err := wire.DecodeReply(header(t, wire.AppendReply(nil, &reply)), wire.Wanted{Op: wire.OpPing})
	require.NoError(t, err)
	require.LessOrEqual(t, len(got.Message), 3*1024)
	require.NotContains(t, got.Message, "\xff")
}

// What a peer says of itself is printed on terminals, whose titles, colours and lines are not its to set.
func TestText_OfPeersControlsNoTerminal(t *testing.T) {
	const evil, tame = "a\x1b[2Jb\u009b31mc\r\nd\x00", "a [2Jb 31mc  d "
	h, err := proto.Marshal(&expertv1.Reply{Status: 1, Message: evil})
	require.NoError(t, err)
	reply, err := wire.DecodeReply(h, wire.Wanted{Op: wire.OpPing})
	require.NoError(t, err)
	require.Equal(t, tame, reply.Message)
	payload, err := proto.Marshal(&expertv1.Description{
		Version: evil, Experts: []*expertv1.HostedExpert{{Expert: 1, State: "ready", Name: evil, Kind: evil, Dtype: evil, Numerics: evil}},
	})
	require.NoError(t, err)
	d, err := wire.UnmarshalDescription(payload)
	require.NoError(t, err)
	spec := expert.Spec{Kind: tame, DType: tame, Numerics: tame}
	require.Equal(t, expert.Description{Version: tame, Experts: []expert.Hosted{{ID: 1, State: expert.StateReady, Name: tame, Spec: spec}}}, d)
}

// good is a request that the cases of the tests below break.
func good() *expertv1.Request {
	return &expertv1.Request{
		Op:      expertv1.Op_OP_FORWARD,
		Tensors: []*expertv1.Tensor{{Dtype: 1, Shape: []uint32{4, 8}, Codec: 1, Length: 128}},
		Pairs:   []*expertv1.Pair{{Expert: 7, Rows: []int32{0, 3}}, {Expert: 8}},
	}
}

func TestDecodeRequest_RefusesWithAStatus(t *testing.T) {
	tests := map[string]struct {
		change func(*expertv1.Request)
		want   error
		says   string
	}{
		"no op":           {func(r *expertv1.Request) { r.Op = 0 }, expert.ErrUnimplemented, "op 0"},
		"a later op":      {func(r *expertv1.Request) { r.Op = 77 }, expert.ErrUnimplemented, "op 77"},
		"no tensor":       {func(r *expertv1.Request) { r.Tensors = nil }, expert.ErrInvalidArgument, "one tensor, not 0"},
		"two tensors":     {func(r *expertv1.Request) { r.Tensors = append(r.Tensors, r.Tensors[0]) }, expert.ErrInvalidArgument, "one tensor, not 2"},
		"dtype":           {func(r *expertv1.Request) { r.Tensors[0].Dtype = 2 }, expert.ErrInvalidArgument, "dtype 2"},
		"codec":           {func(r *expertv1.Request) { r.Tensors[0].Codec = 9 }, expert.ErrUnimplemented, "codec 9"},
		"one dimension":   {func(r *expertv1.Request) { r.Tensors[0].Shape = []uint32{32} }, expert.ErrInvalidArgument, "1 dimensions"},
		"3 dimensions":    {func(r *expertv1.Request) { r.Tensors[0].Shape = []uint32{2, 2, 8} }, expert.ErrInvalidArgument, "3 dimensions"},
		"empty batch":     {func(r *expertv1.Request) { r.Tensors[0].Shape = []uint32{0, 8} }, expert.ErrInvalidArgument, "empty batch"},
		"empty rows":      {func(r *expertv1.Request) { r.Tensors[0].Shape = []uint32{4, 0} }, expert.ErrInvalidArgument, "empty batch"},
		"a lie":           {func(r *expertv1.Request) { r.Tensors[0].Length = 127 }, expert.ErrInvalidArgument, "takes 128 bytes, the header says 127"},
		"too large":       {func(r *expertv1.Request) { r.Tensors[0].Shape = []uint32{1 << 16, 1025} }, expert.ErrTooLarge, "is above"},
		"overflow":        {func(r *expertv1.Request) { r.Tensors[0].Shape = []uint32{math.MaxUint32, math.MaxUint32} }, expert.ErrTooLarge, "is above"},
		"no pairs":        {func(r *expertv1.Request) { r.Pairs = nil }, expert.ErrInvalidArgument, "without a pair"},
		"too many pairs":  {func(r *expertv1.Request) { r.Pairs = manyPairs(1025) }, expert.ErrTooLarge, "1025 pairs"},
		"row too high":    {func(r *expertv1.Request) { r.Pairs[0].Rows[1] = 4 }, expert.ErrInvalidArgument, "pair 0 (expert-7): row 4 of a batch of 4"},
		"row negative":    {func(r *expertv1.Request) { r.Pairs[0].Rows[1] = -1 }, expert.ErrInvalidArgument, "of a batch of 4"},
		"a ping with all": {func(r *expertv1.Request) { r.Op = expertv1.Op_OP_PING }, expert.ErrInvalidArgument, "ping takes neither"},
		"a reply too large": {func(r *expertv1.Request) {
			r.Tensors[0].Shape, r.Tensors[0].Length, r.Pairs = []uint32{1 << 12, 1024}, 16<<20, manyPairs(17)
		}, expert.ErrTooLarge, "the reply"},
		"weights in a forward":  {func(r *expertv1.Request) { r.Pairs[0].Weights = []float32{1, 2} }, expert.ErrInvalidArgument, "pair 0 (expert-7): weights, which forward has not"},
		"a sum without weights": {func(r *expertv1.Request) { r.Op = expertv1.Op_OP_SUM }, expert.ErrInvalidArgument, "pair 0 (expert-7): 0 weights for 2 rows"},
		"a weight too few": {func(r *expertv1.Request) {
			r.Op, r.Pairs = expertv1.Op_OP_SUM, r.Pairs[1:]
			r.Pairs[0].Weights = []float32{1, 2, 3}
		}, expert.ErrInvalidArgument, "pair 0 (expert-8): 3 weights for 4 rows"},
		"an infinite weight": {func(r *expertv1.Request) {
			r.Op, r.Pairs = expertv1.Op_OP_SUM, r.Pairs[:1]
			r.Pairs[0].Weights = []float32{1, float32(math.Inf(-1))}
		}, expert.ErrInvalidArgument, "a weight of -Inf"},
		"a sum of two tensors": {func(r *expertv1.Request) {
			r.Op, r.Tensors = expertv1.Op_OP_SUM, append(r.Tensors, r.Tensors[0])
		}, expert.ErrInvalidArgument, "sum takes one tensor, not 2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := good()
			test.change(m)
			h, err := proto.Marshal(m)
			require.NoError(t, err)
			_, payload, err := wire.DecodeRequest(h, wire.DefaultLimits())
			require.ErrorIs(t, err, test.want)
			require.ErrorContains(t, err, test.says)
			require.True(t, wire.IsRefusal(err))
			length := int64(0)
			for _, t := range m.Tensors {
				length += int64(t.Length)
			}
			require.Equal(t, length, payload, "the payload can be skipped")
		})
	}
}

func manyPairs(n int) []*expertv1.Pair {
	pairs := make([]*expertv1.Pair, n)
	for i := range pairs {
		pairs[i] = &expertv1.Pair{Expert: uint64(i)}
	}
	return pairs
}

func TestDecodeRequest_EndsTheStreamWhereNothingIsCertain(t *testing.T) {
	valid, err := proto.Marshal(good())
	require.NoError(t, err)
	digest := good()
	digest.Pairs[0].Digest = make([]byte, 31)
	short, err := proto.Marshal(digest)
	require.NoError(t, err)
	lengths := good()
	lengths.Tensors = []*expertv1.Tensor{{Length: math.MaxInt64}, {Length: 1}}
	overflow, err := proto.Marshal(lengths)
	require.NoError(t, err)
	weights := protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType),
		protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), make([]byte, 7)))
	for name, h := range map[string][]byte{
		"noise":              []byte("GET / HTTP/1.1\r\n\r\n"),
		"cut":                valid[:len(valid)-1],
		"wrong kind":         {0x0a, 0x01, 0x01},
		"short digest":       short,
		"lengths overrun":    overflow,
		"7 bytes of weights": weights,
	} {
		_, _, err := wire.DecodeRequest(h, wire.DefaultLimits())
		require.ErrorIs(t, err, wire.ErrMalformed, name)
		require.False(t, wire.IsRefusal(err), name)
	}
}

func TestAppendRequest_RefusesWhatTheLimitsForbid(t *testing.T) {
	limits := wire.DefaultLimits()
	limits.Header = 1024
	rows := make([]int32, 2000)
	r := wire.Request{Op: wire.OpForward, Input: wire.Tensor{Rows: 1, Hidden: 1}, Pairs: []expert.Pair{{Rows: rows}}}
	dst, err := wire.AppendRequest([]byte("before"), &r, limits)
	require.ErrorIs(t, err, expert.ErrTooLarge)
	require.Equal(t, "before", string(dst))
}

func TestDecodeReply_HoldsTheReplyAgainstTheRequest(t *testing.T) {
	digest := expert.Digest{1, 2, 3}
	want := wire.Wanted{
		Op: wire.OpForward, Rows: 4, Hidden: 8, Codec: codec.BF16,
		Pairs: []expert.Pair{{Expert: 7, Rows: []int32{0, 3}, Digest: digest}, {Expert: 8}},
	}
	valid := func() *expertv1.Reply {
		return &expertv1.Reply{Results: []*expertv1.Result{
			{Digest: digest[:], Output: &expertv1.Tensor{Dtype: 1, Shape: []uint32{2, 8}, Codec: 2, Length: 32}},
			{Output: &expertv1.Tensor{Dtype: 1, Shape: []uint32{4, 8}, Codec: 2, Length: 64}},
		}}
	}
	decode := func(m *expertv1.Reply) error {
		h, err := proto.Marshal(m)
		require.NoError(t, err)
		_, err = wire.DecodeReply(h, want)
		return err
	}
	require.NoError(t, decode(valid()))
	later := valid()
	later.Results[0] = &expertv1.Result{Status: 55, Message: "a status of a later version"}
	require.NoError(t, decode(later))
	for name, change := range map[string]func(*expertv1.Reply){
		"a result too few":  func(r *expertv1.Reply) { r.Results = r.Results[:1] },
		"a result too many": func(r *expertv1.Reply) { r.Results = append(r.Results, r.Results[0]) },
		"no results":        func(r *expertv1.Reply) { r.Results = nil },
		"rows":              func(r *expertv1.Reply) { r.Results[0].Output.Shape[0], r.Results[0].Output.Length = 4, 64 },
		"hidden":            func(r *expertv1.Reply) { r.Results[0].Output.Shape[1], r.Results[0].Output.Length = 4, 16 },
		"codec":             func(r *expertv1.Reply) { r.Results[0].Output.Codec, r.Results[0].Output.Length = 1, 64 },
		"dtype":             func(r *expertv1.Reply) { r.Results[0].Output.Dtype = 3 },
		"length":            func(r *expertv1.Reply) { r.Results[0].Output.Length = 1 << 40 },
		"huge":              func(r *expertv1.Reply) { r.Results[1].Output.Shape[0] = math.MaxUint32 },
		"no output":         func(r *expertv1.Reply) { r.Results[1].Output = nil },
		"another digest":    func(r *expertv1.Reply) { r.Results[0].Digest = make([]byte, 32) },
		"no digest":         func(r *expertv1.Reply) { r.Results[0].Digest = nil },
		"a caller's status": func(r *expertv1.Reply) { r.Results[0] = &expertv1.Result{Status: expertv1.Status(wire.Reset)} },
		"error with output": func(r *expertv1.Reply) { r.Results[0].Status = 1 },
		"refused, answered": func(r *expertv1.Reply) { r.Status = 4 },
		"a description":     func(r *expertv1.Reply) { r.DescriptionLength = 5 },
		"no name":           func(r *expertv1.Reply) { r.Results[0].Numerics = "exact\x1b[2J-1" },
	} {
		m := valid()
		change(m)
		err := decode(m)
		require.ErrorIs(t, err, expert.ErrBadReply, name)
		require.Equal(t, wire.BadReply, wire.StatusOf(err), name)
	}
}

func TestDecodeReply_HoldsASumAgainstTheRequest(t *testing.T) {
	want := wire.Wanted{
		Op: wire.OpSum, Rows: 4, Hidden: 8, Codec: codec.BF16,
		Pairs: []expert.Pair{{Expert: 7, Rows: []int32{0, 3}, Weights: []float32{1, 2}}, {Expert: 8, Weights: []float32{1, 2, 3, 4}}},
	}
	valid := func() *expertv1.Reply {
		return &expertv1.Reply{
			Results: []*expertv1.Result{{Numerics: "exact-1"}, {Status: 4}},
			Sum:     &expertv1.Tensor{Dtype: 1, Shape: []uint32{4, 8}, Codec: 2, Length: 64},
		}
	}
	decode := func(m *expertv1.Reply) (wire.Reply, error) {
		h, err := proto.Marshal(m)
		require.NoError(t, err)
		return wire.DecodeReply(h, want)
	}
	got, err := decode(valid())
	require.NoError(t, err)
	require.Equal(t, wire.Tensor{Rows: 4, Hidden: 8, Codec: codec.BF16}, got.Sum)
	_, err = decode(&expertv1.Reply{Results: []*expertv1.Result{{Status: 4}, {Status: 1}}})
	require.NoError(t, err, "where nobody computed there is no sum")
	for name, change := range map[string]func(*expertv1.Reply){
		"no sum":           func(r *expertv1.Reply) { r.Sum = nil },
		"a sum of nothing": func(r *expertv1.Reply) { r.Results[0].Status = 1 },
		"rows":             func(r *expertv1.Reply) { r.Sum.Shape[0], r.Sum.Length = 2, 32 },
		"codec":            func(r *expertv1.Reply) { r.Sum.Codec, r.Sum.Length = 1, 128 },
		"length":           func(r *expertv1.Reply) { r.Sum.Length = 1 << 40 },
		"huge":             func(r *expertv1.Reply) { r.Sum.Shape[0] = math.MaxUint32 },
		"an output too": func(r *expertv1.Reply) {
			r.Results[0].Output = &expertv1.Tensor{Dtype: 1, Shape: []uint32{2, 8}, Codec: 2, Length: 32}
		},
		"refused, with a sum": func(r *expertv1.Reply) { r.Status, r.Results = 4, nil },
	} {
		m := valid()
		change(m)
		_, err := decode(m)
		require.ErrorIs(t, err, expert.ErrBadReply, name)
	}
	want.Op = wire.OpForward
	_, err = decode(valid())
	require.ErrorIs(t, err, expert.ErrBadReply, "a sum that was not asked for")
}

func TestReadHeader_ReadsOneFrameAfterAnother(t *testing.T) {
	request := wire.Request{Op: wire.OpPing, Timeout: time.Second}
	frame, err := wire.AppendRequest(nil, &request, wire.DefaultLimits())
	require.NoError(t, err)
	stream := append(bytes.Clone(frame), frame...)
	r := bufio.NewReader(iotest.OneByteReader(bytes.NewReader(stream)))
	var buf []byte
	for range 2 {
		buf, err = wire.ReadHeader(r, buf, 100)
		require.NoError(t, err)
		got, payload, err := wire.DecodeRequest(buf, wire.DefaultLimits())
		require.NoError(t, err)
		require.Zero(t, payload)
		require.Equal(t, request, got)
	}
	_, err = wire.ReadHeader(r, buf, 100)
	require.Equal(t, io.EOF, err, "an end between frames is an end")
}

func TestReadHeader_RefusesLengths(t *testing.T) {
	for name, test := range map[string]struct {
		stream string
		want   error
	}{
		"above the limit": {"\x65", wire.ErrMalformed},
		"not minimal":     {"\x81\x00a", wire.ErrMalformed},
		"endless":         {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", wire.ErrMalformed},
		"cut in length":   {"\x80", io.ErrUnexpectedEOF},
		"cut in header":   {"\x05abc", io.ErrUnexpectedEOF},
	} {
		_, err := wire.ReadHeader(bufio.NewReader(strings.NewReader(test.stream)), nil, 100)
		require.ErrorIs(t, err, test.want, name)
	}
}

// A header that claims much and holds little takes little.
func TestReadHeader_TakesMemoryAsBytesCome(t *testing.T) {
	claim := append([]byte{0xff, 0xff, 0x3f}, make([]byte, 1000)...)
	buf, err := wire.ReadHeader(bufio.NewReader(bytes.NewReader(claim)), nil, 1<<20)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.LessOrEqual(t, cap(buf), 32<<10)
}

func TestRows_TravelAsTheirCodecSays(t *testing.T) {
	x := make([]float32, 100_001) // more than a chunk, and no multiple of one
	for i := range x {
		x[i] = float32(i)*0.37 - 1000
	}
	x[1], x[2] = float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []codec.DType{codec.F32, codec.BF16, codec.F16} {
		var written bytes.Buffer
		require.NoError(t, wire.WriteRows(&written, x, c))
		require.Equal(t, written.Bytes(), wire.AppendRows(nil, x, c))
		got := make([]float32, len(x))
		require.NoError(t, wire.ReadRows(bytes.NewReader(written.Bytes()), got, c))
		require.Equal(t, written.Bytes(), wire.AppendRows(nil, got, c))
		require.Equal(t, x[:1], got[:1])
		require.Equal(t, io.ErrUnexpectedEOF, wire.ReadRows(bytes.NewReader(written.Bytes()[:written.Len()-1]), got, c))
	}
}

func TestLimits_ReportAllThatIsWrong(t *testing.T) {
	require.NoError(t, wire.DefaultLimits().Validate())
	err := wire.Limits{}.Validate()
	require.ErrorContains(t, err, "max_header")
	require.ErrorContains(t, err, "max_frame")
	require.ErrorContains(t, err, "max_pairs")
}

func TestDescription_RefusesWhatLies(t *testing.T) {
	d := expert.Description{Version: "1", Experts: []expert.Hosted{{ID: 1, State: expert.StateReady, Problem: "of no concern to others"}}}
	payload, err := wire.MarshalDescription(&d)
	require.NoError(t, err)
	got, err := wire.UnmarshalDescription(payload)
	require.NoError(t, err)
	d.Experts[0].Problem = ""
	require.Equal(t, d, got)
	for name, m := range map[string]*expertv1.Description{
		"state":  {Experts: []*expertv1.HostedExpert{{Expert: 1, State: "elated"}}},
		"digest": {Experts: []*expertv1.HostedExpert{{Expert: 1, State: "ready", Digest: []byte{1}}}},
		"hidden": {Experts: []*expertv1.HostedExpert{{Expert: 1, State: "ready", Hidden: math.MaxUint32}}},
	} {
		payload, err := proto.Marshal(m)
		require.NoError(t, err)
		_, err = wire.UnmarshalDescription(payload)
		require.ErrorIs(t, err, expert.ErrBadReply, name)
	}
	_, err = wire.UnmarshalDescription(bytes.Repeat([]byte{0x12, 0x00}, 1000)) // a thousand experts of two bytes
	require.ErrorIs(t, err, expert.ErrBadReply)
}
