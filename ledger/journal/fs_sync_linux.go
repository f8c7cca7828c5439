package journal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Sync implements File. It is fdatasync, which writes the size of a file but not when it was changed: a file that is written in place
// needs no transaction of the file system then.
func (f osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}
