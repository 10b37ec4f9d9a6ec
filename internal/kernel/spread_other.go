//go:build !linux

package kernel

// seats are of use where threads can be moved to other CPUs.
type seats struct{}

func (*seats) reset() {}

func (*seats) sit(bool) {}
