package http1

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	// headBuffer is what a connection reads of an answer's head at once, in bytes; bodies go past it.
	headBuffer = 4 << 10
	// keptHead is the largest head of a request whose memory is kept for the next: one that a channel's own fields made longer must not
	// stay for ever.
	keptHead = 4 << 10
	// joined is the largest body that is copied behind its head: for so little, one buffer is cheaper than a list of two.
	joined = 1 << 10
	// direct is the largest body that the caller's goroutine writes before it reads. It fits into the kernel's buffers, so that a server
	// which answers without having read it is heard all the same. What is larger has a goroutine of its own.
	direct = 64 << 10
)

// conn is one connection. It belongs to the request that it was taken for, or to the pool.
type conn struct {
	client *Client
	addr   string
	net    net.Conn
	heads  *heads      // nil: there is nothing of a head any more
	limit  int64       // what may still be read of a head
	parts  net.Buffers // head and body of the request
	closer func()      // close, made once

	patience sync.Mutex // held while HeadTimeout begins or ends
	answered bool       // the head is there: HeadTimeout is over

	// of the pool
	idleSince time.Time
	peeked    [1]byte

	// a read that does not wait
	raw     syscall.RawConn // nil where the system has none
	look    func(fd uintptr) bool
	into    []byte // what look reads into
	looked  int    // what it read
	lookErr error
}

func newConn(c *Client, addr string, dialed net.Conn) *conn {
	n := &conn{client: c, addr: addr, net: dialed}
	n.closer = n.close
	n.watch()
	return n
}

// heads is the memory for the head of a request and that of its answer. A connection has it until what came with the answer's head is
// read: a stream goes on for minutes without, and those that are idle need none.
type heads struct {
	out []byte
	in  *bufio.Reader // reads through conn.Read
}

// takeHeads gets it from one that is done with it.
func (n *conn) takeHeads() {
	h, ok := n.client.heads.Get().(*heads)
	if !ok {
		h = &heads{in: bufio.NewReaderSize(nil, headBuffer)}
	}
	h.in.Reset(n)
	n.heads = h
}

// giveHeads gives it back. Nobody may be writing the request any more.
func (n *conn) giveHeads() {
	h := n.heads
	n.heads = nil
	h.in.Reset(nil)
	if cap(h.out) > keptHead {
		h.out = nil
	}
	n.client.heads.Put(h)
}

// buffered is how much came with the answer's head, and is not read yet.
func (n *conn) buffered() int {
	if n.heads == nil {
		return 0
	}
	return n.heads.in.Buffered()
}

// Read implements io.Reader for the head.
func (n *conn) Read(p []byte) (int, error) {
	if n.limit <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > n.limit {
		p = p[:n.limit]
	}
	k, err := n.net.Read(p)
	n.limit -= int64(k)
	return k, err //nolint:wrapcheck // io.EOF has to stay io.EOF
}

func (n *conn) close() { _ = n.net.Close() } // there is nobody who could do anything about it

// do sends the request and reads the head of the answer. After an error the connection is closed.
func (n *conn) do(ctx context.Context, r *Request) (*http.Response, error) {
	b := &body{conn: n, ctx: ctx, stop: context.AfterFunc(ctx, n.closer)}
	n.takeHeads()
	err := n.send(r, b)
	var resp *http.Response
	if err == nil {
		resp, err = n.head()
	}
	if err == nil && n.client.cfg.HeadTimeout > 0 {
		err = n.wait(false)
	}
	if err != nil {
		return nil, b.end(err)
	}
	b.begin(resp)
	return resp, nil
}

// send writes the request, or has it written if it is large.
func (n *conn) send(r *Request, b *body) error {
	h := n.heads
	h.out, n.answered = r.appendHead(h.out[:0]), false
	switch {
	case r.Get:
		return n.write(h.out, nil)
	case len(r.Body) <= joined:
		h.out = append(h.out, r.Body...)
		return n.write(h.out, nil)
	case len(r.Body) <= direct:
		return n.write(h.out, r.Body)
	}
	b.written = make(chan error, 1)
	go func() { b.written <- n.write(h.out, r.Body) }() // it ends by itself or with the connection; body.end waits for it
	return nil
}

func (n *conn) write(head, rest []byte) error {
	var wrote int64
	var err error
	if rest == nil {
		var k int
		k, err = n.net.Write(head)
		wrote = int64(k)
	} else {
		n.parts = append(n.parts[:0], head, rest)
		parts := n.parts
		wrote, err = n.parts.WriteTo(n.net)
		clear(parts[:2]) // the body is not ours to keep
		n.parts = parts[:0]
	}
	switch {
	case err != nil && wrote == 0:
		return fmt.Errorf("%w: %w", errNotSent, err)
	case err != nil:
		return fmt.Errorf("write the request: %w", err)
	case n.client.cfg.HeadTimeout > 0:
		return n.wait(true)
	}
	return nil
}

// wait begins or ends HeadTimeout. An answer may come before the request was written to its end: then it does not begin.
func (n *conn) wait(begin bool) error {
	n.patience.Lock()
	defer n.patience.Unlock()
	var until time.Time
	switch {
	case !begin:
		n.answered = true
	case n.answered:
		return nil
	default:
		until = time.Now().Add(n.client.cfg.HeadTimeout)
	}
	return n.net.SetReadDeadline(until) //nolint:wrapcheck // it fails on closed connections only
}

// head reads heads until one is no interim answer. All of them together have one bound.
func (n *conn) head() (*http.Response, error) {
	n.limit = n.client.cfg.MaxHead
	in := n.heads.in
	if _, err := in.Peek(1); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	for {
		resp, err := http.ReadResponse(in, nil)
		switch {
		case err != nil && n.limit <= 0:
			return nil, fmt.Errorf("the answer's head is larger than %d bytes", n.client.cfg.MaxHead)
		case err != nil:
			return nil, fmt.Errorf("read the answer's head: %w", err)
		case resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode < 100:
			n.limit = math.MaxInt64
			return resp, nil
		}
	}
}
