package kernel

import (
	"fmt"
	"slices"
)

// kernelsFor returns the functions of a path; it panics if this machine cannot take it.
func kernelsFor(path Path) *kernels {
	if path == PathPortable {
		return portableKernels()
	}
	paths := Paths()
	switch {
	case path == PathAuto:
		path = bestPath(paths)
	case !slices.Contains(paths, path):
		panic(fmt.Sprintf("kernel: this machine has no %v", path))
	}
	if path == PathPortable {
		return portableKernels()
	}
	return vectorKernels(path)
}
