//go:build !linux && !darwin && !freebsd

package doctor

// freeSpace cannot be told here.
func freeSpace(string) (uint64, bool) { return 0, false }
