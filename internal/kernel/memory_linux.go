package kernel

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// memory is a large block of zeroed bytes, aligned to a page: memory of its own rather than of Go's heap, so that it can have huge pages (a
// single row reads weights faster than the tables of small pages can be read) and goes back to the system as soon as nothing refers to it.
type memory struct{ bytes []byte }

// newMemory returns n bytes.
func newMemory(n int) (*memory, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("%d bytes of memory: %w", n, err)
	}
	if n >= 1<<21 {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a kernel without huge pages is slower, not wrong
	}
	m := &memory{bytes: b}
	runtime.AddCleanup(m, func(b []byte) { _ = unix.Munmap(b) }, b)
	return m, nil
}

// newScratch returns n bytes for what is computed meanwhile.
func newScratch(n int) *memory {
	m, err := newMemory(roundUp(n, 1<<16))
	if err != nil {
		panic(fmt.Sprintf("kernel: %v", err)) // as when Go's own memory is exhausted
	}
	return m
}
