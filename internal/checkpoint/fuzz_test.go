package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzReadHeader: whatever a file holds, reading its header neither panics nor takes more than a multiple of the file's size,
// and what it accepts lies within the file.
func FuzzReadHeader(f *testing.F) {
	file := func(header string, data int) []byte {
		raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		return append(append(raw, header...), make([]byte, data)...)
	}
	f.Add(file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}`, 9))
	f.Add(file(`{"__metadata__":{"a":"b"},"a":{"dtype":"I64","shape":[0,1],"data_offsets":[0,0]}} `, 0))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63))
	f.Add(file(strings.Repeat("[", 100), 0))
	f.Fuzz(func(t *testing.T, content []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		tensors, err := readHeader(bytes.NewReader(content), int64(len(content)))
		runtime.ReadMemStats(&after)
		// An entry of 50 bytes becomes a map's slot, a shape and what the JSON decoder leaves behind.
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<10+40*len(content)))
		if err != nil {
			return
		}
		var covered int64
		for name, info := range tensors {
			require.True(t, lengthSize <= info.begin && info.begin <= info.end && info.end <= int64(len(content)), name)
			covered += info.size()
		}
		require.LessOrEqual(t, covered, int64(len(content)), "no byte belongs to two tensors")
	})
}

// FuzzParseConfig: whatever config.json holds, nothing panics, and an answer is an error or a value.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"model_type":"mixtral","hidden_size":8,"num_hidden_layers":2,"hidden_act":"silu"}`))
	f.Add([]byte(`{"text_config":{"hidden_size":8.0,"x":[1,2]},"quantization_config":{"weight_block_size":[16,32]},"architectures":["A"]}`))
	f.Add([]byte(`{"a":[NaN,-Infinity,Infinity],"b":"NaN \\" Infinity","ffn_config":{"ffn_act_fn":{"name":"silu"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig("config.json", data)
		if err != nil {
			return
		}
		_, _ = c.activation("silu")
		_, _ = c.weightBlock()
		_, _ = c.IntAt(1, 0, "x", "hidden_size")
		_, _ = c.Float(1, "hidden_size")
		_, _ = c.Bool(true, "hidden_size")
		require.NotEmpty(t, c.Architecture())
		_ = fmt.Sprint(c.Has("x"), c.IsNull("x"))
	})
}
