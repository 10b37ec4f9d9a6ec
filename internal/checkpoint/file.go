package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// readChunk is how much is read before it is hashed: a piece that still lies in a core's cache (1 MiB of L2 on the machines
// at hand), so that hashing costs no second pass over memory, and a caller who gives up is heard soon.
const readChunk = 512 << 10

// File is an open safetensors file whose header has been read and checked. Its methods are safe for concurrent use.
type File struct {
	path    string
	f       *os.File
	is      fs.FileInfo // as it was when it was opened
	hashes  *Hashes     // nil: every slice is hashed as it is read
	tensors map[string]tensorInfo
}

// Option changes how weights are read.
type Option func(*File)

// WithHashes leaves out the hashing of slices whose hashes are known already, and remembers the others.
func WithHashes(h *Hashes) Option { return func(f *File) { f.hashes = h } }

// brokenError says why a file is no safetensors file, or a broken one.
type brokenError struct {
	path string
	err  error
}

func (e *brokenError) Error() string { return e.path + ": " + e.err.Error() }

func (e *brokenError) Unwrap() error { return e.err }

// OpenFile opens a safetensors file and checks its header. Errors name the file, and the tensor where one is to blame.
func OpenFile(path string, opts ...Option) (*File, error) {
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
		return nil, errors.Join(&brokenError{path, err}, f.Close())
	}
	file := &File{path: path, f: f, is: info, tensors: tensors}
	for _, o := range opts {
		o(file)
	}
	return file, nil
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

// read fills into with the tensor's bytes from the given one on, and returns their SHA-256, computed now or when the file was last
// read. It is told of progress after each chunk
// (nil: nobody cares) and stops with ctx's cause.
func (t tensorAt) read(ctx context.Context, into []byte, from int64, progress func(bytes int64)) ([sha256.Size]byte, error) {
	begin, key := t.begin+from, spanKey(t.begin+from, int64(len(into)))
	sum, known := t.file.hashes.get(t.file.absolute(), t.file.is, key)
	hash := sha256.New()
	for at := 0; at < len(into); at += readChunk {
		if ctx.Err() != nil {
			return [sha256.Size]byte{}, context.Cause(ctx)
		}
		chunk := into[at:min(at+readChunk, len(into))]
		if _, err := t.file.f.ReadAt(chunk, begin+int64(at)); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("cut short while it was read: %w", io.ErrUnexpectedEOF)
			}
			return [sha256.Size]byte{}, t.errorf("%w", err)
		}
		if !known {
			hash.Write(chunk)
		}
		if progress != nil {
			progress(int64(len(chunk)))
		}
	}
	if !known {
		hash.Sum(sum[:0])
		t.file.hashes.put(t.file.absolute(), t.file.is, key, sum)
		return sum, nil
	}
	// The hash is of the file as it was opened: is it still that?
	if now, err := t.file.f.Stat(); err != nil || now.Size() != t.file.is.Size() || !now.ModTime().Equal(t.file.is.ModTime()) {
		return sum, t.errorf("the file was changed while it was read")
	}
	return sum, nil
}

// absolute is the file's path wherever the process runs.
func (f *File) absolute() string {
	if abs, err := filepath.Abs(f.path); err == nil {
		return abs
	}
	return f.path
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
