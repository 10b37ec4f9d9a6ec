package npy_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/npy"
)

const limit = 1 << 20

// file returns an array file with the given version, dictionary and elements.
func file(version byte, dict string, elements ...byte) []byte {
	b := append([]byte("\x93NUMPY"), version, 0)
	if version == 1 {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(dict)))
	} else {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(dict)))
	}
	return append(append(b, dict...), elements...)
}

func f32(values ...float32) (b []byte) {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

// What NumPy 2 wrote, see testdata/make.py: k, k+1, ... in the shape and dtype that the file's name says.
func TestRead_TakesWhatNumPyWrites(t *testing.T) {
	for name, shape := range map[string][]int{
		"f4_1d":         {5},
		"f4_2d":         {3, 4},
		"f4_3d":         {2, 3, 4},
		"f2_2d":         {3, 4},
		"f8_2d":         {3, 4},
		"f4_2d_fortran": {3, 4},
		"f8_3d_fortran": {2, 3, 4},
		"f4_2d_v2":      {3, 4},
		"f4_2d_v3":      {3, 4},
		"f4_empty":      {0, 4},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", name+".npy"))
			require.NoError(t, err)
			for _, read := range map[string]func() ([]int, []float32, error){
				"unsized": func() ([]int, []float32, error) { return npy.Read(iotest.OneByteReader(bytes.NewReader(b)), limit) },
				"sized":   func() ([]int, []float32, error) { return npy.ReadSized(bytes.NewReader(b), int64(len(b)), limit) },
			} {
				gotShape, data, err := read()
				require.NoError(t, err)
				require.Equal(t, shape, gotShape)
				for i, v := range data {
					require.Equal(t, float32(i)-1.5, v, "element %d", i)
				}
			}
		})
	}
}

func TestWrite_WritesTheBytesOfNumPy(t *testing.T) {
	for name, shape := range map[string][]int{"f4_1d": {5}, "f4_2d": {3, 4}, "f4_3d": {2, 3, 4}, "f4_empty": {0, 4}} {
		want, err := os.ReadFile(filepath.Join("testdata", name+".npy"))
		require.NoError(t, err)
		n := 1
		for _, d := range shape {
			n *= d
		}
		data := make([]float32, n)
		for i := range data {
			data[i] = float32(i) - 1.5
		}
		var b bytes.Buffer
		require.NoError(t, npy.Write(&b, shape, data))
		require.Equal(t, want, b.Bytes(), name)
		require.EqualValues(t, b.Len(), npy.Size(shape), name)
	}
}

func TestWrite_RefusesShapesThatDoNotFit(t *testing.T) {
	require.ErrorContains(t, npy.Write(io.Discard, []int{2, 3}, make([]float32, 5)), "has 6 elements, the data 5")
	require.Error(t, npy.Write(io.Discard, nil, make([]float32, 1)))
}

func TestRead_HalfIsExactForEveryValue(t *testing.T) {
	b := file(1, "{'descr': '<f2', 'fortran_order': False, 'shape': (65536,)}")
	for i := range 65536 {
		b = binary.LittleEndian.AppendUint16(b, uint16(i))
	}
	_, data, err := npy.Read(bytes.NewReader(b), limit)
	require.NoError(t, err)
	for i, v := range data {
		exponent, fraction := i>>10&0x1f, float64(i&0x3ff)
		want := math.Ldexp(1+fraction/1024, exponent-15)
		switch {
		case exponent == 0:
			want = math.Ldexp(fraction, -24)
		case exponent == 31 && fraction == 0:
			want = math.Inf(1)
		case exponent == 31:
			require.True(t, math.IsNaN(float64(v)), "%#04x", i)
			continue
		}
		require.Equal(t, math.Copysign(want, float64(0x8000-i)-0.5), float64(v), "%#04x", i)
		require.Equal(t, i >= 0x8000, math.Signbit(float64(v)), "%#04x", i)
	}
}

