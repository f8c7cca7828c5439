package e2e

import (
	"os"
	"syscall"
	"testing"
)

// attributes puts a child into a process group of its own and has the kernel kill it when the thread that started it ends.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// smallDisk mounts a disk of 768 MB on dir; only root may.
func smallDisk(t testing.TB, dir string) bool {
	t.Helper()
	if os.Geteuid() != 0 || os.MkdirAll(dir, 0o700) != nil || syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=768m") != nil {
		return false
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return true
}
