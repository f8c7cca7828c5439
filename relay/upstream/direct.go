package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// The standard transport serves each connection with two goroutines of its own, so that any request can be sent over any
// protocol and still be answered early. A call of the relay needs none of that where the upstream is spoken to in HTTP/1.1
// without TLS (a model server of one's own) and the whole request fits into the socket's buffer: the goroutine that serves the
// client then writes the request, reads the answer's head, and reads its body. That saves four switches between goroutines and
// two thirds of the allocations per request. Everything else goes through the standard transport.

const (
	// maxDirectBody bounds the requests sent this way, in bytes: an upstream that answers before it has read them must
	// not be waited for while it waits for us.
	maxDirectBody = 64 << 10
	// keepRequest bounds the buffer that a connection keeps for its next request.
	keepRequest = 8 << 10
	// maxInformational bounds the 1xx answers before the answer proper; the standard transport's figure.
	maxInformational = 5
	// readBuffer is how much of an answer is read at once.
	readBuffer = 16 << 10
)

// asPost makes the standard library read answers as those to a POST.
var asPost = &http.Request{Method: http.MethodPost}

// field is one header of a request.
type field struct{ name, value string }

// direct keeps the connections.
type direct struct {
	dialer   *net.Dialer
	headWait time.Duration // until the answer's head; 0: as long as the context lets us
	idleFor  time.Duration
	perHost  int
	total    int

	mu    sync.Mutex
	idle  map[string][]*wire // by address, the one used last at the end
	count int
	sweep *time.Timer // nil: no connection is idle
}

// wire is one connection. It belongs to one call at a time.
type wire struct {
	net.Conn
	addr   string
	in     *bufio.Reader
	out    []byte
	left   int64 // bytes that may be read, while a head is read
	unused time.Time
	raw    syscall.RawConn
	peek   func(fd uintptr) bool
	quiet  bool // peek: nothing came, and it is open
}

func (d *direct) dial(ctx context.Context, addr string) (*wire, error) {
	conn, err := d.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err //nolint:wrapcheck // wrapped by Do
	}
	w := &wire{Conn: conn, addr: addr, left: math.MaxInt64}
	w.in = bufio.NewReaderSize(w, readBuffer)
	if sc, ok := conn.(syscall.Conn); ok {
		if w.raw, err = sc.SyscallConn(); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		w.peek = func(fd uintptr) bool {
			var one [1]byte
			n, err := syscall.Read(int(fd), one[:])
			w.quiet = n < 0 && (errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EWOULDBLOCK))
			return true // whatever it found, do not wait
		}
	}
	return w, nil
}

var errHead = fmt.Errorf("the head of the answer is larger than %d KiB", maxResponseHeader>>10)

// Read implements io.Reader for the buffer, and bounds heads (L7).
func (w *wire) Read(p []byte) (int, error) {
	if w.left <= 0 {
		return 0, errHead
	}
	n, err := w.Conn.Read(p[:min(int64(len(p)), w.left)])
	w.left -= int64(n)
	return n, err //nolint:wrapcheck // io.EOF has to stay io.EOF
}

// alive reports whether an idle connection is still open and nothing unasked has come over it.
func (w *wire) alive() bool {
	if w.raw == nil {
		return false
	}
	w.quiet = false
	return w.raw.Read(w.peek) == nil && w.quiet
}

// take returns an idle connection, nil if there is none.
func (d *direct) take(addr string) *wire {
	for {
		d.mu.Lock()
		list := d.idle[addr]
		if len(list) == 0 {
			d.mu.Unlock()
			return nil
		}
		w := list[len(list)-1]
		list[len(list)-1] = nil
		d.idle[addr] = list[:len(list)-1]
		d.count--
		d.mu.Unlock()
		if w.alive() {
			return w
		}
		_ = w.Close() // the upstream closed it, or broke the protocol
	}
}

// keep takes a connection back.
func (d *direct) keep(w *wire) {
	w.unused = time.Now()
	if cap(w.out) > keepRequest {
		w.out = nil
	}
	d.mu.Lock()
	list := d.idle[w.addr]
	full := d.count >= d.total || len(list) >= d.perHost
	if !full {
		d.idle[w.addr] = append(list, w)
		d.count++
		if d.sweep == nil {
			d.sweep = time.AfterFunc(d.idleFor, d.expire)
		}
	}
	d.mu.Unlock()
	if full {
		_ = w.Close()
	}
}

// expire closes what was idle for too long, and comes again while anything is idle.
func (d *direct) expire() { d.closeIdle(time.Now().Add(-d.idleFor)) }

