package main

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"ledgerline/relay/dialect"
)

const (
	// refusalPatience is how long a connection that is refused may take to read why. Until then it holds a file, so only
	// fileShares.refused are told at once, and others are closed.
	refusalPatience = 500 * time.Millisecond
	// maxUnread is what is read of a request that is refused, in bytes: closing a connection with unread bytes resets it, and takes the
	// answer with it.
	maxUnread = 64 << 10
)

// boundedListener refuses connections beyond a number, each with an answer that says when to come back.
type boundedListener struct {
	net.Listener
	open     *atomic.Int64 // connections that are served
	files    fileShares
	refusing atomic.Int64
	refusal  []byte
}

func newBoundedListener(ln net.Listener, open *atomic.Int64, files fileShares) *boundedListener {
	body := dialect.AppendError(nil, dialect.OpenAI, &dialect.Problem{
		Code: "node_full", Message: "the node has as many connections as it can take, try again shortly",
	}, "")
	head := "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n" +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	return &boundedListener{Listener: ln, open: open, files: files, refusal: append([]byte(head), body...)}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || l.open.Load() < int64(l.files.clients) {
			return conn, err //nolint:wrapcheck // http.Server looks at it
		}
		if l.refusing.Add(1) > int64(l.files.refused) {
			l.refusing.Add(-1)
			_ = conn.Close()
			continue
		}
		go l.refuse(conn)
	}
}

// refuse answers whatever is asked. It ends within refusalPatience.
func (l *boundedListener) refuse(conn net.Conn) {
	defer l.refusing.Add(-1)
	defer func() { _ = conn.Close() }()
	if conn.SetDeadline(time.Now().Add(refusalPatience)) != nil {
		return
	}
	if _, err := conn.Write(l.refusal); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, conn, maxUnread) // until the client closes, or is out of time
	}
}

// counted keeps the number of connections that are served.
func counted(open *atomic.Int64, state http.ConnState) {
	switch state {
	case http.StateNew:
		open.Add(1)
	case http.StateClosed, http.StateHijacked:
		open.Add(-1)
	case http.StateActive, http.StateIdle:
	}
}
