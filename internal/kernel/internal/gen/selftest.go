package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// selfTestCases is how many of the vectors' cases a process checks at its start: each third of the vectors is among them.
const selfTestCases = 64

// writeSelfTest writes selftest_amd64.bin: of every twelfth case of testdata/dot.safetensors the bytes of a, b, c and d, one after the other.
func writeSelfTest(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "testdata", "dot.safetensors"))
	if err != nil {
		return err
	}
	size := binary.LittleEndian.Uint64(raw)
	var tensors map[string]struct {
		Shape       []int
		DataOffsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(raw[8:8+size], &tensors); err != nil {
		return fmt.Errorf("testdata/dot.safetensors: %w", err)
	}
	var out []byte
	for i := range selfTestCases {
		for _, name := range []string{"a", "b", "c", "d"} {
			t := tensors[name]
			all := raw[8+size:][t.DataOffsets[0]:t.DataOffsets[1]]
			one := len(all) / t.Shape[0]
			at := i * (t.Shape[0] / selfTestCases) * one
			out = append(out, all[at:at+one]...)
		}
	}
	return os.WriteFile(filepath.Join(dir, "selftest_amd64.bin"), out, 0o644)
}
