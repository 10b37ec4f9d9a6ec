//go:build unix

package node

import (
	"math"

	"golang.org/x/sys/unix"
)

// maxFiles returns how many file descriptors this process may hold; -1 where that cannot be told.
func maxFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return -1
	}
	return int(min(limit.Cur, math.MaxInt32)) // unsigned where it matters: infinity is the largest number
}
