//go:build unix && !linux

package demo

import "syscall"

// endWithParent is for Linux alone.
func endWithParent(*syscall.SysProcAttr) {}
