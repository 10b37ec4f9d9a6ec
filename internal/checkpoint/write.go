package checkpoint

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
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

// WriteFile writes tensors to a safetensors file, in the given order. It does not replace a file.
func WriteFile(path string, tensors []Tensor) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if closed := f.Close(); err == nil {
			err = closed
		}
	}()
	w := bufio.NewWriter(f)
	if err := Write(w, tensors); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return w.Flush()
}

// Write writes tensors in the safetensors format, in the given order.
func Write(w io.Writer, tensors []Tensor) error {
	type entry struct {
		DType   string   `json:"dtype"`
		Shape   []int    `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"`
	}
	header, at := make(map[string]entry, len(tensors)), int64(0)
	for _, t := range tensors {
		size := elementBits[t.DType] / 8
		for _, n := range t.Shape {
			size *= int64(n)
		}
		if elementBits[t.DType] == 0 || size != int64(len(t.Data)) {
			return headerError(t.Name, "%d bytes are not %s %v", len(t.Data), t.DType, t.Shape)
		}
		if _, twice := header[t.Name]; twice || t.Name == "__metadata__" {
			return headerError(t.Name, "the name is taken")
		}
		header[t.Name] = entry{t.DType, append([]int{}, t.Shape...), [2]int64{at, at + size}}
		at += size
	}
	raw, err := json.Marshal(header)
	if err != nil {
		return err
	}
	for len(raw)%headerAlign != 0 {
		raw = append(raw, ' ')
	}
	if err := binary.Write(w, binary.LittleEndian, uint64(len(raw))); err != nil {
		return err
	}
	if _, err := w.Write(raw); err != nil {
		return err
	}
	for _, t := range tensors {
		if _, err := w.Write(t.Data); err != nil {
			return err
		}
	}
	return nil
}
