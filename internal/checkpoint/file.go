package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// readChunk is how much is read before it is hashed: a piece that still lies in a core's cache (1 MiB of L2 on the machines
// at hand), so that hashing costs no second pass over memory, and a caller who gives up is heard soon.
const readChunk = 512 << 10

// File is an open safetensors file whose header has been read and checked. Its methods are safe for concurrent use.
type File struct {
	path    string
	f       *os.File
	tensors map[string]tensorInfo
}

// OpenFile opens a safetensors file and checks its header. Errors name the file, and the tensor where one is to blame.
func OpenFile(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for a writer
		return nil, fmt.Errorf("%s: expected a file, found %s", path, info.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	tensors, err := readHeader(f, info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return &File{path: path, f: f, tensors: tensors}, nil
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Names returns the names of all tensors, sorted.
func (f *File) Names() []string {
	names := make([]string, 0, len(f.tensors))
	for name := range f.tensors {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Shape returns a tensor's dtype as the file spells it (F32, BF16, I64...) and its shape.
func (f *File) Shape(name string) (dtype string, shape []int, err error) {
	t, found := f.tensors[name]
	if !found {
		return "", nil, fmt.Errorf("%s: no tensor %q", f.path, name)
	}
	return t.DType, slices.Clone(t.Shape), nil
}

// Float32s reads a whole tensor of F32, BF16 or F16, widened exactly, and returns its shape.
func (f *File) Float32s(name string) ([]float32, []int, error) {
	return tensorAt{f, name, f.tensors[name]}.float32s()
}

// Int64s reads a whole tensor of I64, and returns its shape.
func (f *File) Int64s(name string) ([]int64, []int, error) {
	t := tensorAt{f, name, f.tensors[name]}
	if t.DType != "I64" {
		return nil, nil, t.errorf("expected I64, found %s", t.found())
	}
	raw := make([]byte, t.size())
	if _, err := t.read(context.Background(), raw, 0, nil); err != nil {
		return nil, nil, err
	}
	values := make([]int64, len(raw)/8)
	for i := range values {
		values[i] = int64(binary.LittleEndian.Uint64(raw[8*i:]))
	}
	return values, slices.Clone(t.Shape), nil
}

// tensorAt is a tensor with the file in which it lies. A zero tensorInfo stands for a tensor that is not there.
type tensorAt struct {
	file *File
	name string
	tensorInfo
}

// errorf returns an error that names file and tensor.
func (t tensorAt) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: tensor %q: %w", t.file.path, t.name, fmt.Errorf(format, args...))
}

// found says in an error what is there.
func (t tensorAt) found() string {
	if t.DType == "" {
		return "no such tensor"
	}
	return fmt.Sprintf("%s %v", t.DType, t.Shape)
}

// read fills into with the tensor's bytes from the given one on, and returns their SHA-256. It is told of progress after each chunk
// (nil: nobody cares) and stops with ctx's cause.
func (t tensorAt) read(ctx context.Context, into []byte, from int64, progress func(bytes int64)) ([sha256.Size]byte, error) {
	hash := sha256.New()
	for at := 0; at < len(into); at += readChunk {
		if ctx.Err() != nil {
			return [sha256.Size]byte{}, context.Cause(ctx)
		}
		chunk := into[at:min(at+readChunk, len(into))]
		if _, err := t.file.f.ReadAt(chunk, t.begin+from+int64(at)); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("cut short while it was read: %w", io.ErrUnexpectedEOF)
			}
			return [sha256.Size]byte{}, t.errorf("%w", err)
		}
		hash.Write(chunk)
		if progress != nil {
			progress(int64(len(chunk)))
		}
	}
	var sum [sha256.Size]byte
	hash.Sum(sum[:0])
	return sum, nil
}

// float32s reads the whole tensor, widened.
func (t tensorAt) float32s() ([]float32, []int, error) {
	d, ok := plainDTypes[t.DType]
	if !ok {
		return nil, nil, t.errorf("expected F32, BF16 or F16, found %s", t.found())
	}
	raw := make([]byte, t.size())
	if _, err := t.read(context.Background(), raw, 0, nil); err != nil {
		return nil, nil, err
	}
	return d.widen(raw), slices.Clone(t.Shape), nil
}
