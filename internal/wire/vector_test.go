package wire_test

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// The frames that docs/PROTOCOL.md shows are those that we write.
func TestFrames_AreTheTestVectorsOfTheDocumentation(t *testing.T) {
	request := wire.Request{
		Op: wire.OpForward, Timeout: 5 * time.Second, Input: wire.Tensor{Rows: 2, Hidden: 2, Codec: codec.F32},
		Pairs: []expert.Pair{{Expert: 42, Numerics: "exact-1", Rows: []int32{1}}},
	}
	frame, err := wire.AppendRequest(nil, &request, wire.DefaultLimits())
	require.NoError(t, err)
	frame = wire.AppendRows(frame, []float32{1, -2, 0.5, 3}, codec.F32)

	reply := wire.Reply{
		Load:    expert.Load{QueuedRows: 3, ServiceTime: 1500 * time.Nanosecond},
		Results: []wire.Result{{Numerics: "exact-1", Output: wire.Tensor{Rows: 1, Hidden: 2, Codec: codec.F32}}},
	}
	answer := wire.AppendRows(wire.AppendReply(nil, &reply), []float32{0.5, 3}, codec.F32)

	sum := wire.Request{Op: wire.OpSum, Timeout: request.Timeout, Input: request.Input, Pairs: []expert.Pair{
		{Expert: 42, Rows: []int32{1}, Weights: []float32{0.5}}, {Expert: 43, Weights: []float32{1, 2}},
	}}
	sumFrame, err := wire.AppendRequest(nil, &sum, wire.DefaultLimits())
	require.NoError(t, err)
	sumFrame = wire.AppendRows(sumFrame, []float32{1, -2, 0.5, 3}, codec.F32)
	total := wire.Reply{Results: []wire.Result{{Numerics: "exact-1"}, {Numerics: "exact-1"}}, Sum: sum.Input}
	sumAnswer := wire.AppendRows(wire.AppendReply(nil, &total), []float32{1, -2, 1.25, 7.5}, codec.F32)

	doc, err := os.ReadFile("../../docs/PROTOCOL.md")
	require.NoError(t, err)
	text := strings.Join(strings.Fields(string(doc)), "")
	require.Contains(t, text, hex.EncodeToString(frame), "the request")
	require.Contains(t, text, hex.EncodeToString(answer), "the reply")
	require.Contains(t, text, hex.EncodeToString(sumFrame), "the request for a sum")
	require.Contains(t, text, hex.EncodeToString(sumAnswer), "the reply with a sum")
}
