//go:build unix

package checkpoint

import (
	"io/fs"
	"syscall"
)

// inode returns the number by which the file system knows a file: it changes when a file is replaced.
func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
