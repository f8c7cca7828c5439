//go:build unix && !linux

package e2e

import (
	"syscall"
	"testing"
)

// attributes puts a child into a process group of its own. It outlives a test run that is killed.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// smallDisk is for Linux.
func smallDisk(testing.TB, string) bool { return false }
