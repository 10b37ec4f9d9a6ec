//go:build !linux

package kernel

// memory is a large block of zeroed bytes, aligned to 64.
type memory struct{ bytes []byte }

// newMemory returns n bytes.
func newMemory(n int) (*memory, error) {
	// Go's large objects start at a multiple of its page size.
	return &memory{bytes: make([]byte, max(n, 1<<16))[:n]}, nil
}

// newScratch returns n bytes for what is computed meanwhile.
func newScratch(n int) *memory { m, _ := newMemory(n); return m }

// mapMemory returns n bytes.
func mapMemory(n int) (*memory, error) { return newMemory(n) }

// unmap leaves the bytes to the collector.
func (m *memory) unmap() { m.bytes = nil }
