package p2p

import (
	"os"

	"golang.org/x/sys/windows"
)

// errHeld: somebody else has the lock.
var errHeld = windows.ERROR_LOCK_VIOLATION

// lockExclusive locks one byte far behind the process ID, which others may then still read.
func lockExclusive(f *os.File) error {
	at := windows.Overlapped{Offset: 1 << 20}
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
}
