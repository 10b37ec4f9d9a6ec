package kernel

import (
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// seats are the CPUs on which the threads of a call began. Some schedulers wake a thread on the CPU of who woke it, though others are idle, and leave
// it there for milliseconds: the two then share one CPU, and a pass takes twice its time.
type seats struct {
	mu    sync.Mutex
	taken unix.CPUSet
}

func (s *seats) reset() { s.taken = unix.CPUSet{} }

// sit takes the CPU on which the calling thread runs; where another has it already, the thread moves to one that is free, if it may use such. A thread
// that was awake before it is told that it may wait behind it: it lets that one go first, so that it can move.
func (s *seats) sit(awake bool) {
	var cpu uint32
	if _, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return
	}
	s.mu.Lock()
	shared := s.taken.IsSet(int(cpu))
	s.taken.Set(int(cpu))
	taken := s.taken
	s.mu.Unlock()
	switch {
	case shared:
		move(&taken)
	case awake:
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// move has the calling thread go on elsewhere than on some CPUs. Afterwards it may use the same ones as before.
func move(from *unix.CPUSet) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var allowed unix.CPUSet
	if unix.SchedGetaffinity(0, &allowed) != nil {
		return
	}
	others := allowed
	for i := range others {
		others[i] &^= from[i]
	}
	if others.Count() > 0 && unix.SchedSetaffinity(0, &others) == nil {
		_ = unix.SchedSetaffinity(0, &allowed)
	}
}