func TestRead_RefusesWithTheReason(t *testing.T) {
	const good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}"
	for name, c := range map[string]struct {
		file []byte
		is   error
		says string
	}{
		"empty":           {nil, npy.ErrFormat, "it ends in its magic: 0 of 8 bytes"},
		"other magic":     {[]byte("PK\x03\x04 a zip"), npy.ErrFormat, "does not begin"},
		"version 4":       {file(4, good, f32(1, 2)...), npy.ErrFormat, "version 4"},
		"long header":     {file(2, good+strings.Repeat(" ", 1<<20)), npy.ErrFormat, "at most 10000"},
		"short header":    {file(1, good)[:20], npy.ErrFormat, "it ends in its header"},
		"no dictionary":   {file(1, "[1]"), npy.ErrFormat, `where "{" belongs`},
		"no shape":        {file(1, "{'descr': '<f4', 'fortran_order': False}"), npy.ErrFormat, `no "shape"`},
		"two shapes":      {file(1, good[:len(good)-1]+", 'shape': (9,)}"), npy.ErrFormat, `"shape" twice`},
		"unknown key":     {file(1, "{'a': 1}"), npy.ErrFormat, `unknown key "a"`},
		"code behind":     {file(1, good+"; import os"), npy.ErrFormat, "behind the dictionary"},
		"open string":     {file(1, "{'descr"), npy.ErrFormat, "without an end"},
		"integers":        {file(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}"), npy.ErrFormat, `dtype "<i8"`},
		"big-endian":      {file(1, "{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}"), npy.ErrFormat, `dtype ">f4"`},
		"records":         {file(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"), npy.ErrFormat, "belongs"},
		"scalar":          {file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': ()}", f32(1)...), npy.ErrFormat, "0 dimensions"},
		"four dims":       {file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1)}"), npy.ErrFormat, "more than 3"},
		"negative":        {file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), npy.ErrFormat, "where a dimension belongs"},
		"overflow":        {file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"), npy.ErrTooLarge, "shape"},
		"too large":       {file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (512, 513)}"), npy.ErrTooLarge, "takes 1050624 bytes"},
		"large as floats": {file(1, "{'descr': '<f2', 'fortran_order': False, 'shape': (512, 513)}"), npy.ErrTooLarge, "takes 1050624 bytes"},
		"cut":             {file(1, good, f32(1)...), npy.ErrFormat, "it ends in its elements: 4 of 8 bytes"},
		"more":            {file(1, good, f32(1, 2, 3)...), npy.ErrFormat, "bytes follow"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := npy.Read(bytes.NewReader(c.file), limit)
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestReadSized_RefusesAHeaderThatLiesBeforeMemoryIsTaken(t *testing.T) {
	b := file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,)}", f32(1, 2)...)
	before := allocated()
	_, _, err := npy.ReadSized(bytes.NewReader(b), int64(len(b)), 1<<40)
	require.ErrorIs(t, err, npy.ErrFormat)
	require.ErrorContains(t, err, "claims 1073741")
	require.Less(t, allocated()-before, uint64(1<<20))
}

func TestRead_TakesMemoryOnlyAsBytesArrive(t *testing.T) {
	b := file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,)}", f32(1, 2)...)
	before := allocated()
	_, _, err := npy.Read(bytes.NewReader(b), 1<<40)
	require.ErrorContains(t, err, "it ends in its elements")
	require.Less(t, allocated()-before, uint64(1<<20))
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestRead_ReportsTheReadersOwnError(t *testing.T) {
	b := file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", f32(1)...)
	_, _, err := npy.Read(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(io.ErrClosedPipe)), limit)
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.npy")
	require.NoError(f, err)
	require.NotEmpty(f, files)
	for _, name := range files {
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		shape, data, err := npy.ReadSized(bytes.NewReader(b), int64(len(b)), limit)
		shape2, data2, err2 := npy.Read(bytes.NewReader(b), limit)
		require.Equal(t, err == nil, err2 == nil, "%v, %v", err, err2)
		if err != nil {
			return
		}
		require.Equal(t, shape, shape2)
		require.Equal(t, bits(data), bits(data2))
		require.LessOrEqual(t, 4*len(data), limit)
		var out bytes.Buffer
		require.NoError(t, npy.Write(&out, shape, data))
		shape3, data3, err := npy.Read(&out, limit)
		require.NoError(t, err)
		require.Equal(t, shape, shape3)
		require.Equal(t, bits(data), bits(data3))
	})
}

func bits(data []float32) []uint32 {
	out := make([]uint32, len(data))
	for i, v := range data {
		out[i] = math.Float32bits(v)
	}
	return out
}

func BenchmarkReadSized(b *testing.B) {
	for _, rows := range []int{1, 2048} {
		b.Run(fmt.Sprintf("%dx1024", rows), func(b *testing.B) {
			var file bytes.Buffer
			require.NoError(b, npy.Write(&file, []int{rows, 1024}, make([]float32, rows*1024)))
			b.SetBytes(int64(file.Len()))
			b.ReportAllocs()
			for b.Loop() {
				_, _, err := npy.ReadSized(bytes.NewReader(file.Bytes()), int64(file.Len()), 1<<30)
				require.NoError(b, err)
			}
		})
	}
}
