package checkpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// maxHashes bounds the slices whose hashes are remembered, at some 150 bytes each: twenty times the experts of the largest models.
const maxHashes = 1 << 20

// maxHashesFile bounds what is read of a cache: maxHashes lines of JSON.
const maxHashesFile = 256 << 20

// Hashes remembers the SHA-256 of slices of files that have not changed since: same path, size, time and inode. With it a restart
// reads its experts without hashing them. Safe for concurrent use.
type Hashes struct {
	path string

	mu    sync.Mutex
	files map[string]*hashedFile // by absolute path
	count int                    // of all sums
	dirty bool
}

// hashedFile is a file as it was when its slices were hashed.
type hashedFile struct {
	Size    int64             `json:"size"`
	ModTime int64             `json:"mtime_ns"` // Unix time
	Inode   uint64            `json:"inode"`    // 0 where the system has none
	Sums    map[string]string `json:"sums"`     // "offset+length" -> hexadecimal digits
}

// OpenHashes reads the cache at path; where there is none, or a damaged one, it begins anew, since all of it can be computed again.
// The error is the system's.
func OpenHashes(path string) (*Hashes, error) {
	h := &Hashes{path: path, files: map[string]*hashedFile{}}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err != nil || info.Size() > maxHashesFile {
		return h, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return h, err
	}
	var files map[string]*hashedFile
	if json.Unmarshal(raw, &files) != nil {
		files = nil // damaged: all of it can be computed again
	}
	for name, f := range files {
		if f == nil || f.Sums == nil || h.count+len(f.Sums) > maxHashes {
			continue
		}
		h.files[name] = f
		h.count += len(f.Sums)
	}
	return h, nil
}

// Save writes the cache, if anything was added to it. Files that are gone are left out.
func (h *Hashes) Save() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.dirty {
		return nil
	}
	for name, f := range h.files {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			h.count -= len(f.Sums)
			delete(h.files, name)
		}
	}
	raw, err := json.Marshal(h.files)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(h.path), filepath.Base(h.path)+".*")
	if err != nil {
		return fmt.Errorf("hashes of weights cannot be kept: %w", err)
	}
	_, err = tmp.Write(raw)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), h.path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // what is left of it is of no use
		return fmt.Errorf("hashes of weights cannot be kept: %w", err)
	}
	h.dirty = false
	return nil
}

// spanKey names a slice of a file.
func spanKey(offset, length int64) string { return fmt.Sprintf("%d+%d", offset, length) }

// get returns the hash of a slice of a file that is as it was.
func (h *Hashes) get(path string, is fs.FileInfo, key string) (sum [sha256.Size]byte, ok bool) {
	if h == nil {
		return sum, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.files[path]
	if f == nil || !f.same(is) {
		return sum, false
	}
	n, err := hex.Decode(sum[:], []byte(f.Sums[key]))
	return sum, err == nil && n == len(sum) && len(f.Sums[key]) == 2*len(sum)
}

// put remembers a hash; what was known of the file before it changed is forgotten.
func (h *Hashes) put(path string, is fs.FileInfo, key string, sum [sha256.Size]byte) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.files[path]
	if f == nil || !f.same(is) {
		if f != nil {
			h.count -= len(f.Sums)
		}
		f = &hashedFile{Size: is.Size(), ModTime: is.ModTime().UnixNano(), Inode: inode(is), Sums: map[string]string{}}
		h.files[path] = f
	}
	if _, known := f.Sums[key]; !known {
		if h.count >= maxHashes {
			return
		}
		h.count++
	}
	f.Sums[key] = hex.EncodeToString(sum[:])
	h.dirty = true
}

func (f *hashedFile) same(is fs.FileInfo) bool {
	return f.Size == is.Size() && f.ModTime == is.ModTime().UnixNano() && f.Inode == inode(is)
}
