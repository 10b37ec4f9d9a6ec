package main

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
	"github.com/stretchr/testify/require"
)

// The same source gives the files that are there.
func TestGenerate_GivesWhatIsCommitted(t *testing.T) {
	const kernel = "../.."
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "testdata"), 0o755))
	vectors, err := os.ReadFile(filepath.Join(kernel, "testdata", "dot.safetensors"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "testdata", "dot.safetensors"), vectors, 0o600))
	require.NoError(t, generate(dir))
	for _, name := range []string{"avx2_amd64.s", "avx2_amd64.go", "avx512_amd64.s", "avx512_amd64.go", "selftest_amd64.bin"} {
		want, err := os.ReadFile(filepath.Join(kernel, name))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%s is not what the generator writes: run go generate ./internal/kernel", name)
	}
}

// The bytes are those that the GNU assembler 2.40 gives for the same text.
func TestEncodeVDPBF16PS_AgreesWithAnAssembler(t *testing.T) {
	for _, c := range []struct {
		text   string
		m      operand.Mem
		a, acc reg.VecPhysical
		want   string
	}{
		{"vdpbf16ps 8(%r13,%r8,2){1to16}, %zmm25, %zmm23", operand.Mem{Base: reg.R13, Index: reg.R8, Scale: 2, Disp: 8}, reg.Z25, reg.Z23, "62823650527c4502"},
		{"vdpbf16ps 60(%r15,%r8,1){1to16}, %zmm3, %zmm31", operand.Mem{Base: reg.R15, Index: reg.R8, Scale: 1, Disp: 60}, reg.Z3, reg.Z31, "62026658527c070f"},
	} {
		require.Equal(t, c.want, hex.EncodeToString(encodeVDPBF16PS(c.m, c.a, c.acc)), c.text)
	}
}

// Every combination of registers decodes to what was encoded.
func TestEncodeVDPBF16PS_Decodes(t *testing.T) {
	bases := []reg.GPPhysical{reg.RSI, reg.R11, reg.R12, reg.R13, reg.R15}
	zs := []reg.VecPhysical{reg.Z0, reg.Z7, reg.Z8, reg.Z15, reg.Z16, reg.Z23, reg.Z24, reg.Z31}
	for _, base := range bases {
		for _, index := range []reg.Register{nil, reg.R8, reg.RDI} {
			for _, a := range zs {
				for _, acc := range zs {
					m := operand.Mem{Base: base, Index: index, Disp: 124}
					if index != nil {
						m.Scale = 2
					}
					code := encodeVDPBF16PS(m, a, acc)
					require.Len(t, code, 8)
					bit := func(b byte, at int) byte { return b >> at & 1 }
					p0, p1, p2, modrm, sib := code[1], code[2], code[3], code[5], code[6]
					require.Equal(t, byte(0x62), code[0])
					require.Equal(t, byte(2), p0&7, "map 0F38")
					require.Equal(t, byte(2), p1&3, "prefix F3")
					require.Equal(t, byte(0x52), code[4])
					require.Equal(t, byte(0b1010000), p2&0b11110111&^7, "512 bits, broadcast, unmasked")
					require.Equal(t, byte(0), p2&7)
					require.Equal(t, acc.PhysicalIndex(), reg.Index(modrm>>3&7|(1-bit(p0, 7))<<3|(1-bit(p0, 4))<<4))
					require.Equal(t, a.PhysicalIndex(), reg.Index(^p1>>3&15|(1-bit(p2, 3))<<4))
					require.Equal(t, base.PhysicalIndex(), reg.Index(sib&7|(1-bit(p0, 5))<<3))
					gotIndex := reg.Index(sib>>3&7 | (1-bit(p0, 6))<<3)
					if index == nil {
						require.Equal(t, reg.Index(4), gotIndex)
					} else {
						require.Equal(t, index.(reg.Physical).PhysicalIndex(), gotIndex)
						require.Equal(t, byte(1), sib>>6)
					}
					require.Equal(t, byte(31), code[7])
				}
			}
		}
	}
}
