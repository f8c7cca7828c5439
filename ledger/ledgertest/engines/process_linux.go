package engines

import "syscall"

// attributes puts a child into a process group of its own, so that Ctrl-C reaches only the parent, which then stops its
// children in order, and has the kernel kill it when the parent dies. A detached child gets a session of its own instead.
func attributes(detach bool) *syscall.SysProcAttr {
	if detach {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
