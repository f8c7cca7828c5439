//go:build unix

package main

import (
	"math"
	"syscall"
)

// openFiles is how many files this process may have open at once. The Go runtime has raised it as far as the system lets it.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt32
	}
	return uint64(limit.Cur) //nolint:unconvert // on some systems it has a sign
}
