//go:build unix

package http1

import (
	"errors"
	"os"
	"syscall"
)

// watch prepares look, so that it allocates nothing.
func (n *conn) watch() {
	sc, ok := n.net.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	n.raw = raw
	n.look = func(fd uintptr) bool {
		n.looked, n.lookErr = syscall.Read(int(fd), n.into)
		return true // it does not wait
	}
}

// alive reports whether nothing came while the connection was idle: neither its end nor a byte that nobody asked for.
func (n *conn) alive() bool {
	if n.raw == nil {
		return true
	}
	n.into = n.peeked[:]
	err := n.raw.Read(n.look)
	return err == nil && errors.Is(n.lookErr, syscall.EAGAIN)
}

// more reads what has come already. Nothing is 0 without an error; so is the end, which the next read finds again. A failure it does not
// find again.
func (n *conn) more(p []byte) (int, error) {
	if n.raw == nil {
		return 0, nil
	}
	n.into = p
	err := n.raw.Read(n.look)
	n.into = nil // the buffer is not ours to keep
	switch {
	case err != nil:
		return 0, err //nolint:wrapcheck // as that of a read
	case errors.Is(n.lookErr, syscall.EAGAIN), errors.Is(n.lookErr, syscall.EINTR):
		return 0, nil
	case n.lookErr != nil:
		return 0, os.NewSyscallError("read", n.lookErr)
	}
	return n.looked, nil
}
