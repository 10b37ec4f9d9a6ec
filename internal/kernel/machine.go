package kernel

import "fmt"

// Paths returns the paths that this machine can take, the best one last.
func Paths() []Path { return []Path{PathPortable} }

// kernelsFor returns the functions of a path; it panics if this machine cannot take it.
func kernelsFor(path Path) *kernels {
	paths := Paths()
	if path == PathAuto {
		path = paths[len(paths)-1]
	}
	for _, p := range paths {
		if p == path {
			return portableKernels()
		}
	}
	panic(fmt.Sprintf("kernel: this machine has no %v", path))
}
