package relay

import (
	"context"
	"net"
	"net/http"
	"sync"
)

const (
	// gatherFrom is the size of a piece, in bytes, from which on net/http may need several writes: its buffer of 4 KB also takes the head
	// of the answer and the framing.
	gatherFrom = 3 << 10
	// gatherRoom is for what is not the piece itself, in bytes: what fills net/http's buffer, and the framing behind it.
	gatherRoom = 4<<10 + 64
)

// Gathering returns a listener whose connections send a large piece of a stream in one system call, once ConnContext has made them known
// to the handler. net/http makes three of it: what fills its buffer, the rest, and the two bytes that end a chunk. ln's connections must be
// of TCP; others stay as they are.
func Gathering(ln net.Listener) net.Listener { return gatheringListener{ln} }

type gatheringListener struct{ net.Listener }

// Accept implements net.Listener.
func (l gatheringListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
		return &clientConn{TCPConn: tcp}, nil
	}
	return conn, err //nolint:wrapcheck // http.Server looks at it
}

type clientConnKey struct{}

// ConnContext is for the http.Server that serves a Gathering listener.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*clientConn); ok {
		return context.WithValue(ctx, clientConnKey{}, c)
	}
	return ctx
}

// gatheringConn is what r came over; nil if that does not gather.
func gatheringConn(r *http.Request) *clientConn {
	c, _ := r.Context().Value(clientConnKey{}).(*clientConn)
	return c
}

// clientConn is a connection to a client. Only the goroutine that serves its request writes, so what is here needs no lock.
type clientConn struct {
	*net.TCPConn
	gathering *gathered // nil: what is written leaves at once
	failed    error     // of a gathered write. net/http did not see it, so every later write tells it
}

// gathered is what net/http writes of one piece: payload as the end of it, by reference, and a copy of all else.
type gathered struct {
	piece  []byte
	end    []byte // of piece, written past net/http's buffer
	other  []byte
	before int // of other: what comes before end
	parts  [3][]byte
	send   net.Buffers // of parts
}

var spareGathered = sync.Pool{New: func() any { return &gathered{other: make([]byte, 0, gatherRoom)} }}

// gather holds back what is written until release. piece must stay as it is until then.
func (c *clientConn) gather(piece []byte) {
	c.gathering = spareGathered.Get().(*gathered)
	c.gathering.piece = piece
}

// Write implements io.Writer.
func (c *clientConn) Write(p []byte) (int, error) {
	switch {
	case c.failed != nil:
		return 0, c.failed
	case c.gathering == nil:
		return c.TCPConn.Write(p) //nolint:wrapcheck // net/http looks at it
	}
	c.gathering.add(p)
	return len(p), nil
}

func (g *gathered) add(p []byte) {
	n := len(g.piece) - len(p)
	if g.end == nil && len(p) > 0 && n >= 0 && &g.piece[n] == &p[0] {
		g.end, g.before = p, len(g.other)
		return
	}
	g.other = append(g.other, p...) // net/http's own buffer, which it uses again
}

// release sends what was gathered.
func (c *clientConn) release() error {
	g := c.gathering
	c.gathering = nil
	g.parts = [3][]byte{g.other[:g.before], g.end, g.other[g.before:]}
	g.send = g.parts[:]
	_, c.failed = g.send.WriteTo(c.TCPConn)
	*g = gathered{other: g.other[:0]}
	spareGathered.Put(g)
	return c.failed //nolint:wrapcheck // as that of a write
}
