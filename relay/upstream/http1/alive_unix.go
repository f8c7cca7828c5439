//go:build unix

package http1

import (
	"errors"
	"syscall"
)

// watch prepares alive, so that it allocates nothing.
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
		_, err := syscall.Read(int(fd), n.peeked[:])
		n.quiet = errors.Is(err, syscall.EAGAIN)
		return true // it does not wait
	}
}

// alive reports whether nothing came while the connection was idle: neither its end nor a byte that nobody asked for.
func (n *conn) alive() bool {
	if n.raw == nil {
		return true
	}
	err := n.raw.Read(n.look)
	return err == nil && n.quiet
}
