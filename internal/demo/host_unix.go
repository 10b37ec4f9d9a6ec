//go:build unix

package demo

import (
	"os"
	"syscall"
)

// childOfOurs gives a child a group of its own, so that Ctrl-C on a terminal reaches the parent alone, which then ends its children in order;
// and has it end with the parent, where the system can.
func childOfOurs() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Setpgid: true}
	endWithParent(attributes)
	return attributes
}

func freeze(p *os.Process) error { return p.Signal(syscall.SIGSTOP) }

func thaw(p *os.Process) error { return p.Signal(syscall.SIGCONT) }
