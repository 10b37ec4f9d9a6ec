//go:build !amd64

package kernel

import "unsafe"

// Paths returns the paths that this machine can take.
func Paths() []Path { return []Path{PathPortable} }

func bestPath([]Path) Path { return PathPortable }

func vectorKernels(Path) *kernels { return portableKernels() }

func (k *kernels) limitLoops() limitLoops { return portableLimits() }

// pause does nothing for a moment.
func pause() {}

// prefetch asks for n cache lines, where a machine can be asked.
func prefetch(unsafe.Pointer, int) {}
