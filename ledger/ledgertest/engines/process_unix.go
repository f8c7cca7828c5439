//go:build unix && !linux

package engines

import "syscall"

// attributes puts a child into a process group of its own. Only Linux can tie its life to the parent's.
func attributes(detach bool) *syscall.SysProcAttr {
	if detach {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Setpgid: true}
}
