package demo

import "syscall"

// endWithParent has Linux kill a child whose parent is gone: it cannot be ended in order any more.
func endWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
