//go:build !unix

package node

// maxFiles returns -1: there is no such limit here.
func maxFiles() int { return -1 }
