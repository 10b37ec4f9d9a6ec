package demo

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// childOfOurs gives a child a group of its own, so that Ctrl-C on a terminal reaches the parent alone, which then ends its children in order.
func childOfOurs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// errNoFreezing: Windows knows no SIGSTOP.
var errNoFreezing = fmt.Errorf("a process cannot be frozen on Windows: %w", errors.ErrUnsupported)

func freeze(*os.Process) error { return errNoFreezing }

func thaw(*os.Process) error { return errNoFreezing }
