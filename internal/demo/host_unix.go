//go:build unix

package demo

import (
	"os"
	"syscall"
)

// ownGroup gives a child a group of its own, so that Ctrl-C on a terminal reaches the parent alone, which then ends its children in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func freeze(p *os.Process) error { return p.Signal(syscall.SIGSTOP) }

func thaw(p *os.Process) error { return p.Signal(syscall.SIGCONT) }
