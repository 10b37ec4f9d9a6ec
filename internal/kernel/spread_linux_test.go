package kernel

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func currentCPU(t *testing.T) int {
	t.Helper()
	var cpu uint32
	_, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	require.Zero(t, errno)
	return int(cpu)
}

func TestMove_GoesToAnotherCPUAndKeepsWhatTheThreadMayUse(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &before))
	if before.Count() < 2 {
		t.Skip("one CPU: there is no other")
	}
	moved := 0
	for range 100 { // the scheduler may move it back at once
		var from unix.CPUSet
		cpu := currentCPU(t)
		from.Set(cpu)
		move(&from)
		if currentCPU(t) != cpu {
			moved++
		}
	}
	require.Greater(t, moved, 50)
	move(&before) // there is nowhere to go
	require.NoError(t, unix.SchedGetaffinity(0, &after))
	require.Equal(t, before, after)
}

func TestSeats_TwoOnOneCPUPart(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var s seats
	s.sit(true)
	require.Equal(t, 1, s.taken.Count())
	for range 100 {
		s.sit(false)
	}
	var allowed unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &allowed))
	require.LessOrEqual(t, s.taken.Count(), allowed.Count())
	s.reset()
	require.Zero(t, s.taken.Count())
}
