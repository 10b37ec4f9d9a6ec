package checkpoint

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

const (
	// lengthSize is the size of the header's length, a little-endian uint64 at the file's start.
	lengthSize = 8
	// maxHeader is the limit of the reference implementation: some 800,000 tensors.
	maxHeader = 100_000_000
	// maxDims: nothing published has more than five axes.
	maxDims = 16
)

// tensorInfo is what a header says of one tensor. Invariant: begin <= end <= the data's size, and for known dtypes
// end-begin is exactly what dtype and shape take.
type tensorInfo struct {
	DType string
	Shape []int
	begin int64 // from the start of the file
	end   int64
}

func (t tensorInfo) size() int64 { return t.end - t.begin }

// elementBits holds the size of the element types that we check lengths of. A tensor of another type may lie in a file; it
// can't be used.
var elementBits = map[string]int64{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
	"U16": 16, "I16": 16, "F16": 16, "BF16": 16,
	"U32": 32, "I32": 32, "F32": 32,
	"U64": 64, "I64": 64, "F64": 64, "C64": 64,
}

// headerError says what is wrong with one tensor's entry; the file is named by whoever opened it.
func headerError(tensor, format string, args ...any) error {
	return fmt.Errorf("tensor %.200q: %s", tensor, fmt.Sprintf(format, args...))
}

// readHeader reads and checks a safetensors header: the tensors must cover the data exactly, without holes or overlaps, as
// the reference implementation has it. Nothing larger than the file's own size is allocated for what it claims.
func readHeader(r io.ReaderAt, fileSize int64) (map[string]tensorInfo, error) {
	if fileSize < lengthSize {
		return nil, fmt.Errorf("no safetensors file: expected at least %d bytes, found %d", lengthSize, fileSize)
	}
	var length [lengthSize]byte
	if _, err := r.ReadAt(length[:], 0); err != nil {
		return nil, fmt.Errorf("the header's length: %w", err)
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > maxHeader {
		return nil, fmt.Errorf("no safetensors file: its header claims %d bytes, more than the %d allowed", n, maxHeader)
	}
	if int64(n) > fileSize-lengthSize {
		return nil, fmt.Errorf("cut short: the header claims %d bytes, the file has %d behind its first %d", n, fileSize-lengthSize, lengthSize)
	}
	raw := make([]byte, n)
	if _, err := r.ReadAt(raw, lengthSize); err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	tensors, err := parseHeader(raw)
	if err != nil {
		return nil, err
	}
	if err := checkCoverage(tensors, fileSize-lengthSize-int64(n)); err != nil {
		return nil, err
	}
	for name, t := range tensors {
		t.begin += lengthSize + int64(n)
		t.end += lengthSize + int64(n)
		tensors[name] = t
	}
	return tensors, nil
}

// parseHeader reads the header's JSON with offsets as they stand there, counted from the start of the data. The standard
// decoder would take the last of two tensors of one name in silence, so the tokens are read one by one.
func parseHeader(raw []byte) (map[string]tensorInfo, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("the header is not UTF-8")
	}
	d := headerDecoder{json.NewDecoder(bytes.NewReader(raw))}
	d.UseNumber()
	tensors := make(map[string]tensorInfo)
	seenMetadata := false
	err := d.object(func(name string) error {
		if name == "__metadata__" && !seenMetadata {
			seenMetadata = true
			return d.metadata()
		}
		if _, twice := tensors[name]; twice || name == "__metadata__" {
			return headerError(name, "stands in the header twice")
		}
		t, err := d.tensor(name)
		tensors[name] = t
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the header: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the header: something follows the object")
	}
	return tensors, nil
}

// headerDecoder reads exactly the JSON that the format allows.
type headerDecoder struct{ *json.Decoder }

// object reads `{`, calls member behind each key, and reads `}`.
func (d headerDecoder) object(member func(key string) error) error {
	if err := d.delim('{'); err != nil {
		return err
	}
	for d.More() {
		key, err := d.text()
		if err != nil {
			return err
		}
		if err := member(key); err != nil {
			return err
		}
	}
	return d.delim('}')
}

func (d headerDecoder) delim(want json.Delim) error {
	t, err := d.Token()
	if err != nil {
		return noEOF(err)
	}
	if got, ok := t.(json.Delim); !ok || got != want {
		return fmt.Errorf("expected %q, found %.100q", want.String(), fmt.Sprint(t))
	}
	return nil
}

func (d headerDecoder) text() (string, error) {
	t, err := d.Token()
	if err != nil {
		return "", noEOF(err)
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("expected a string, found %.100q", fmt.Sprint(t))
	}
	return s, nil
}

// integers reads an array of at most `most` numbers between 0 and the largest int64.
func (d headerDecoder) integers(most int) ([]int64, error) {
	if err := d.delim('['); err != nil {
		return nil, err
	}
	numbers := make([]int64, 0, 4)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, noEOF(err)
		}
		number, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("expected a number, found %.100q", fmt.Sprint(t))
		}
		v, err := strconv.ParseUint(number.String(), 10, 63)
		if err != nil {
			return nil, fmt.Errorf("expected a whole number between 0 and %d, found %.100q", int64(math.MaxInt64), number.String())
		}
		if len(numbers) == most {
			return nil, fmt.Errorf("expected at most %d numbers", most)
		}
		numbers = append(numbers, int64(v))
	}
	return numbers, d.delim(']')
}

