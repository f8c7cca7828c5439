package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// drained returns a listener that hands over, after it was closed, the connections that the kernel had taken by then. An
// ordinary one resets them, and a load balancer that sees a reset does not know whether the request was begun: it must not
// send it to another node. A connection that is refused it may.
func drained(ln net.Listener) net.Listener {
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return ln
	}
	return &drainedListener{TCPListener: tcp}
}

type drainedListener struct {
	*net.TCPListener
	closing atomic.Bool
}

// Close ends the listening. Accept returns what is left, and then closes the socket: who closes has to go on accepting, as
// http.Server does.
func (l *drainedListener) Close() error {
	l.closing.Store(true)
	return l.SetDeadline(time.Unix(1, 0)) //nolint:wrapcheck // it stands in for the listener's own Close
}

// Accept implements net.Listener.
func (l *drainedListener) Accept() (net.Conn, error) {
	if !l.closing.Load() {
		conn, err := l.TCPListener.Accept()
		if err == nil || !l.closing.Load() {
			return conn, err //nolint:wrapcheck // http.Server looks at it
		}
	}
	conn, err := l.next()
	if conn != nil {
		return conn, nil
	}
	if closing := l.TCPListener.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return nil, fmt.Errorf("close the port: %w", err)
	}
	return nil, net.ErrClosed
}

// next takes a connection that waits. If none does, it ends the listening in the same breath.
func (l *drainedListener) next() (net.Conn, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller says what failed
	}
	var taken int
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			taken, _, failed = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if !errors.Is(failed, unix.EINTR) && !errors.Is(failed, unix.ECONNABORTED) { // these say nothing of the others
				break
			}
		}
		if failed != nil {
			_ = unix.Shutdown(int(fd), unix.SHUT_RD)
		}
	})
	if err != nil || failed != nil {
		return nil, err //nolint:wrapcheck // none waits, or none can be had
	}
	file := os.NewFile(uintptr(taken), "connection")
	defer func() { _ = file.Close() }()
	return net.FileConn(file) //nolint:wrapcheck // the caller says what failed
}
