// Package npy reads and writes NumPy's array files (NEP 1) as float32 slices: what `kwaaid call` and the HTTP face take and give.
//
//	header.go  the header: magic, version, the dictionary of dtype, order and shape
//	read.go    Read: float16, float32 and float64, either order, one to three dimensions, within a limit
//	write.go   Write: float32 in C order, version 1.0
package npy
