package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

const (
	singleName = "model.safetensors"
	indexName  = "model.safetensors.index.json"
	// maxShards bounds the open files of one checkpoint. The largest published ones have some 200.
	maxShards = 2048
)

// source finds tensors by name, in one file or in the shards of an index.
type source struct {
	dir    string
	opts   []Option
	files  map[string]*File  // by file name; those that are there
	where  map[string]string // tensor -> file name
	names  []string          // of all tensors, sorted
	absent map[string]error  // file name -> why a shard that the index names cannot be used
}

// openSource opens all files of a checkpoint's directory and reads their headers. A shard that is missing or broken is an error
// only once a tensor of it is needed: a host of a few experts need not keep the whole checkpoint.
func openSource(dir string, opts ...Option) (_ *source, err error) {
	s := &source{dir: dir, opts: opts, files: map[string]*File{}, where: map[string]string{}, absent: map[string]error{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	err = s.openSingle(filepath.Join(dir, singleName))
	if errors.Is(err, fs.ErrNotExist) {
		err = s.openIndex()
	}
	s.names = slices.Sorted(maps.Keys(s.where))
	return s, err
}

// openSingle opens the one file that holds all tensors.
func (s *source) openSingle(path string) error {
	f, err := OpenFile(path, s.opts...)
	if err != nil {
		return err
	}
	name := filepath.Base(path)
	s.files[name] = f
	for tensor := range f.tensors {
		s.where[tensor] = name
	}
	return nil
}

// openIndex opens the shards that the index names.
func (s *source) openIndex() error {
	path := filepath.Join(s.dir, indexName)
	data, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: no checkpoint: expected %s or %s", s.dir, singleName, indexName)
	}
	if err != nil {
		return err
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(index.WeightMap) == 0 {
		return fmt.Errorf("%s: expected a weight_map with tensors, found none", path)
	}
	s.where = index.WeightMap
	shards := map[string]bool{}
	for tensor, shard := range s.where {
		// The index comes with the weights, from a stranger: it must not reach other directories.
		if shard == "" || shard == "." || shard == ".." || strings.ContainsAny(shard, "/\\\x00") {
			return fmt.Errorf("%s: tensor %q: expected the name of a file in this directory, found %q", path, tensor, shard)
		}
		shards[shard] = true
	}
	if len(shards) > maxShards {
		return fmt.Errorf("%s: expected at most %d files, found %d", path, maxShards, len(shards))
	}
	for _, shard := range slices.Sorted(maps.Keys(shards)) {
		f, err := OpenFile(filepath.Join(s.dir, shard), s.opts...)
		broken, isBroken := errors.AsType[*brokenError](err)
		switch {
		case isBroken:
			s.absent[shard] = broken
		case errors.Is(err, fs.ErrNotExist):
			s.absent[shard] = err
		case err != nil:
			return err
		default:
			s.files[shard] = f
		}
	}
	if len(s.files) == 0 {
		first := s.absent[slices.Min(slices.Collect(maps.Keys(s.absent)))]
		return fmt.Errorf("%s: none of the %d files that it names can be used: %w", path, len(shards), first)
	}
	return nil
}

func (s *source) close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// under returns the names of the tensors that begin with a prefix, sorted.
func (s *source) under(prefix string) []string {
	from, _ := slices.BinarySearch(s.names, prefix)
	to := from
	for to < len(s.names) && strings.HasPrefix(s.names[to], prefix) {
		to++
	}
	return s.names[from:to]
}

// has tells whether the checkpoint names the tensor, in a shard that is there or not.
func (s *source) has(name string) bool {
	_, found := s.where[name]
	return found
}

// find returns a tensor; the error names the file in which it should be.
func (s *source) find(name string) (tensorAt, error) {
	shard, found := s.where[name]
	if !found {
		return tensorAt{}, fmt.Errorf("%s: no tensor %q", s.dir, name)
	}
	if err := s.absent[shard]; err != nil {
		word := "cannot be used"
		if errors.Is(err, fs.ErrNotExist) {
			word = "is missing"
		}
		return tensorAt{}, fmt.Errorf("%s: the file with tensor %q %s: %w", filepath.Join(s.dir, indexName), name, word, err)
	}
	f := s.files[shard]
	info, found := f.tensors[name]
	if !found {
		return tensorAt{}, fmt.Errorf("%s: no tensor %q, though %s says so", f.path, name, indexName)
	}
	return tensorAt{f, name, info}, nil
}
