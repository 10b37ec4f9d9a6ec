package kernel

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	pageSize = 1 << 12
	hugePage = 1 << 21
	// arenaSize is how much is asked of the system at once: experts of ten megabytes lie side by side in it, so that only an arena's ends,
	// not every expert's, are without huge pages. What nobody wrote to takes no memory.
	arenaSize = 256 << 20
)

// memory is a block of bytes, aligned to a page, outside of Go's heap: so that it can have huge pages (weights are read at up to twice the speed
// with them), and goes back to the system when nothing refers to it any more. Its bytes are zero at first.
type memory struct {
	bytes   []byte
	whole   []byte // what unmap gives back; nil where the heap has it
	cleanup runtime.Cleanup
}

// newMemory returns n bytes for weights.
func newMemory(n int) (*memory, error) {
	size := roundUp(max(n, 1), pageSize)
	if size > arenaSize/2 {
		return mapMemory(n)
	}
	b, err := theHeap.allocate(size)
	if err != nil {
		return nil, err
	}
	m := &memory{bytes: b[:n:n]}
	runtime.AddCleanup(m, theHeap.free, b)
	return m, nil
}

// newScratch returns n bytes for what is computed meanwhile.
func newScratch(n int) *memory {
	m, err := mapMemory(roundUp(n, hugePage))
	if err != nil {
		panic(fmt.Sprintf("kernel: %v", err)) // as when Go's own memory is exhausted
	}
	return m
}

// mapMemory returns n bytes that begin at a huge page.
func mapMemory(n int) (*memory, error) {
	b, whole, err := mapHuge(n)
	if err != nil {
		return nil, err
	}
	m := &memory{bytes: b, whole: whole}
	m.cleanup = runtime.AddCleanup(m, func(whole []byte) { _ = unix.Munmap(whole) }, whole)
	return m, nil
}

// unmap gives what mapMemory returned back to the system at once, rather than when the collector finds it. Nobody may use the bytes any more.
func (m *memory) unmap() {
	m.cleanup.Stop()
	runtime.KeepAlive(m) // else the cleanup could be on its way
	_ = unix.Munmap(m.whole)
	m.bytes, m.whole = nil, nil
}

// mapHuge maps n bytes that begin at a huge page, within the whole of what is mapped.
func mapHuge(n int) (b, whole []byte, err error) {
	whole, err = unix.Mmap(-1, 0, n+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, fmt.Errorf("%d bytes of memory: %w", n, err)
	}
	skip := int(-uintptr(unsafe.Pointer(&whole[0])) % hugePage)
	b = whole[skip : skip+n : skip+n]
	_ = unix.Madvise(whole, unix.MADV_HUGEPAGE) // a kernel without huge pages is slower, not wrong
	return b, whole, nil
}

// theHeap is where weights lie. Like Go's heap there is one in a process, and it holds nothing but memory.
var theHeap heap

// heap hands out parts of arenas.
type heap struct {
	mu     sync.Mutex
	arenas []*arena
}

// arena is memory that begins at a huge page. What is free in it reads as zero.
type arena struct {
	bytes, whole []byte
	free         []extent // ascending, none touches the next
}

// extent is a part of an arena, from start up to end.
type extent struct{ start, end int }

// allocate returns size bytes, a multiple of pages and no more than an arena.
func (h *heap) allocate(size int) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.arenas {
		if b := a.allocate(size); b != nil {
			return b, nil
		}
	}
	b, whole, err := mapHuge(arenaSize)
	if err != nil {
		return nil, err
	}
	a := &arena{bytes: b, whole: whole, free: []extent{{0, arenaSize}}}
	h.arenas = append(h.arenas, a)
	return a.allocate(size), nil
}

// free takes back what allocate returned; an arena that is free altogether goes back to the system.
func (h *heap) free(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, a := range h.arenas {
		at := uintptr(unsafe.Pointer(&b[0])) - uintptr(unsafe.Pointer(&a.bytes[0]))
		if at >= arenaSize { // of another one; below this one's start it wraps around
			continue
		}
		a.release(extent{int(at), int(at) + len(b)})
		if a.free[0] == (extent{0, arenaSize}) {
			h.arenas = slices.Delete(h.arenas, i, i+1)
			_ = unix.Munmap(a.whole)
		}
		return
	}
}

func (a *arena) allocate(size int) []byte {
	for i := range a.free {
		e := &a.free[i]
		if e.end-e.start < size {
			continue
		}
		b := a.bytes[e.start : e.start+size : e.start+size]
		if e.start += size; e.start == e.end {
			a.free = slices.Delete(a.free, i, i+1)
		}
		return b
	}
	return nil
}

// release makes e free. Huge pages that are free as a whole go back to the system; the rest of e is made zero, since giving back a part of a huge
// page would break it for its neighbour.
func (a *arena) release(e extent) {
	i, _ := slices.BinarySearchFunc(a.free, e.start, func(f extent, start int) int { return f.start - start })
	joined, from, to := e, i, i
	if i > 0 && a.free[i-1].end == e.start {
		joined.start, from = a.free[i-1].start, i-1
	}
	if i < len(a.free) && a.free[i].start == e.end {
		joined.end, to = a.free[i].end, i+1
	}
	a.free = slices.Replace(a.free, from, to, joined)
	first := max(roundUp(joined.start, hugePage), e.start/hugePage*hugePage)
	last := min(joined.end/hugePage*hugePage, roundUp(e.end, hugePage))
	if first >= last || unix.Madvise(a.bytes[first:last], unix.MADV_DONTNEED) != nil {
		clear(a.bytes[e.start:e.end])
		return
	}
	clear(a.bytes[e.start:max(first, e.start)])
	clear(a.bytes[min(last, e.end):e.end])
}