// metadata reads strings by string and keeps none.
func (d headerDecoder) metadata() error {
	err := d.object(func(string) error {
		_, err := d.text()
		return err
	})
	if err != nil {
		return fmt.Errorf("__metadata__: %w", err)
	}
	return nil
}

// tensor reads one tensor's entry.
func (d headerDecoder) tensor(name string) (tensorInfo, error) {
	var t tensorInfo
	var shape, offsets []int64
	seen := make([]string, 0, 3)
	err := d.object(func(key string) (err error) {
		if slices.Contains(seen, key) {
			return fmt.Errorf("%q stands there twice", key)
		}
		seen = append(seen, key)
		switch key {
		case "dtype":
			t.DType, err = d.text()
		case "shape":
			shape, err = d.integers(maxDims)
		case "data_offsets":
			offsets, err = d.integers(2)
		default:
			err = fmt.Errorf("unknown key %.100q", key)
		}
		return err
	})
	if err != nil {
		return t, headerError(name, "%v", err)
	}
	if t.DType == "" || shape == nil || len(offsets) != 2 {
		return t, headerError(name, "expected dtype, shape and two data_offsets, found %.200q", seen)
	}
	t.begin, t.end = offsets[0], offsets[1]
	if t.begin > t.end {
		return t, headerError(name, "data_offsets go from %d back to %d", t.begin, t.end)
	}
	elements := int64(1)
	for _, n := range shape {
		if n > math.MaxInt32 || (n > 0 && elements > math.MaxInt64/64/n) {
			return t, headerError(name, "the shape %v is too large", shape)
		}
		elements *= n
		t.Shape = append(t.Shape, int(n))
	}
	if bits, known := elementBits[t.DType]; known && t.size() != elements*bits/8 {
		return t, headerError(name, "expected %d bytes for %s %v, found %d", elements*bits/8, t.DType, shape, t.size())
	}
	return t, nil
}

// noEOF turns an end in the middle into an error that says so.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkCoverage makes sure that the tensors lie one behind the other and fill the data of the given size.
func checkCoverage(tensors map[string]tensorInfo, size int64) error {
	type placed struct {
		name string
		tensorInfo
	}
	order := make([]placed, 0, len(tensors))
	for name, t := range tensors {
		order = append(order, placed{name, t})
	}
	slices.SortFunc(order, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end), cmp.Compare(a.name, b.name))
	})
	var at int64
	for _, t := range order {
		switch {
		case t.end > size:
			return headerError(t.name, "cut short: it ends %d bytes into the data, the file has %d", t.end, size)
		case t.begin < at:
			return headerError(t.name, "overlaps another one: it begins %d bytes into the data, before %d", t.begin, at)
		case t.begin > at:
			return headerError(t.name, "leaves a hole: it begins %d bytes into the data, expected %d", t.begin, at)
		}
		at = t.end
	}
	if at != size {
		return fmt.Errorf("expected %d bytes of data, as the header says, found %d", at, size)
	}
	return nil
}
