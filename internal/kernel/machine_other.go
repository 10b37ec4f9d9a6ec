//go:build !amd64

package kernel

// Paths returns the paths that this machine can take.
func Paths() []Path { return []Path{PathPortable} }

func bestPath([]Path) Path { return PathPortable }

func vectorKernels(Path) *kernels { return portableKernels() }

func (k *kernels) limitLoops() limitLoops { return portableLimits() }

// pause does nothing for a moment.
func pause() {}
