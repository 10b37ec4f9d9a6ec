package gateway

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestNumbers_ReadShapes(t *testing.T) {
	for text, want := range map[string][]int{
		`[]`:                              {0},
		`[1]`:                             {1},
		` [ 1 , 2 ] `:                     {2},
		`[[1,2,3],[4,5,6]]`:               {2, 3},
		`[[],[]]`:                         {2, 0},
		`[[[1],[2]],[[3],[4]],[[5],[6]]]`: {3, 2, 1},
	} {
		s := &scanner{text: []byte(text)}
		shape, data, err := numbers(s, parseFloat32)
		require.NoError(t, err, text)
		require.NoError(t, s.end())
		require.Equal(t, want, shape, text)
		for i, v := range data {
			require.InDelta(t, i+1, v, 0)
		}
	}
}

func TestNumbers_RefuseWhatIsNoTensor(t *testing.T) {
	for _, text := range []string{
		``, `1`, `{}`, `"a"`, `[`, `[1`, `[1,`, `[1,]`, `[,1]`, `[1 2]`, `[1,[2]]`, `[[1],2]`, `[[1],[[2]]]`, `[[1,2],[3]]`, `[[],[1]]`, `[null]`, `["1"]`,
		`[01]`, `[+1]`, `[.5]`, `[1.]`, `[1e]`, `[-]`, `[0x1]`, `[1_0]`, `[Infinity]`, `[1e999]`, strings.Repeat("[", 100),
	} {
		_, _, err := numbers(&scanner{text: []byte(text)}, parseFloat32)
		require.ErrorIs(t, err, expert.ErrInvalidArgument, text)
	}
}

func TestAppendRows_EveryFloatComesBack(t *testing.T) {
	var data []float32
	for bits := uint32(0); bits < 0x7f800000; bits += 0x10101 {
		data = append(data, math.Float32frombits(bits), math.Float32frombits(bits|1<<31))
	}
	var whole []byte
	b, err := appendRows(nil, []int{len(data)}, data, func(b []byte) ([]byte, error) {
		whole = append(whole, b...)
		return b[:0], nil
	})
	require.NoError(t, err)
	whole = append(whole, b...)
	require.True(t, json.Valid(whole))
	_, back, err := numbers(&scanner{text: whole}, parseFloat32)
	require.NoError(t, err)
	require.True(t, slices.EqualFunc(data, back, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }))
}

// The scanner against encoding/json: what one takes the other takes, and reads as the same.
func FuzzCallBody(f *testing.F) {
	for _, text := range []string{
		`{"input":[[1,2],[3,4]]}`, `{"input":[1]}`, `{"input":[[[1e-3]]]}`, `{"input":[]}`, `{"a":{"b":["\"}"]}}`, `{"input" : [ -0.5E+2 ] }`, `{"input":[1],"input":[2]}`, `{"\u0069nput":[1]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		shape, data, err := parseRows(text)
		if err != nil {
			require.ErrorIs(t, err, expert.ErrInvalidArgument)
			return
		}
		var doc map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(text, &doc), "%s", text)
		require.Len(t, doc, 1)
		var want []float32
		switch raw := doc["input"]; len(shape) {
		case 1:
			require.NoError(t, json.Unmarshal(raw, &want))
		case 2:
			var rows [][]float32
			require.NoError(t, json.Unmarshal(raw, &rows))
			want = slices.Concat(rows...)
		case 3:
			var blocks [][][]float32
			require.NoError(t, json.Unmarshal(raw, &blocks))
			for _, rows := range blocks {
				want = append(want, slices.Concat(rows...)...)
			}
		}
		require.Len(t, data, len(want))
		for i := range want {
			require.Equal(t, math.Float32bits(want[i]), math.Float32bits(data[i]))
		}
	})
}

// A document of any values: raw finds the end of each just where encoding/json does.
func FuzzScannerRaw(f *testing.F) {
	for _, text := range []string{`1`, ` {"a":[1,{"b":null}]} x`, `"\\\""`, `[true,false]`, `}`, `,`, `tru`, `"`, `-`, "\"\xff\""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := &scanner{text: text}
		got, err := s.raw()
		var want json.RawMessage
		d := json.NewDecoder(bytes.NewReader(text))
		wantErr := d.Decode(&want)
		if err == nil {
			require.NoError(t, wantErr)
			require.Equal(t, string(want), string(got))
		} else if wantErr == nil {
			// encoding/json stops behind a value that something else touches, such as 1x; a document never holds that.
			require.NotEmpty(t, strings.TrimLeft(string(text[d.InputOffset():]), " \t\r\n"))
		}
	})
}

func BenchmarkNumbers(b *testing.B) {
	row := make([]float64, 1024) // Python writes a float32 with a double's digits
	for i := range row {
		row[i] = float64(float32(i) / 7)
	}
	text, err := json.Marshal(row)
	require.NoError(b, err)
	b.SetBytes(int64(len(text)))
	b.Run("scanner", func(b *testing.B) {
		for b.Loop() {
			_, _, err := numbers(&scanner{text: text}, parseFloat32)
			require.NoError(b, err)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		for b.Loop() {
			var v []float32
			require.NoError(b, json.Unmarshal(text, &v))
		}
	})
}

// allocated returns how many bytes f takes from the heap, garbage and all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// What is left behind stays resident until the runtime gives it back, for minutes.
func TestLargeJSON_LeavesLittleGarbage(t *testing.T) {
	const n = 1 << 20
	text := append([]byte(`{"x":[0`), bytes.Repeat([]byte(",1"), n-1)...)
	text = append(text, `],"y":[1`...)
	at := len(`{"x":`)
	took := allocated(func() {
		_, data, err := numbers(&scanner{text: text, at: at}, parseFloat32)
		require.NoError(t, err)
		require.Len(t, data, n)
	})
	require.Less(t, took, uint64(4*n*11/10), "four bytes for each")

	reply := inferReply{outputs: []inferTensor{{name: "y", datatype: "FP32", shape: []int{n}, data: make([]float32, n)}}}
	took = allocated(func() { require.NoError(t, writeInfer(discard{}, modelName{name: "7"}, httpInfer{}, reply)) })
	require.Less(t, took, uint64(2*n*3/2), "two characters for each")
}

// discard is a client who reads on and keeps nothing.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) WriteHeader(int)             {}
func (discard) Write(b []byte) (int, error) { return len(b), nil }
