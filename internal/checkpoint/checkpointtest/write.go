// Package checkpointtest is for tests of what reads checkpoints: it writes safetensors files, well-formed ones as long as the tensors are, and
// knows the checkpoints with golden values.
package checkpointtest

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// Tensor is one tensor to be written.
type Tensor struct {
	Name  string
	DType string // as safetensors spells it: F32, BF16, U8...
	Shape []int
	Data  []byte // little-endian, as long as dtype and shape say
}

// headerAlign is the multiple to which headers are padded with spaces, so that the data of a mapped file is aligned.
const headerAlign = 8

// WriteFile writes tensors to a safetensors file, in the given order. A file that is there is replaced.
func WriteFile(t testing.TB, path string, tensors []Tensor) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	w := bufio.NewWriter(f)
	Write(t, w, tensors)
	require.NoError(t, w.Flush())
	require.NoError(t, f.Close())
}

// Write writes tensors in the safetensors format, in the given order.
func Write(t testing.TB, w io.Writer, tensors []Tensor) {
	t.Helper()
	type entry struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	header, at := make(map[string]entry, len(tensors)), 0
	for _, tensor := range tensors {
		end := at + len(tensor.Data)
		header[tensor.Name] = entry{tensor.DType, append([]int{}, tensor.Shape...), [2]int{at, end}}
		at = end
	}
	raw, err := json.Marshal(header)
	require.NoError(t, err)
	for len(raw)%headerAlign != 0 {
		raw = append(raw, ' ')
	}
	require.NoError(t, binary.Write(w, binary.LittleEndian, uint64(len(raw))))
	_, err = w.Write(raw)
	require.NoError(t, err)
	for _, tensor := range tensors {
		_, err = w.Write(tensor.Data)
		require.NoError(t, err)
	}
}