// closeIdle closes the connections that have been idle since before.
func (d *direct) closeIdle(before time.Time) {
	var gone []*wire
	d.mu.Lock()
	for addr, list := range d.idle {
		n := 0
		for n < len(list) && !list[n].unused.After(before) {
			n++
		}
		gone = append(gone, list[:n]...)
		if d.idle[addr] = append([]*wire(nil), list[n:]...); n == len(list) {
			delete(d.idle, addr)
		}
	}
	d.count -= len(gone)
	if d.sweep != nil {
		d.sweep.Stop()
		d.sweep = nil
	}
	if d.count > 0 {
		const often = 4 // at most a quarter too late
		d.sweep = time.AfterFunc(d.idleFor/often, d.expire)
	}
	d.mu.Unlock()
	for _, w := range gone {
		_ = w.Close()
	}
}

// do sends a request to the place and reads the head of the answer. A connection that turns out to be closed before anything
// was written on it is replaced; a request that may have arrived is never sent twice.
func (d *direct) do(ctx context.Context, p *place, fields []field, body []byte) (*http.Response, error) {
	for {
		w := d.take(p.addr)
		reused := w != nil
		if !reused {
			var err error
			if w, err = d.dial(ctx, p.addr); err != nil {
				return nil, err
			}
		}
		resp, sent, err := d.exchange(ctx, w, p, fields, body)
		if err == nil {
			return resp, nil
		}
		_ = w.Close()
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		if !reused || sent {
			return nil, err
		}
	}
}

// past is a deadline that ends whatever waits.
var past = time.Unix(1, 0)

// exchange writes the request and reads the answer's head. sent: some of it may have arrived.
func (d *direct) exchange(ctx context.Context, w *wire, p *place, fields []field, body []byte) (resp *http.Response, sent bool, err error) {
	if d.headWait > 0 {
		_ = w.SetReadDeadline(time.Now().Add(d.headWait)) // a connection without deadlines has none to miss
	}
	stop := context.AfterFunc(ctx, func() { _ = w.SetDeadline(past) })
	defer func() {
		if err != nil {
			stop()
		}
	}()
	w.request(p, fields, body)
	n, werr := w.Write(w.out)
	if werr != nil && n == 0 {
		return nil, false, fmt.Errorf("write request: %w", werr)
	}
	// An upstream that refused the request may have answered before it closed the connection.
	if resp, err = w.head(); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && d.headWait > 0 {
			err = fmt.Errorf("no answer within %s: %w", d.headWait, err)
		}
		return nil, true, errors.Join(werr, err)
	}
	if d.headWait > 0 {
		_ = w.SetReadDeadline(time.Time{}) // as above
		if ctx.Err() != nil {              // the deadline just lifted may have been the context's
			return nil, true, context.Cause(ctx)
		}
	}
	resp.Request = nil
	resp.Body = &directBody{
		ReadCloser: resp.Body, ctx: ctx, d: d, w: w, stop: stop, keep: werr == nil && !resp.Close && resp.StatusCode >= http.StatusOK,
	}
	return resp, true, nil
}

// request puts the request together.
func (w *wire) request(p *place, fields []field, body []byte) {
	b := append(w.out[:0], "POST "...)
	b = append(append(b, p.uri...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, p.host...), "\r\n"...)
	for _, f := range fields {
		b = append(append(append(append(b, f.name...), ": "...), f.value...), "\r\n"...)
	}
	b = strconv.AppendInt(append(b, "Content-Length: "...), int64(len(body)), 10)
	w.out = append(append(b, "\r\n\r\n"...), body...)
}

// head reads the head of the answer.
func (w *wire) head() (*http.Response, error) {
	w.left = maxResponseHeader
	defer func() { w.left = math.MaxInt64 }()
	for range maxInformational + 1 {
		resp, err := http.ReadResponse(w.in, asPost)
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("the upstream closed the connection: %w", err)
			}
			return nil, fmt.Errorf("read answer: %w", err)
		}
		if resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
	return nil, errors.New("read answer: too many informational answers")
}

// directBody is the body of an answer. Read to its end it gives the connection back, closed before it ends the connection, and
// with it the upstream's work. It is for one goroutine; another one ends a read through the call's context.
type directBody struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // of the call that the body belongs to
	d    *direct
	w    *wire // nil: given back
	stop func() bool
	keep bool
}

// Read implements io.Reader.
func (b *directBody) Read(p []byte) (int, error) {
	if b.w == nil {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		b.end(b.keep)
		return n, io.EOF
	}
	if cause := context.Cause(b.ctx); cause != nil {
		err = cause
	}
	b.end(false)
	return n, err //nolint:wrapcheck // a thin shell
}

// Close implements io.Closer.
func (b *directBody) Close() error {
	b.end(false)
	return nil
}

func (b *directBody) end(keep bool) {
	w := b.w
	if w == nil {
		return
	}
	b.w = nil
	// A context that ended meanwhile may be about to set the connection's deadline.
	if watching := b.stop(); keep && watching && w.in.Buffered() == 0 {
		b.d.keep(w)
		return
	}
	_ = w.Close()
}
