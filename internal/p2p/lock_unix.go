//go:build unix

package p2p

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// errHeld: somebody else has the lock.
var errHeld = unix.EWOULDBLOCK

func lockExclusive(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
