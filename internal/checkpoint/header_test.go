package checkpoint_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
)

// safetensors puts a file together from its header and data, right or wrong.
func safetensors(header string, data int) []byte {
	raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(raw, header...), make([]byte, data)...)
}

// write puts bytes in a new file.
func write(t testing.TB, name string, content []byte) string {
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

func TestOpenFile_ReadsWhatTheFormatAllows(t *testing.T) {
	f, err := checkpoint.OpenFile(write(t, "x.safetensors", safetensors(
		`{"__metadata__":{"format":"pt"},"b":{"shape":[2,1],"dtype":"F32","data_offsets":[0,8]},`+
			`"a":{"dtype":"I64","shape":[],"data_offsets":[8,16]},"none":{"dtype":"BF16","shape":[0,7],"data_offsets":[8,8]},`+
			`"odd":{"dtype":"F4","shape":[6],"data_offsets":[16,19]}}   `, 19)))
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, []string{"a", "b", "none", "odd"}, f.Names())
	values, shape, err := f.Float32s("b")
	require.NoError(t, err)
	require.Equal(t, []int{2, 1}, shape)
	require.Equal(t, []float32{0, 0}, values)
	whole, _, err := f.Int64s("a")
	require.NoError(t, err)
	require.Equal(t, []int64{0}, whole)
	_, _, err = f.Float32s("a")
	require.ErrorContains(t, err, `tensor "a": expected F32, BF16 or F16, found I64 []`)
	_, _, err = f.Int64s("absent")
	require.ErrorContains(t, err, "no such tensor")
}

func TestOpenFile_SaysWhatIsWrong(t *testing.T) {
	tensor := func(dtype, shape string, begin, end uint64) string {
		return fmt.Sprintf(`{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, dtype, shape, begin, end)
	}
	huge := binary.LittleEndian.AppendUint64(nil, 1<<62)
	for name, c := range map[string]struct {
		content []byte
		says    string
	}{
		"empty":           {nil, "at least 8 bytes, found 0"},
		"seven bytes":     {make([]byte, 7), "found 7"},
		"no header":       {make([]byte, 8), "unexpected EOF"},
		"claims much":     {huge, "claims 4611686018427387904 bytes"},
		"claims too much": {append(binary.LittleEndian.AppendUint64(nil, 50), '{', '}'), "cut short"},
		"no JSON":         {safetensors("hello", 0), "the header"},
		"a list":          {safetensors("[]", 0), `expected "{"`},
		"two objects":     {safetensors("{}{}", 0), "something follows"},
		"not UTF-8":       {safetensors("{\"\xff\":1}", 0), "not UTF-8"},
		"unfinished":      {safetensors(`{"a":{"dtype":"F32"`, 0), "unexpected EOF"},
		"no object":       {safetensors(`{"a":7}`, 0), `tensor "a"`},
		"no dtype":        {safetensors(`{"a":{"shape":[],"data_offsets":[0,0]}}`, 0), "expected dtype, shape and two data_offsets"},
		"one offset":      {safetensors(`{"a":{"dtype":"U8","shape":[],"data_offsets":[0]}}`, 0), "two data_offsets"},
		"three offsets":   {safetensors(`{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1,2]}}`, 1), "at most 2"},
		"unknown key":     {safetensors(`{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":{}}}`, 1), `unknown key "x"`},
		"a key twice":     {safetensors(`{"a":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,1]}}`, 1), "twice"},
		"a name twice":    {safetensors(`{"a":`+tensor("U8", "[1]", 0, 1)+`,"a":`+tensor("U8", "[1]", 1, 2)+`}`, 2), "twice"},
		"metadata twice":  {safetensors(`{"__metadata__":{},"__metadata__":{}}`, 0), "twice"},
		"metadata":        {safetensors(`{"__metadata__":{"a":{}}}`, 0), "__metadata__: expected a string"},
		"negative":        {safetensors(`{"a":`+tensor("U8", "[-1]", 0, 1)+`}`, 1), "found \"-1\""},
		"fraction":        {safetensors(`{"a":`+tensor("U8", "[1.5]", 0, 1)+`}`, 1), "whole number"},
		"text":            {safetensors(`{"a":`+tensor("U8", `["1"]`, 0, 1)+`}`, 1), "expected a number"},
		"overflow":        {safetensors(`{"a":`+tensor("U8", "[2147483647,2147483647,2147483647]", 0, 1)+`}`, 1), "too large"},
		"a huge axis":     {safetensors(`{"a":`+tensor("U8", "[9223372036854775807]", 0, 1)+`}`, 1), "too large"},
		"many axes":       {safetensors(`{"a":`+tensor("U8", "[1"+strings.Repeat(",1", 16)+"]", 0, 1)+`}`, 1), "at most 16"},
		"wrong length":    {safetensors(`{"a":`+tensor("F32", "[2,3]", 0, 23)+`}`, 23), "expected 24 bytes for F32 [2 3], found 23"},
		"backwards":       {safetensors(`{"a":`+tensor("U8", "[1]", 9, 8)+`}`, 9), "back to 8"},
		"offset overflow": {safetensors(`{"a":`+tensor("U8", "[1]", 0, 1<<63)+`}`, 1), "whole number"},
		"out of bounds":   {safetensors(`{"a":`+tensor("U8", "[9]", 0, 9)+`}`, 8), "cut short: it ends 9 bytes into the data, the file has 8"},
		"far away":        {safetensors(`{"a":`+tensor("U8", "[1]", 1<<62, 1<<62+1)+`}`, 8), "cut short"},
		"overlap":         {safetensors(`{"a":`+tensor("U8", "[4]", 0, 4)+`,"b":`+tensor("U8", "[4]", 2, 6)+`}`, 6), `tensor "b": overlaps`},
		"a hole":          {safetensors(`{"a":`+tensor("U8", "[1]", 0, 1)+`,"b":`+tensor("U8", "[1]", 2, 3)+`}`, 3), `tensor "b": leaves a hole`},
		"too long":        {safetensors(`{"a":`+tensor("U8", "[1]", 0, 1)+`}`, 5), "expected 1 bytes of data, as the header says, found 5"},
	} {
		path := write(t, "bad.safetensors", c.content)
		_, err := checkpoint.OpenFile(path)
		require.ErrorContains(t, err, c.says, name)
		require.ErrorContains(t, err, path, name)
	}
	_, err := checkpoint.OpenFile(t.TempDir())
	require.ErrorContains(t, err, "expected a file")
	_, err = checkpoint.OpenFile(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestFloat32s_ReadsTensorsOfAnyName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	tensors := []checkpointtest.Tensor{
		{Name: "z", DType: "F32", Shape: []int{1, 2}, Data: []byte{0, 0, 128, 63, 0, 0, 0, 64}},
		{Name: "scalar", DType: "U8", Data: []byte{7}},
		{Name: `"quoted" <ü>`, DType: "BF16", Shape: []int{2}, Data: []byte{128, 63, 0, 64}},
	}
	checkpointtest.WriteFile(t, path, tensors)
	f, err := checkpoint.OpenFile(path)
	require.NoError(t, err)
	defer f.Close()
	for _, name := range []string{"z", `"quoted" <ü>`} {
		values, _, err := f.Float32s(name)
		require.NoError(t, err)
		require.Equal(t, []float32{1, 2}, values)
	}
}
